from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurekit_dagster.orchestration.run import open_instance
from tests.support.push import payments_workspace

_USERS = 3


def test_dagsters_databases_are_made_once_by_whoever_opens_them_first_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    workspace, barrier = payments_workspace(tmp_path), threading.Barrier(_USERS)

    def go(_: int) -> int:
        barrier.wait()
        with open_instance(workspace) as instance:
            return instance.get_runs_count()

    with ThreadPoolExecutor(_USERS) as threads:
        assert list(threads.map(go, range(_USERS))) == [0] * _USERS
