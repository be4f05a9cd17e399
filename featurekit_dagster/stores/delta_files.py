"""The files of a Delta table: how they are written, their rows by the log, taking them away, local or remote."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
from deltalake import ColumnProperties, WriterProperties
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

from featurekit_dagster.intervals import Interval

_LOG = "_delta_log"
_STATISTICS_STEP = timedelta(milliseconds=1)
_TABLE = re.compile(r"/offline/(?!\.{1,2}/)[^/\\]+/g[1-9][0-9]*")


def writer_properties(schema: pa.Schema) -> WriterProperties:
    """Keep value ranges of flat columns other than floats only.

    Parquet ranges leave NaN out, while DuckDB sorts NaN above every number and skips files by range: a filter on a
    float column would lose rows.
    """
    ranged = [
        field.name for field in schema if not (pa.types.is_nested(field.type) or pa.types.is_floating(field.type))
    ]
    return WriterProperties(
        compression="ZSTD",
        default_column_properties=ColumnProperties(statistics_enabled="NONE"),
        column_properties={name: ColumnProperties(statistics_enabled="PAGE") for name in ranged},
    )


def rows_of_files(files: pa.Table, interval: Interval | None, time_column: str | None) -> int | None:
    """Return the number of rows in files, or of those in an interval; None where the log does not say it.

    Args:
        files: The table's files with their statistics, times of which are cut to milliseconds.
        interval: `[start, end)`, or None for all rows.
        time_column: The column of times.
    """
    counts = files.column("num_records").to_pylist()
    if interval is None:
        return None if None in counts else sum(counts)
    found = 0
    names = [f"{end}.{time_column}" for end in ("min", "max")]
    if files.num_rows and not set(names) <= set(files.column_names):
        return None
    spans = [files.column(name).to_pylist() for name in names] if files.num_rows else [[], []]
    for count, first, last in zip(counts, *spans, strict=True):
        if count is None or (count and (first is None or last is None)):
            return None
        if not count or last + _STATISTICS_STEP <= interval.start or first >= interval.end:
            continue
        if first < interval.start or last + _STATISTICS_STEP > interval.end:
            return None
        found += count
    return found


def remove_table(root: str, location: str, options: Mapping[str, str] | None, *, is_local: bool) -> None:
    """Remove a table with everything in it; one that is not there is left at that.

    The log goes first: after it the table does not exist any more, whatever happens to the rest, and a repetition
    removes what was left.

    Args:
        root: Root of all tables.
        location: The table, `<root>/offline/<view>/g<generation>`.
        options: Credentials and endpoint of a remote root.
        is_local: Whether both are paths of this machine.

    Raises:
        ValueError: The location is not that of a table below the root; nothing was removed.
    """
    if not location.startswith(root) or not _TABLE.fullmatch(location.removeprefix(root)):
        raise ValueError(f"{location} is not the table of a view's generation below {root}")
    if is_local:
        _remove_local(Path(location))
    else:
        handler = DeltaStorageHandler(location, dict(options) if options else None)
        remove_everything(fs.PyFileSystem(handler))


def remove_everything(files: fs.FileSystem) -> None:
    """Remove all files of a file system whose root is a table, its log first."""
    found = files.get_file_info(fs.FileSelector("", allow_not_found=True))
    for each in sorted(found, key=lambda each: each.path != _LOG):
        if each.type == fs.FileType.Directory:
            files.delete_dir(each.path)
        else:
            files.delete_file(each.path)


def _remove_local(table: Path) -> None:
    if table.is_symlink():
        table.unlink()  # what it points to is somebody else's
        return
    for folder in (table / _LOG, table):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
    with contextlib.suppress(OSError):  # other generations are in it, or it is gone
        os.rmdir(table.parent)
