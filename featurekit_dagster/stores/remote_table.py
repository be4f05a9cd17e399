"""What a server must offer so that an online store can lie on it: versioned records in key order, changed if unchanged.

`remote_environment.py` makes transactions of it. `redis_table.py` and `dynamodb_table.py` are the servers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

ABSENT = b""
"""Version of a record that does not exist."""

Stored = tuple[bytes, bytes | None]
"""Version and value of a record; `(ABSENT, None)` for none. No version of a record ever comes again."""


class RemoteTable(Protocol):
    """The records of one feature view, of all its generations, on a server."""

    def expect(self, prefix: bytes, *, is_tiled: bool) -> None:
        """Take note of whether the records whose keys begin so are tiles; then the last 8 bytes of a key are a chunk's.

        It is called before such records are read or written by key.
        """
        ...

    def get(self, keys: Sequence[bytes]) -> list[Stored]:
        """Return what is stored under each key; all that is stored of one join key is of one moment."""
        ...

    def following(self, begin: bytes, end: bytes | None, most: int) -> list[bytes]:
        """Return the first stored keys, ascending, with `begin <= key < end`; None is no end."""
        ...

    def scan(self, begin: bytes, end: bytes | None, most: int) -> list[tuple[bytes, Stored]]:
        """Return the same with what is stored under them.

        All that it returns of one join key is of one moment. It may return more than `most`, and fewer only if there
        are no more.
        """
        ...

    def commit(self, expected: Mapping[bytes, bytes], changes: Mapping[bytes, bytes | None]) -> Collection[bytes]:
        """Change records if no other has changed.

        Args:
            expected: The version that each of these keys must have.
            changes: The new value of each of these keys; None deletes it.

        Returns:
            Keys with another version than expected; nothing was changed unless it is empty.
        """
        ...

    def clear(self) -> None:
        """Remove all records."""
        ...

    def close(self) -> None:
        """Close connections; the next call opens them again."""
        ...
