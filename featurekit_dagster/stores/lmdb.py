"""The embedded online store: one LMDB environment per feature view.

`record_store.py` has what it does, `lmdb_environment.py` the files.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from featurekit_dagster.stores.lmdb_environment import MAP_BYTES, LmdbEnvironment, environment_at, release
from featurekit_dagster.stores.record_store import RecordStore


class LmdbOnlineStore(RecordStore):
    """Online store in local files, shared by the processes of one host (see `OnlineStore`).

    Args:
        root: Directory; a view lies in `<root>/<workspace>/<view>/`.
        map_bytes: Map size to begin with; it doubles when it is full.
    """

    def __init__(self, root: str | Path, *, map_bytes: int = MAP_BYTES) -> None:
        super().__init__()
        self._root, self._map_bytes = Path(root), map_bytes

    def _open(self, workspace: str, view: str) -> LmdbEnvironment:
        return environment_at(self._root / _folder(workspace) / _folder(view), self._map_bytes)

    def _release(self, environment: LmdbEnvironment) -> None:
        release(environment)


def _folder(name: str) -> str:
    """Return a name as one safe path component."""
    quoted = quote(name, safe=" ")
    return "%2E" + quoted[1:] if quoted.startswith(".") else quoted
