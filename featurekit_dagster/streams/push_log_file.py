"""The file of a push log: an SQLite database in WAL mode, which nobody but its owner can read."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tenacity import retry, retry_if_exception, stop_after_delay, wait_random

_BUSY_SECONDS = 60.0
_opening = threading.Lock()
_SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
  last INTEGER PRIMARY KEY,
  count INTEGER NOT NULL,
  appended_us INTEGER NOT NULL,
  records BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS trimmed (id INTEGER PRIMARY KEY CHECK (id = 0), up_to INTEGER NOT NULL, log TEXT NOT NULL);
INSERT OR IGNORE INTO trimmed VALUES (0, 0, lower(hex(randomblob(8))));
"""


@dataclass(frozen=True, slots=True)
class LogFile:
    """A connection, and the file that it was opened on.

    Args:
        connection: Has no transaction of its own; any thread may use it.
        device: Of the file.
        number: Of the file on the device.
    """

    connection: sqlite3.Connection
    device: int
    number: int

    def is_at(self, path: Path) -> bool:
        """Tell whether the file is still the one at a path: SQLite goes on with one that was deleted, unseen."""
        try:
            found = os.stat(path)
        except FileNotFoundError:
            return False
        return (found.st_dev, found.st_ino) == (self.device, self.number)


def open_log(path: Path) -> LogFile:
    """Open the log at a path, or begin it; it and its directory are created when missing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _opening:
        # Never open one that is there: to close it would release this process's locks on it, as POSIX has it, and
        # another process that closes the log would take away, unseen, the file that is written here.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        found = os.stat(path)
        connection = sqlite3.connect(path, isolation_level=None, timeout=_BUSY_SECONDS, check_same_thread=False)
        _prepare(connection)
    return LogFile(connection, found.st_dev, found.st_ino)


def _is_busy(error: BaseException) -> bool:
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


@retry(
    retry=retry_if_exception(_is_busy),
    wait=wait_random(0.005, 0.05),
    stop=stop_after_delay(_BUSY_SECONDS),
    reraise=True,
)
def _prepare(connection: sqlite3.Connection) -> None:
    """Begin a log; SQLite's own waiting does not cover several processes that switch its mode at once."""
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL would lose what was answered for in a power cut
    connection.executescript(_SCHEMA)
