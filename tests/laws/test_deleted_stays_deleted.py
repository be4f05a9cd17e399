"""One law: whatever is done after a deletion, no store answers for a deleted key, and all others answer as before."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from featurekit_dagster import (
    Aggregation,
    FeatureView,
    PublishFeaturesConfig,
    TimeWindow,
    Workspace,
    stream_feature_view,
)
from featurekit_dagster.domain.feature_view import StreamProcessingMode
from featurekit_dagster.execution.compaction import clean_up_view, compact_view
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.deletion_request import allow, request_deletion
from featurekit_dagster.execution.maintenance import maintain_view
from featurekit_dagster.execution.publish import Published, path_of, publish, queue_range
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.intervals import Interval
from featurekit_dagster.serving.published import changes_in
from featurekit_dagster.serving.stored import StoredRows
from tests.conftest import SOAK
from tests.support.followed import NOON, Followed, pushed
from tests.support.visits import (
    DAY,
    FIELDS,
    HOUR,
    USER,
    day,
    latest,
    materialize,
    totals,
    visit,
    workspace_of,
    write_visits,
)

USERS = (1, 2, 3, None)
END = day(5)
EXAMPLES = 150 if SOAK else 4
numbers = st.integers(1, 4)
visits = st.lists(st.tuples(st.sampled_from(USERS), st.integers(0, 95), st.integers(-9, 9)), min_size=4, max_size=16)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("delete"), st.sets(st.sampled_from(USERS), min_size=1, max_size=2), st.booleans()),
        st.tuples(st.just("allow"), st.sampled_from(USERS)),
        st.tuples(st.just("overwrite"), numbers, st.sampled_from([(True, True), (True, False), (False, True)])),
        st.tuples(st.sampled_from(["finish", "maintain", "compact", "clean up", "publish", "repair"])),
    ),
    min_size=2,
    max_size=7 if SOAK else 4,
)


class World:
    """A view in both stores, what has been deleted of it, and everything that can happen to it.

    Args:
        folder: Where everything is.
        declare: Makes the view of its source.
        given_visits: Its source: user, hour and amount.
    """

    def __init__(
        self, folder: Path, declare: Callable[..., FeatureView], given_visits: list[tuple[int | None, int, int]]
    ) -> None:
        self.visits = [visit(user, day(1) + hour * HOUR, float(amount), amount) for user, hour, amount in given_visits]
        source = write_visits(folder, self.visits)
        self.view = declare(source, publish_features_config=PublishFeaturesConfig())
        self.workspace: Workspace = workspace_of(folder, [self.view], now=END)
        self.stores, self.handle = self.workspace.stores, self.workspace.get_feature_view(self.view.name)
        self.deleted: set[int | None] = set()
        self.waiting: list[str] = []
        materialize(self.workspace, self.view.name)
        self.before = self.answers()

    def answers(self) -> dict[int | None, list[Any]]:
        """Return all that reads say of each user: online, offline, from the source, and what is published."""
        name = self.view.feature_names[0]
        spine = pl.DataFrame({"user": USERS, "at": [END] * len(USERS)}, schema_overrides={"user": pl.Int64})
        online = [self.handle.get_online_features({"user": user}).to_dict()[name] for user in USERS if user is not None]
        online.append(None)  # a key of no value is asked for offline only
        columns = [online]
        for from_source in (False, True):
            frame = self.handle.get_features_for_events(spine, from_source=from_source).to_arrow()
            columns.append(frame[f"{self.view.name}__{name}"].to_pylist())
        ranged = self.handle.get_features_in_range(day(1), END).to_arrow()["user"].to_pylist()
        columns.append([user in ranged for user in USERS])
        return dict(zip(USERS, map(list, zip(*columns, strict=True)), strict=True))

    def delete(self, users: set[int | None], permanent: bool) -> None:
        job = request_deletion(self.view, self.keys(users), self.stores, permanent=permanent)
        assert job is not None
        self.waiting.append(job.id)
        self.deleted |= users

    def allow(self, user: int | None) -> None:
        self.finish()
        allow(self.view, self.keys({user}), self.stores)
        self.deleted.discard(user)
        self.overwrite(1, (True, True))

    def overwrite(self, first: int, stores: tuple[bool, bool]) -> None:
        materialize(
            self.workspace, self.view.name, day(first), END, overwrite=True, online=stores[0], offline=stores[1]
        )

    def finish(self) -> None:
        while self.waiting:
            job = self.stores.ledger.begin(self.waiting.pop(0), run_id=None)
            removal = KeyRemoval(self.view, self.stores, job, lambda: None)
            self.stores.ledger.finish_chore(job.id, stats=removal.carry_out())

    def maintain(self) -> None:
        list(maintain_view(self.view, self.stores, trigger="test", retention=timedelta(0)))

    def compact(self) -> None:
        compact_view(self.view, self.stores, holder="test", check=lambda: None, patience=timedelta(0))

    def clean_up(self) -> None:
        clean_up_view(self.view, self.stores, holder="test", check=lambda: None, patience=timedelta(0))

    def publish(self) -> None:
        stored = StoredRows.choose(self.view, self.stores, from_source=False)
        job = queue_range(self.view, self.stores, Interval(day(1), END), trigger="test")
        job = self.stores.ledger.begin(job.id, run_id=None)

        def changes(span: Interval, is_continued: bool) -> pa.Table:
            return changes_in(stored, span.start_us, span.end_us, is_continued=is_continued)

        stats = publish(Published.of(self.view, self.stores), job, changes, lambda: None)
        self.stores.ledger.finish_chore(job.id, stats=stats)
        path = path_of(self.view, self.stores)
        assert path is not None
        file, _, table = path.partition("#")
        with duckdb.connect(file, read_only=True) as con:
            shown = {user for (user,) in con.sql(f"SELECT DISTINCT user FROM {table}").fetchall()}
        assert not shown & self.deleted

    def repair(self) -> None:
        list(repair_coverage([self.view], self.stores))

    @staticmethod
    def keys(users: set[int | None]) -> pa.Table:
        return pa.table({"user": pa.array(sorted(users, key=str), pa.int64())})

    def check(self) -> None:
        """Compare every answer with that of before the first deletion."""
        for user, found in self.answers().items():
            note((user, found))
            if user not in self.deleted:
                assert found == self.before[user]
            else:
                assert not any(found)


def one_feature(source: Any, **changes: Any) -> FeatureView:
    """Declare a sum of hours over three days, whose answer is NULL where there is no visit."""
    sums = [Aggregation("visits", "sum", TimeWindow(3 * DAY), name="visits_3d")]
    return totals(source, aggregations=sums, **changes)


def newest(source: Any, **changes: Any) -> FeatureView:
    return latest(source, **changes)


@pytest.mark.slow
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from([one_feature, newest]), visits, steps)
def test_after_a_deletion_nothing_brings_a_key_back_and_others_are_unchanged(
    declare: Callable[..., FeatureView], given_visits: list[tuple[int | None, int, int]], steps: list[tuple[Any, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder), declare, given_visits)
        try:
            for name, *arguments in [("delete", {1}, False), *steps, ("finish",), ("overwrite", 1, (True, True))]:
                getattr(world, name.replace(" ", "_"))(*arguments)
                world.check()
        finally:
            world.stores.online.close()


def live(**changes: Any) -> FeatureView:
    """Declare a stream view of sums over two days."""
    arguments: dict[str, Any] = {
        "name": "live",
        "source": pushed(watermark_delay_threshold=timedelta(days=30)),
        "entities": [USER],
        "mode": "pandas",
        "aggregations": [Aggregation("visits", "sum", TimeWindow(2 * DAY), name="sum_2d")],
        "aggregation_interval": HOUR,
        "schema": FIELDS,
        "batch_schedule": DAY,
        "stream_processing_mode": StreamProcessingMode.TIME_INTERVAL,
        "feature_start_time": day(1),
        "online": True,
        "offline": False,
    }
    return stream_feature_view(**(arguments | changes))(lambda visits: visits)


def test_a_stream_that_brings_old_events_again_brings_no_deleted_key_back(tmp_path: Path) -> None:
    world = Followed(tmp_path, live())
    old = [visit(user, 3.1, 1.0, 5) for user in (1, 2)]
    world.send(*old)
    assert (world.online(1), world.online(2)) == ([5], [5])
    request_deletion(world.view, pa.table({"user": [1]}), world.workspace.stores, offline=False)
    assert world.online(1) == [None]
    report = world.send(*old)
    assert report.deleted == 1
    assert (world.online(1), world.online(2)) == ([None], [10])
    world.take_over()
    later: datetime = NOON + 2 * HOUR
    world.clock.now = later + HOUR
    world.send(*old, visit(1, later, 1.0, 7))
    assert world.online(1) == [7]
