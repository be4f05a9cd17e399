"""Taking a Delta table away, local or remote; `delta.py` says where tables lie."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

_LOG = "_delta_log"
_TABLE = re.compile(r"/offline/(?!\.{1,2}/)[^/\\]+/g[1-9][0-9]*")


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
