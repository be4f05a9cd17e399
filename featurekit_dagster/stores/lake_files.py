"""Small files and folders of the lake, local or remote: what stands beside the Delta tables.

Tables are read and written by the Delta library; this is for manifests, spines and other files of ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from deltalake.exceptions import TableNotFoundError
from deltalake.fs import DeltaStorageHandler
from pyarrow import NativeFile, fs

from featurekit_dagster.errors import UnusableLakePath

_PIECE_BYTES = 1 << 20
_REFUSED_IN_PATHS = re.compile(r"[\[\]^|\\\x00-\x1f]|%[0-9A-Fa-f]{2}")


def local_path(root: str | Path) -> str | None:
    """Return the absolute path of a local root, None for a remote one.

    Raises:
        UnusableLakePath: A local root contains a character that no Delta table can have in its path.
    """
    text = os.fspath(root)
    if "://" in text:
        parts = urlsplit(text)
        if parts.scheme != "file":
            return None
        text = unquote(parts.path)
    path = os.path.abspath(text)
    refused = sorted(set(_REFUSED_IN_PATHS.findall(path)))
    if refused:
        raise UnusableLakePath(path=path, refused=refused)
    return path


class LakeFiles:
    """Files below one folder of the lake; paths are relative to it, with slashes.

    Args:
        root: A local path or any URI that the Delta library takes.
        options: Credentials and endpoint of a remote root, as the Delta library takes them.
    """

    def __init__(self, root: str, options: Mapping[str, str] | None = None) -> None:
        local = local_path(root)
        self.root = root.rstrip("/") if local is None else local
        self._is_local = local is not None
        self._options = dict(options) if options else None

    def location(self, path: str) -> str:
        """Return the path or URI of a file or folder."""
        return f"{self.root}/{path}"

    def folders(self) -> tuple[str, ...]:
        """Return the names of the folders right below the root, ascending; none where the root is not there."""
        files = self._files()
        if files is None:
            return ()
        found = files.get_file_info(fs.FileSelector("", allow_not_found=True))
        return tuple(sorted(each.base_name for each in found if each.type == fs.FileType.Directory))

    def exists(self, path: str) -> bool:
        """Tell whether there is a file."""
        files = self._files()
        return files is not None and files.get_file_info([path])[0].type == fs.FileType.File

    def read_json(self, path: str) -> dict[str, Any] | None:
        """Return the contents of a JSON file; None where there is none."""
        files = self._files()
        if files is None or not self.exists(path):
            return None
        try:
            with files.open_input_stream(path) as stream:
                found: dict[str, Any] = json.loads(stream.read())
        except FileNotFoundError:  # somebody has removed it since
            return None
        return found

    def write_json(self, path: str, contents: Mapping[str, Any]) -> None:
        """Write a JSON file: all of it or nothing, in place of the one that is there."""
        with self.writing(path) as stream:
            text = json.dumps(contents, indent=1, allow_nan=False).encode()
            for start in range(0, len(text), _PIECE_BYTES):
                stream.write(text[start : start + _PIECE_BYTES])

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[NativeFile]:
        """Give a stream for a new file, which is there once the body of the `with` has ended without an error."""
        files = self._files(create=True)
        assert files is not None  # made where it was not there
        if not self._is_local:
            # the library's own stream takes bytes, of Arrow's buffers only what has been through such a buffer
            with files.open_output_stream(path, buffer_size=2 * _PIECE_BYTES) as stream:
                yield stream
            return
        Path(self.location(path)).parent.mkdir(parents=True, exist_ok=True)
        hidden = f"{path}.{uuid.uuid4().hex}"
        try:
            with files.open_output_stream(hidden) as stream:
                yield stream
            os.replace(self.location(hidden), self.location(path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.location(hidden))

    def reading(self, path: str) -> NativeFile:
        """Return a file for reading at any place.

        Raises:
            FileNotFoundError: There is none.
        """
        files = self._files()
        if files is None:
            raise FileNotFoundError(self.location(path))
        return files.open_input_file(path)

    def remove_file(self, path: str) -> None:
        """Remove a file; one that is not there is left at that."""
        files = self._files()
        if files is not None and self.exists(path):
            with contextlib.suppress(FileNotFoundError):  # somebody else has removed it since
                files.delete_file(path)

    def remove_folder(self, path: str) -> None:
        """Remove a folder with everything in it; one that is not there is left at that."""
        files = self._files()
        if files is None:
            return
        if self._is_local:
            with contextlib.suppress(FileNotFoundError):
                files.delete_dir(path)
            return
        for each in files.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True)):
            if each.type == fs.FileType.File:
                files.delete_file(each.path)

    def _files(self, *, create: bool = False) -> fs.FileSystem | None:
        """Return the root as a file system; None where it is not there and is not to be made."""
        if self._is_local:
            if create:
                Path(self.root).mkdir(parents=True, exist_ok=True)
            elif not os.path.isdir(self.root):
                return None
            return fs.SubTreeFileSystem(self.root, fs.LocalFileSystem())
        try:
            return fs.PyFileSystem(DeltaStorageHandler(self.root, self._options))
        except TableNotFoundError:
            return None  # where folders are more than parts of names
