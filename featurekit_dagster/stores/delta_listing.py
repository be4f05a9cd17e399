"""Which generations of a view have a table and which files a table has, found in the lake itself, local or remote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from deltalake.exceptions import TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow import fs

_GENERATION = re.compile(r"g([1-9][0-9]*)")


def generations_in(folder: str, options: Mapping[str, str] | None, *, is_local: bool) -> tuple[int, ...]:
    """Return the numbers of the folders `g<number>`, ascending; none where the folder is not there.

    Args:
        folder: `<root>/offline/<view>`, a path or a URI.
        options: Credentials and endpoint of a remote root.
        is_local: Whether it is a path of this machine.
    """
    if is_local:
        names = [path.name for path in Path(folder).glob("g*") if path.is_dir()]
    else:
        try:
            files = fs.PyFileSystem(DeltaStorageHandler(folder, dict(options) if options else None))
        except TableNotFoundError:
            return ()  # where folders are more than parts of names
        names = [each.base_name for each in files.get_file_info(fs.FileSelector("", allow_not_found=True))]
    found = (_GENERATION.fullmatch(name) for name in names)
    return tuple(sorted(int(match[1]) for match in found if match))


def files_below(folder: str, options: Mapping[str, str] | None, *, is_local: bool) -> set[str]:
    """Return the names, without folders, of all files of a table.

    Args:
        folder: The table, a path or a URI.
        options: Credentials and endpoint of a remote root.
        is_local: Whether it is a path of this machine.
    """
    if is_local:
        return {path.name for path in Path(folder).rglob("*.parquet")}
    files = fs.PyFileSystem(DeltaStorageHandler(folder, dict(options) if options else None))
    found = files.get_file_info(fs.FileSelector("", recursive=True, allow_not_found=True))
    return {each.base_name for each in found if each.type == fs.FileType.File}
