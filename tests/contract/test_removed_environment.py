"""The files of an online store are removed by one process while others read and write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from featurekit_dagster.stores.lmdb_environment import LmdbEnvironment, environment_at, release

_REMOVE = """
import sys, time
from pathlib import Path
from featurekit_dagster.stores.lmdb_environment import environment_at
environment = environment_at(Path(sys.argv[1]), 1 << 20)
print("ready", flush=True)
for _ in range(150):
    environment.remove_files()
    time.sleep(0.001)
"""


def test_files_that_another_process_removes_are_empty_or_begun_anew(tmp_path: Path) -> None:
    place = tmp_path / "prod" / "seen"
    with subprocess.Popen([sys.executable, "-c", _REMOVE, place], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        other.stdout.readline()
        while other.poll() is None:
            environment = environment_at(place, 1 << 20)  # opened anew each time, as other processes would
            _read(environment)
            environment.transact(lambda transaction: transaction.put(b"key", b"value"))
            release(environment)
        assert other.returncode == 0

    environment = environment_at(place, 1 << 20)
    environment.transact(lambda transaction: transaction.put(b"key", b"value"))
    assert _read(environment) == b"value"
    environment.remove_files()
    assert _read(environment) is None
    assert not list(place.parent.iterdir())
    release(environment)


def _read(environment: LmdbEnvironment) -> bytes | None:
    transaction = environment.begin_read()
    if transaction is None:
        return None
    try:
        found: bytes | None = transaction.get(b"key")
    finally:
        environment.end_read(transaction)
    return found
