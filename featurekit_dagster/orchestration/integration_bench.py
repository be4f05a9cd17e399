"""The steps that integration tests of batch and stream views share: real jobs in Dagster, and reads of both stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dagster as dg
import pyarrow as pa

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.feature_view import FeatureReference
from featurekit_dagster.engine.local import compute_stored, stored_schema
from featurekit_dagster.engine.sameness import FeatureDifference, compare_feature
from featurekit_dagster.execution.integration_report import IntegrationReport, Step
from featurekit_dagster.execution.integration_view import ViewUnderTest
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.intervals import Interval, format_time, from_us, to_us
from featurekit_dagster.orchestration.throw_away import HandClock, ThrowAwayWorkspace
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, RunPlan
from featurekit_dagster.serving.consistency import check_consistency
from featurekit_dagster.serving.historical import features_for_spine
from featurekit_dagster.serving.online import OnlineReader
from featurekit_dagster.serving.vector import PRESENT, UNKNOWN

TRIGGER = "integration_test"
MOST_KEYS = 1_000
_PARTITIONS, _SPINE_KEYS, _TIMES = 30, 50, 3
_TIME, _ROW = "_featurekit_time", "_featurekit_row"


@dataclass
class Bench:
    """A view in its throw-away workspace, and the report of its test.

    Args:
        tested: The view.
        workspace: Where it is.
        clock: What the workspace takes for the time.
        instance: Its Dagster.
        report: Gets the steps.
        rows: What the transformation makes of the events.
    """

    tested: ViewUnderTest
    workspace: ThrowAwayWorkspace
    clock: HandClock
    instance: dg.DagsterInstance
    report: IntegrationReport
    rows: pa.Table = field(default_factory=lambda: pa.table({}))

    def materialize(self, step: Step, interval: Interval, *, online: bool, offline: bool) -> None:
        """Materialize an interval by the view's own asset; all but its newest partitions by the same recipe alone.

        Windows may reach back over many thousands of partitions that are empty here.
        """
        from featurekit_dagster.orchestration.run import (  # noqa: PLC0415 - it knows all chores, this test is one
            failure_text,
            materialize_in_process,
        )

        view, stores = self.tested.view, self.workspace.stores
        edge = max(interval.start, interval.end - _PARTITIONS * view.batch_schedule)
        if edge > interval.start:
            older = split_tasks(view, Interval(interval.start, edge), online=online, offline=offline)
            for _ in run_tasks(view, older, stores, trigger=TRIGGER):
                pass
        newest = Interval(edge, interval.end)
        tasks = split_tasks(view, newest, online=online, offline=offline)
        result = materialize_in_process(
            self.workspace, RunPlan(view=view.name, interval=newest, tasks=tasks), self.instance
        )
        failure = failure_text(result)
        if failure is not None:
            step.fail(failure)
        checks = result.get_asset_check_evaluations()
        wrong = [e for e in checks if not e.passed and e.severity is dg.AssetCheckSeverity.ERROR]
        for check in wrong:
            step.fail(f"The asset check {check.check_name} failed: {check.description}")
        cells = newest.duration // view.batch_schedule
        step.counts |= {"partitions": cells, "checks": len(checks)}
        if not (failure or wrong):
            step.detail = f"{cells:,} partitions of the asset, up to {format_time(interval.end)}"

    def written(self) -> None:
        """Add the steps that look at what jobs have written."""
        self._online_step("online_write", self._look_online)
        self._offline_step("offline_write", self._look_offline)

    def _look_offline(self, step: Step) -> None:
        view, stores, interval = self.tested.view, self.workspace.stores, self.tested.interval
        parts = interval.split_on_grid(view.batch_schedule) if view.incremental_backfills else [interval]
        found = stores.read_offline(view, stored_schema(view), interval).num_rows
        wanted = sum(compute_stored(view, part).num_rows for part in parts)
        step.counts["rows"] = found
        step.detail = f"{found:,} {'tiles' if view.is_tiled else 'rows'} cover {interval}"
        if not stores.coverage(view, OFFLINE).covers(interval):
            step.fail(f"The offline store does not cover {interval}.")
        if found != wanted:
            step.fail(f"The offline store has {found:,} rows of {interval}; the view makes {wanted:,}.")

    def _look_online(self, step: Step) -> None:
        view, stores = self.tested.view, self.workspace.stores
        keys = stores.online.sample_keys(stores.online_layout(view), MOST_KEYS, 0)
        step.counts["keys"] = len(keys)
        step.detail = f"{_at_least(len(keys))} keys are stored"
        if view.inputs and not stores.provided(view, ONLINE):
            step.fail("The online store covers nothing.")
        if not keys:
            step.fail("The online store has no keys.")

    def read(self) -> None:
        """Add the steps that read features from both stores."""
        self._online_step("retrieval", self._retrieve)
        self._offline_step("training_set", self._train)
        self._online_step("online_offline", self._compare)
        self._offline_step("recomputed", self._recompute)

    def _online_step(self, name: str, take: Callable[[Step], None]) -> None:
        with self.report.taking(name) as step:
            if self.tested.view.online:
                take(step)
            else:
                step.skip("The view is not written online (online=False).")

    def _offline_step(self, name: str, take: Callable[[Step], None]) -> None:
        with self.report.taking(name) as step:
            if not self.tested.view.inputs:
                step.skip("The stream has no batch side, so the view has no history.")
            elif self.tested.view.offline:
                take(step)
            else:
                step.skip("The view is not written offline (offline=False).")

    def _retrieve(self, step: Step) -> None:
        """Read vectors online; each key that was written has a value, or one that has expired."""
        view, stores = self.tested.view, self.workspace.stores
        layout = stores.online_layout(view)
        names = [key.name for key in layout.key_fields]
        keys = [dict(zip(names, key, strict=True)) for key in stores.online.sample_keys(layout, MOST_KEYS, 0)]
        reader = OnlineReader(view.name, (FeatureReference(view=view),), stores, qualified=False)
        vectors = reader.many(keys)
        present = sum(PRESENT in vector.statuses.values() for vector in vectors)
        unknown = sum(UNKNOWN in vector.statuses.values() for vector in vectors)
        step.counts |= {"vectors": len(vectors), "present": present, "unknown": unknown}
        step.detail = f"{present:,} of {len(vectors):,} vectors have values"
        if vectors and not present:
            step.fail("No vector has a value; all have expired, or their windows are empty.")
        if unknown and not view.is_stream:
            step.fail(f"{unknown:,} vectors need intervals that are not covered online.")

    def _train(self, step: Step) -> None:
        """Read a training set; it has the spine's rows, in their order, with all its columns."""
        spine = self._spine(self._times())
        table = self._features(spine)
        names = [f"{self.tested.view.name}__{name}" for name in self.tested.view.feature_names]
        values = sum(table.num_rows - table[name].null_count for name in names)
        step.counts |= {"rows": table.num_rows, "values": values}
        step.detail = f"{table.num_rows:,} spine rows came back with {len(names)} features"
        if table.num_rows != spine.num_rows or not table[_ROW].equals(spine[_ROW]):
            step.fail("The rows of the spine did not come back as they were.")
        if spine.num_rows and not values:
            step.fail("All features are NULL.")

    def _compare(self, step: Step) -> None:
        """Compare the online answers with the offline ones, for all keys."""
        tested, mocks = self.tested, None
        if not tested.view.inputs:
            mocks = tested.tables
        found = check_consistency(
            tested.view, self.workspace.stores, sample=MOST_KEYS, mocks=mocks, history=tested.history
        )
        step.counts |= found.stats()
        step.detail = found.description
        if not found.is_consistent:
            step.fail(found.description)
        elif not found.keys:
            step.fail("There was nothing to compare.")

    def _recompute(self, step: Step) -> None:
        """Compute features again from what was known at some times, and compare them with the stored ones."""
        tested = self.tested
        if tested.view.incremental_backfills:
            step.skip("incremental_backfills=True, so features cannot be computed from the source.")
            return
        wrong: dict[str, int] = {}
        compared, times = 0, self._times()
        for time in times:
            spine = self._spine([time])
            edge = from_us(Timing.of(tested.view).edge(to_us(time)))
            known = {name: given.before(max(time, edge)) for name, given in tested.events.items()}
            stored, again = self._features(spine), self._features(spine, known)
            for each in _differences(tested, stored, again):
                compared += each.compared
                wrong[each.feature] = wrong.get(each.feature, 0) + each.total
        step.counts |= {"compared": compared, "differing": sum(wrong.values())}
        step.detail = f"{compared:,} values are what was known at {len(times)} times"
        bad = [f"{name} ({count:,})" for name, count in wrong.items() if count]
        if bad:
            step.fail(
                f"Stored features are not what was known at their time: {', '.join(bad[:5])}. Computed again without "
                "the events that came later, they are others: the transformation looks into the future, or rows "
                "depend on what else is computed with them."
            )

    def _times(self) -> list[datetime]:
        """Return some times at which features can be read: as an interval becomes visible, and between two."""
        view, interval = self.tested.view, self.tested.interval
        timing = Timing.of(view)
        ends = [cell.end for cell in interval.split_on_grid(view.batch_schedule)]
        chosen = [*ends[:: -(-len(ends) // _TIMES)], ends[-1]]
        edges = [from_us(timing.visible(to_us(end))) for end in dict.fromkeys(chosen)]
        between = [time - view.batch_schedule / 3 for time in edges[1:]]
        return sorted({*edges, *between})

    def _spine(self, times: Sequence[datetime]) -> pa.Table:
        """Return every key of the events at every time, and the number of each row."""
        view = self.tested.view
        keys = self.rows.select(view.key_names).group_by(list(view.key_names), use_threads=False).aggregate([])
        keys = keys.slice(0, _SPINE_KEYS)
        parts = [keys.append_column(_TIME, pa.array([time] * keys.num_rows, TIMESTAMP)) for time in reversed(times)]
        spine = pa.concat_tables(parts)
        return spine.append_column(_ROW, pa.array(range(spine.num_rows), pa.int64()))

    def _features(self, spine: pa.Table, known: dict[str, Any] | None = None) -> pa.Table:
        """Return the spine with the stored features, or with those that known events make."""
        view = self.tested.view if known is None else self.tested.history
        frame = features_for_spine(
            (FeatureReference(view=view),),
            self.workspace.stores,
            spine,
            _TIME,
            from_source=None if known else False,
            separator="__",
            allow_gaps=False,
            mocks=known,
        )
        return frame.to_arrow()


def _differences(tested: ViewUnderTest, one: pa.Table, other: pa.Table) -> list[FeatureDifference]:
    view = tested.view
    columns = [
        (name, f"{view.name}__{name}", default) for name, default in zip(view.feature_names, view.defaults, strict=True)
    ]
    return [compare_feature(name, one[at].to_pylist(), other[at].to_pylist(), default) for name, at, default in columns]


def _at_least(count: int) -> str:
    return f"at least {count:,}" if count >= MOST_KEYS else f"{count:,}"


def before(tested: ViewUnderTest) -> Interval | None:
    """Return the interval before that of the events, which windows reach back over; None where they reach nowhere."""
    start = tested.view.materialization_start
    return None if start is None or start >= tested.interval.start else Interval(start, tested.interval.start)


def whole_interval(tested: ViewUnderTest, end: datetime | None = None) -> Interval:
    """Return what has to be materialized up to an end: the interval of the events, and what windows reach back over."""
    earlier = before(tested)
    start = tested.interval.start if earlier is None else earlier.start
    return Interval(start, end or tested.interval.end)
