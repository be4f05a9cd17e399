"""A deletion whose process is killed again and again: whole partitions, hidden keys, and done in the end."""

from __future__ import annotations

import random
from pathlib import Path

import polars as pl
import pytest
from deltalake import DeltaTable

from featurekit_dagster import Workspace
from featurekit_dagster.execution.deletion_request import folder_of
from tests.conftest import SOAK
from tests.support import killed_deletion
from tests.support.forked import run_forked
from tests.support.killed_deletion import DAYS, DELETED, END, deletions, go_on, opened
from tests.support.visits import day, materialize, visit, write_visits

KILLS = 50 if SOAK else 8
ROUND = 8
IN_THE_REQUEST = 2
"""So many kills of a round are in the call that asks for the deletion."""

USERS = range(1, 31)


def answers(workspace: Workspace) -> dict[int, tuple[object, object]]:
    """Return what each user has online and offline."""
    handle = workspace.get_feature_view("totals")
    spine = pl.DataFrame({"user": USERS, "at": [END] * len(USERS)})
    offline = handle.get_features_for_events(spine).to_arrow()["totals__visits_3d"].to_pylist()
    online = [handle.get_online_features({"user": user}).to_dict()["visits_3d"] for user in USERS]
    return dict(zip(USERS, zip(online, offline, strict=True), strict=True))


def check_table(workspace: Workspace, rows_of_a_day: int) -> int:
    """Return how many partitions are without the deleted users; each of them has all or none of their rows."""
    stored = DeltaTable(workspace.stores.offline.location("totals")).to_pyarrow_table()  # type: ignore[attr-defined]
    found = (
        pl.DataFrame(stored).group_by("time_partition").agg(rows=pl.len(), deleted=pl.col("user").is_in(DELETED).sum())
    )
    left = rows_of_a_day // len(USERS) * len(DELETED)
    assert len(found) == DAYS
    assert set(found["deleted"]) <= {0, left}
    assert (found["rows"] - found["deleted"] == rows_of_a_day - left).all()
    return found["deleted"].to_list().count(0)


def prepared(root: Path) -> dict[int, tuple[object, object]]:
    """Materialize some days, and return the answers."""
    root.mkdir()
    write_visits(
        root,
        [
            visit(user, day(1 + number) + hour * 3 * (END - day(5)) / 24, 1.0, user)
            for number in range(DAYS)
            for user in USERS
            for hour in range(2)
        ],
    )
    workspace = opened(root)
    materialize(workspace, "totals")
    before = answers(workspace)
    assert all(None not in found for found in before.values())
    workspace.stores.online.close()
    return before


def check(root: Path, turn: int, before: dict[int, tuple[object, object]]) -> int:
    """Check all that holds at any time; return how many partitions are done."""
    workspace = opened(root, turn)
    found, asked = answers(workspace), bool(deletions(workspace))
    assert {user: found[user] for user in USERS if user not in DELETED} == {
        user: before[user] for user in USERS if user not in DELETED
    }
    if asked and workspace.stores.tombstones.load("totals") is not None:
        assert all(found[user][1] is None for user in DELETED)
    if turn > IN_THE_REQUEST:
        assert all(found[user][0] is None for user in DELETED)
    done = check_table(workspace, 2 * len(USERS))
    workspace.stores.online.close()
    return done


@pytest.mark.slow
def test_deletion_killed_at_any_moment_is_gone_on_with(tmp_path: Path) -> None:
    chance, kills, number = random.Random(7), 0, 0
    while kills < KILLS:
        number += 1
        root = tmp_path / str(number)
        before, done = prepared(root), 0
        for turn in range(1, ROUND + 1):
            # at first nothing is asked for yet, then it is, and from then on the job is killed somewhere in the middle
            steps = {1: 1, 2: chance.randint(2, 4)}.get(turn, chance.randint(1, 3))
            seconds = 0.0 if turn <= IN_THE_REQUEST else chance.random() / 10
            ended = run_forked(root, killed_deletion.killed, root, turn, steps, seconds)
            is_done = [job.state for job in deletions(opened(root, turn))] == ["SUCCESS"]
            # nothing to be killed in may have been left
            assert ended.code in ((-9, 0) if is_done else (-9,)), ended.said
            kills += ended.code == -9
            now = check(root, turn, before)
            assert now >= done
            done = now
            if is_done:
                break
        workspace = opened(root, ROUND + 1)
        if deletions(workspace)[0].state != "SUCCESS":
            go_on(workspace)
        assert check(root, ROUND + 1, before) == DAYS
        workspace = opened(root, ROUND + 2)
        assert all(answers(workspace)[user] == (None, None) for user in DELETED)
        (job,) = deletions(workspace)
        assert job.state == "SUCCESS"
        assert not list(folder_of(workspace.stores).glob(f"{(job.request or {})['request']}*"))
        workspace.stores.online.close()
