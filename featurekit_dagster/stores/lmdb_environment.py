"""One memory map per directory and process: opening, growing, forking and transactions of LMDB.

LMDB breaks when a process opens a file twice, uses a handle after a fork, or moves the map under a reader. All of that
is kept from happening here, so that `lmdb.py` can think about records only.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from glob import escape
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import lmdb

from featurekit_dagster.errors import OnlineStoreBusy, OnlineStoreForked

MAP_BYTES = 16 << 30
_MAX_READERS = 1024
_SPARE_READ_TRANSACTIONS = 8
_RESIZE_PATIENCE_SECONDS = 60.0
_FORK_PATIENCE_SECONDS = 1.0

_T = TypeVar("_T")


class LmdbEnvironment:
    """The process's handle of one LMDB directory; get it from `environment_at`.

    Args:
        path: The directory.
        map_bytes: Map size to begin with; it doubles when it is full.
    """

    def __init__(self, path: Path, map_bytes: int) -> None:
        self.path = path
        self.users = 0
        self._map_bytes = map_bytes
        self._environment: lmdb.Environment | None = None
        self._file_number = 0
        self._open_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._readers: list[int] = []
        self._resizing = False
        self._is_inherited = False
        self._is_held_for_fork = False

    def _handle(self, create: bool) -> lmdb.Environment | None:
        """Return the open handle; None if there are no data and none are to be made."""
        if self._is_inherited:
            raise OnlineStoreForked(path=str(self.path))
        if self._environment is not None:
            return self._environment
        with self._open_lock:
            while self._environment is None:
                if create:
                    self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif not (self.path / "data.mdb").exists():
                    return None
                try:
                    self._open()
                except lmdb.Error as error:
                    if os.strerror(errno.ENOENT) not in str(error):
                        raise  # else another process has removed the directory since: look again
            return self._environment

    def _open(self) -> None:
        # A commit syncs data, not its meta page: a power cut can undo the newest transactions, never tear one.
        environment = lmdb.open(
            str(self.path),
            map_size=self._map_bytes,
            max_readers=_MAX_READERS,
            max_spare_txns=_SPARE_READ_TRANSACTIONS,
            metasync=False,
            readahead=False,
            mode=0o600,
            create=False,
        )
        environment.reader_check()
        self._file_number = self._file_on_disk()
        self._environment = environment

    def close(self) -> None:
        """Close the handle; the next use opens it again."""
        with self._write_lock, self._open_lock:
            if self._environment is not None and not self._is_inherited:
                self._drain_readers()
                self._environment.close()
                self._environment = None
                self._resizing = False

    def remove_files(self) -> None:
        """Remove the directory and what is in it; the next write makes it anew, in other processes too."""
        with self._write_lock, self._open_lock:
            if self._environment is not None:
                self._drain_readers()
                self._environment.close()
                self._environment = None
                self._resizing = False
            # at one stroke, so that nobody finds half of it, and nobody's new directory is removed with it
            with suppress(FileNotFoundError):
                self.path.rename(self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}"))
            for removed in self.path.parent.glob(f".{escape(self.path.name)}.*"):
                shutil.rmtree(removed, ignore_errors=True)  # another process may be removing it, too

    def _file_on_disk(self) -> int:
        """Return the number of the file that lies in the directory now; 0 for none."""
        try:
            return os.stat(self.path / "data.mdb").st_ino
        except FileNotFoundError:
            return 0

    def _close_removed(self) -> None:
        """Close a handle whose file another process has removed, so that nothing is written where nobody looks."""
        if self._environment is not None and self._file_on_disk() != self._file_number:
            self._drain_readers()
            self._environment.close()
            self._environment = None
            self._resizing = False

    # ---- reading ---------------------------------------------------------------------------------------------------

    def begin_read(self) -> lmdb.Transaction[bytes] | None:
        """Begin a read transaction that `end_read` must end in the same thread; None if there are no data."""
        thread = threading.get_ident()
        while True:
            environment = None if self._is_inherited else self._environment
            if environment is None:
                environment = self._handle(create=False)
                if environment is None:
                    return None
            # Announce first and look second: a resizer sets its flag first and counts second, so one sees the other.
            self._readers.append(thread)
            if self._resizing or environment is not self._environment:
                self._readers.remove(thread)
                time.sleep(0.001)
                continue
            try:
                return environment.begin()
            except lmdb.MapResizedError:
                self._readers.remove(thread)
            except BaseException:
                self._readers.remove(thread)
                raise
            with self._write_lock:
                self._set_map_size(0)

    def end_read(self, transaction: lmdb.Transaction[bytes]) -> None:
        """End a read transaction."""
        transaction.abort()
        self._readers.remove(threading.get_ident())

    # ---- writing ---------------------------------------------------------------------------------------------------

    def transact(self, body: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Run `body` in one write transaction; run it again from the start if the map had to grow.

        Raises:
            OnlineStoreBusy: The map is full and a reader of this process does not end, so that it cannot grow.
        """
        with self._write_lock:
            self._close_removed()
            while True:
                environment = self._handle(create=True)
                assert environment is not None
                try:
                    with environment.begin(write=True) as transaction:
                        return body(transaction)
                except lmdb.MapFullError:
                    self._set_map_size(environment.info()["map_size"] * 2)
                except lmdb.MapResizedError:
                    self._set_map_size(0)

    def sync(self) -> None:
        """Make every committed transaction survive a power cut."""
        if self._environment is not None:
            self._environment.sync(True)

    def _set_map_size(self, map_bytes: int) -> None:
        """Move the map; 0 takes the size that another process has given it. The write lock is held."""
        try:
            self._drain_readers()
            if self._environment is not None:
                self._environment.set_mapsize(map_bytes)
        finally:
            self._resizing = False

    def _drain_readers(self, patience_seconds: float = _RESIZE_PATIENCE_SECONDS) -> None:
        """Let no new reader begin and wait until none is left."""
        self._resizing = True
        deadline = time.monotonic() + patience_seconds
        while self._readers:
            if threading.get_ident() in self._readers or time.monotonic() > deadline:
                self._resizing = False
                raise OnlineStoreBusy(path=str(self.path), readers=len(self._readers))
            time.sleep(0.001)

    # ---- forking ---------------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Close the handle, so that the child inherits none; LMDB would clear the parent's readers with it."""
        self._is_held_for_fork = self._write_lock.acquire(timeout=_FORK_PATIENCE_SECONDS)
        if not self._is_held_for_fork or self._environment is None:
            return
        try:
            self._drain_readers(_FORK_PATIENCE_SECONDS)
        except OnlineStoreBusy:
            return
        self._environment.close()
        self._environment = None

    def after_fork_in_parent(self) -> None:
        """Let readers and writers go on; they open the directory again."""
        self._resizing = False
        if self._is_held_for_fork:
            self._write_lock.release()

    def after_fork_in_child(self) -> None:
        """Start afresh, or refuse all use where the parent's handle could not be closed."""
        self._open_lock, self._write_lock = threading.Lock(), threading.Lock()
        self._readers, self._resizing = [], False
        self._is_inherited = self._environment is not None


