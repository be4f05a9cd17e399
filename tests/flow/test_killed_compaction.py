"""A compaction that is killed with -9 at any moment has changed no answer, and is finished by the next one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster.execution.compaction import compact_view
from featurekit_dagster.planning.online_tiles import largest_tile_us
from tests.support.killed_compaction import WINDOWS, declared
from tests.support.visits import materialize, visit, write_visits

ROUNDS = 50 if os.environ.get("FEATUREKIT_SOAK") else 3
USERS = range(1, 301)


def answers(folder: Path, windows: str) -> dict[str, Any]:
    """Return what every user is told under some windows, and with which statuses."""
    workspace = declared(folder, windows)
    found = {}
    for name in ("totals", "newest"):
        vectors = [workspace.get_feature_view(name).get_online_features({"user": user}) for user in USERS]
        found[name] = [(vector.to_dict(), vector.statuses) for vector in vectors]
    workspace.stores.online.close()
    return found


@pytest.mark.slow
def test_a_compaction_that_is_killed_has_changed_no_answer(tmp_path: Path) -> None:
    write_visits(tmp_path, [visit(user, 7 + hour / 24, float(hour)) for user in USERS for hour in range(0, 96, 3)])
    workspace = declared(tmp_path, "hours")
    for name in ("totals", "newest"):
        materialize(workspace, name)
    workspace.stores.online.close()
    before = answers(tmp_path, "days")
    moments = random.Random(7)
    for _ in range(ROUNDS):
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killed_compaction", str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0.02, 1.5))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        assert answers(tmp_path, "days")["newest"] == before["newest"]
        # windows that are whole in the tiles that there are now are told the same, and no other is told anything
        for told, wanted in zip(answers(tmp_path, "days")["totals"], before["totals"], strict=True):
            assert all(value in (None, wanted[0][name]) for name, value in told[0].items())
    for windows in WINDOWS:
        last = declared(tmp_path, windows)
        view = last.repo.view("totals")
        compact_view(view, last.stores, holder="test", check=lambda: None, patience=timedelta(0))
        assert last.stores.online_layout(view).tile_us == largest_tile_us(view)
        last.stores.online.close()
        if windows == "days":
            assert answers(tmp_path, windows) == before
