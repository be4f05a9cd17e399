"""Who may send events: API keys in a file that only its owner can read, as salted hashes with what each may do.

A key is random, so a plain hash of it cannot be guessed back; the key itself is shown once, when it is made.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

from featurekit_dagster.errors import NotFoundError, TectonValidationError

KEY_VARIABLE = "FEATUREKIT_INGEST_KEY"
EVERYTHING = "*"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PREFIX = "fk"
_SHORTEST = 16


@dataclass(frozen=True, slots=True)
class IngestKey:
    """A key without itself.

    Args:
        name: What people call it.
        salt: Random text, hashed with the key.
        digest: SHA-256 of salt and key, in hexadecimal.
        scopes: Names of the sources that events may be sent to; `*` is all.
    """

    name: str
    salt: str
    digest: str
    scopes: tuple[str, ...]

    def allows(self, source: str) -> bool:
        """Tell whether events may be sent to a source."""
        return EVERYTHING in self.scopes or source in self.scopes


class IngestKeys:
    """The keys of a workspace; a file that is looked at again whenever it changes, and `$FEATUREKIT_INGEST_KEY`.

    The variable holds one key more, which may send to every source.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, IngestKey] = {}
        self._read_at: tuple[int, int] | None = None

    @classmethod
    def of(cls, home: Path, workspace: str) -> IngestKeys:
        """Return the keys of a workspace below a home directory."""
        return cls(home / "push" / f"{quote(workspace, safe='')}.keys.json")

    def create(self, name: str, scopes: Sequence[str] = (EVERYTHING,)) -> str:
        """Make a key and return it; it can never be shown again.

        Raises:
            TectonValidationError: The name is taken or unusable.
        """
        if not _NAME.fullmatch(name):
            raise TectonValidationError(f"{name!r} is no name for a key; use up to 64 letters, digits, _ and -")
        with self._changing() as known:
            if name in known:
                raise TectonValidationError(f"there is a key named {name!r}; revoke it first, or choose another name")
            key = f"{_PREFIX}.{name}.{secrets.token_urlsafe(32)}"
            salt = secrets.token_hex(16)
            known[name] = IngestKey(name, salt, _digest(salt, key), tuple(scopes))
        return key

    def revoke(self, name: str) -> None:
        """Forget a key; whoever has it may send no more.

        Raises:
            NotFoundError: There is none of this name.
        """
        with self._changing() as known:
            if known.pop(name, None) is None:
                raise NotFoundError(kind="key", name=name, known=list(known))

    def all(self) -> list[IngestKey]:
        """Return every key of the file, in order of their names."""
        self._refresh()
        return [self._known[name] for name in sorted(self._known)]

    @property
    def is_empty(self) -> bool:
        """Whether nobody may send anything."""
        return not self.all() and not os.environ.get(KEY_VARIABLE)

    def find(self, key: str) -> IngestKey | None:
        """Return which key this is; None if it is none of ours. The time it takes tells nothing about a key."""
        self._refresh()
        parts = key.split(".")
        known = self._known.get(parts[1]) if len(parts) == 3 else None
        salt, digest = (known.salt, known.digest) if known else ("", "")
        if hmac.compare_digest(_digest(salt, key), digest) and known is not None:
            return known
        given = os.environ.get(KEY_VARIABLE, "")
        is_given = len(given) >= _SHORTEST and hmac.compare_digest(_digest("", key), _digest("", given))
        return IngestKey(KEY_VARIABLE, "", "", (EVERYTHING,)) if is_given else None

    def _refresh(self) -> None:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            self._known, self._read_at = {}, None
            return
        changed = (found.st_mtime_ns, found.st_ino)
        if changed != self._read_at:
            entries = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = {entry["name"]: IngestKey(**{**entry, "scopes": tuple(entry["scopes"])}) for entry in entries}
            self._read_at = changed

    @contextmanager
    def _changing(self) -> Iterator[dict[str, IngestKey]]:
        """Give the keys to be changed, and put the changed ones in place of the file at once."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            known = {key.name: key for key in self.all()}
            yield known
            new = f"{self._path}.new"
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
                json.dump([asdict(key) for key in known.values()], file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._path)
        finally:
            os.close(lock)


def _digest(salt: str, key: str) -> str:
    return hashlib.sha256(f"{salt}{key}".encode(errors="surrogatepass")).hexdigest()