class ReadTransaction:
    """A read transaction as a context; gives None where there are no data."""

    __slots__ = ("_environment", "_transaction")

    def __init__(self, environment: LmdbEnvironment) -> None:
        self._environment = environment

    def __enter__(self) -> lmdb.Transaction[bytes] | None:
        self._transaction = self._environment.begin_read()
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._transaction is not None:
            self._environment.end_read(self._transaction)


class _Registry:
    """The open directories of this process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.environments: dict[str, LmdbEnvironment] = {}

    def before_fork(self) -> None:
        """Prepare every open directory."""
        for environment in list(self.environments.values()):
            environment.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on in the process that forked."""
        for environment in list(self.environments.values()):
            environment.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """Begin in the new process."""
        self.lock = threading.Lock()
        for environment in self.environments.values():
            environment.after_fork_in_child()


_registry = _Registry()


def environment_at(path: Path, map_bytes: int) -> LmdbEnvironment:
    """Return the process's only handle of a directory, and count one more user of it."""
    real = os.path.realpath(path)
    with _registry.lock:
        environment = _registry.environments.get(real)
        if environment is None:
            environment = _registry.environments[real] = LmdbEnvironment(Path(real), map_bytes)
        environment.users += 1
        return environment


def release(environment: LmdbEnvironment) -> None:
    """Count one user less and close the handle after the last."""
    with _registry.lock:
        environment.users -= 1
        if environment.users == 0:
            _registry.environments.pop(os.path.realpath(environment.path), None)
            environment.close()


os.register_at_fork(
    before=_registry.before_fork,
    after_in_parent=_registry.after_fork_in_parent,
    after_in_child=_registry.after_fork_in_child,
)
