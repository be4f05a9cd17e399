"""Integration tests of feature views: the real asset, stores and stream loop, on test events, in a workspace apart.

Nothing of the user's stores is read or written; a source is read for its columns, and for its rows if that is asked
for. What is looked at is the pipeline as a whole, and laws that hold of any transformation, whatever it computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import OutputSchemaMismatch, ReadError
from featurekit_dagster.execution.integration_events import (
    EVENTS,
    InputEvents,
    generated_events,
    given_events,
    input_parameters,
    own_events,
)
from featurekit_dagster.execution.integration_report import IntegrationReport, Step, StepState
from featurekit_dagster.execution.integration_rows import (
    by_intervals,
    future_differences,
    row_difference,
    whole_rows,
)
from featurekit_dagster.execution.integration_view import ViewUnderTest, interval_of_events, view_under_test
from featurekit_dagster.intervals import Interval, format_time
from featurekit_dagster.orchestration.integration_bench import Bench, whole_interval
from featurekit_dagster.orchestration.integration_stream import stream_steps
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.orchestration.throw_away import (
    HandClock,
    ThrowAwayWorkspace,
    throw_away_folder,
    throw_away_instance,
)
from featurekit_dagster.planning.grid import last_complete_end

BATCH, STREAM = "batch", "stream"
_INTERVALS = range(3, 11)


def run_integration_test(
    workspace: BoundWorkspace,
    view_name: str,
    *,
    kind: str | None = None,
    events: Any = None,
    stream_events: Sequence[bytes] | None = None,
    from_source: bool = False,
    seed: int = 0,
    count: int = EVENTS,
) -> IntegrationReport:
    """Test a feature view end to end and return the report of its steps.

    Args:
        workspace: Where the view is declared; its stores are left alone.
        view_name: The feature view.
        kind: `batch` or `stream`; a stream view is tested as one by default, and as `batch` only its batch side.
        events: Frames by parameter of the view's function, or one frame where it has one parameter. What is not given
            is made up.
        stream_events: Records of the stream, where they look otherwise than the rows of the batch side.
        from_source: Whether the newest complete intervals of the view's own sources are taken instead.
        seed: Another one makes other events.
        count: How many are made up per parameter.

    Raises:
        NotFoundError: There is no such view.
        ReadError: The view cannot be tested so: a feature table, a batch view as a stream, unknown parameters.
        EventsNotUsable: Given events lack a column, times or rows.

    Source: Job Types, Integration Test.
    """
    view = workspace.repo.view(view_name)
    chosen = _kind(view, kind)
    if chosen == BATCH and view.is_stream and not view.inputs:
        raise ReadError(f"{view.name}: its stream has no batch side to test; test it as a stream")
    frames = _frames(view, events)
    report = IntegrationReport(view=view.name, kind=chosen)
    given = [given_events(view, name, input_parameters(view)[name], frame) for name, frame in frames.items()]
    with throw_away_folder() as folder:
        tested: ViewUnderTest | None = None
        with report.taking("source") as step:
            tested = _tested(view, given, workspace.now(), folder, from_source=from_source, seed=seed, count=count)
            _look_at_source(step, tested, report)
        if tested is not None and report.passed:
            with _bench(tested, folder, report) as bench:
                if _transformed(bench):
                    (stream_steps if chosen == STREAM else _batch_steps)(bench, *_payloads(chosen, stream_events))
    return report


def _payloads(kind: str, stream_events: Sequence[bytes] | None) -> tuple[Sequence[bytes] | None, ...]:
    return (stream_events,) if kind == STREAM else ()


def _kind(view: FeatureView, kind: str | None) -> str:
    if view.is_table:
        raise ReadError(f"{view.name}: it is a feature table, whose rows are ingested; there is no pipeline to test")
    if kind not in (None, BATCH, STREAM):
        raise ReadError(f"{view.name}: kind {kind!r} is not known; it is one of {BATCH}, {STREAM}")
    if kind == STREAM and not view.is_stream:
        raise ReadError(f"{view.name}: it is a batch feature view; test it as {BATCH}")
    return kind or (STREAM if view.is_stream else BATCH)


def _frames(view: FeatureView, events: Any) -> Mapping[str, Any]:
    """Return the given frames by parameter."""
    names = list(input_parameters(view))
    if events is None:
        return {}
    if not isinstance(events, Mapping):
        if len(names) > 1:
            raise ReadError(f"{view.name}: it has several sources; give a mapping of {', '.join(names)} to frames")
        return {names[0]: events}
    unknown = [name for name in events if name not in names]
    if unknown:
        raise ReadError(f"{view.name}: {', '.join(unknown)} is no source parameter; it has {', '.join(names)}")
    return events


def _tested(
    view: FeatureView,
    given: Sequence[InputEvents],
    now: datetime,
    folder: Path,
    *,
    from_source: bool,
    seed: int,
    count: int,
) -> ViewUnderTest:
    """Return the view with test events for sources."""
    interval = interval_of_events(view, given) or _newest_interval(view, now)
    found = {each.parameter: each for each in given}
    if from_source and view.inputs:
        found = {**{each.parameter: each for each in own_events(view, interval)}, **found}
    for name, used in input_parameters(view).items():
        if name not in found:
            found[name] = generated_events(view, name, used, interval, seed=seed, count=count)
    return view_under_test(view, list(found.values()), interval, folder)


def _newest_interval(view: FeatureView, now: datetime) -> Interval:
    """Return some of the newest complete batch intervals: as many as the widest window has, within bounds."""
    wanted = -(-view.reach // view.batch_schedule) + 1
    number = min(max(wanted, _INTERVALS.start), _INTERVALS.stop - 1)
    end = last_complete_end(view, now)
    return Interval(end - number * view.batch_schedule, end)


def _look_at_source(step: Step, tested: ViewUnderTest, report: IntegrationReport) -> None:
    report.events.update({name: given.origin for name, given in tested.events.items()})
    told = [f"{given.rows.num_rows:,} rows of {name} ({given.origin})" for name, given in tested.events.items()]
    step.counts["rows"] = sum(given.rows.num_rows for given in tested.events.values())
    step.detail = f"{', '.join(told)} in {tested.interval}"
    empty = [name for name, given in tested.events.items() if not given.rows.num_rows]
    if empty:
        step.fail(f"{', '.join(empty)} has no rows in {tested.interval}.")


@contextmanager
def _bench(tested: ViewUnderTest, folder: Path, report: IntegrationReport) -> Iterator[Bench]:
    clock = HandClock(tested.interval.end + tested.history.data_delay)
    workspace = ThrowAwayWorkspace(tested.view, folder, clock, datetime.now(UTC))
    with throw_away_instance(folder) as instance:
        try:
            yield Bench(tested, workspace, clock, instance, report)
        finally:
            workspace.stores.online.close()


def _transformed(bench: Bench) -> bool:
    """Add the steps about the transformation alone, and tell whether the others make sense."""
    tested, report, wrong_columns = bench.tested, bench.report, None
    with report.taking("transformation") as step:
        try:
            bench.rows = whole_rows(tested)
        except OutputSchemaMismatch as mismatch:
            wrong_columns = mismatch
            step.detail = "it ran"
        else:
            step.counts["rows"] = bench.rows.num_rows
            step.detail = f"{bench.rows.num_rows:,} rows"
            if not bench.rows.num_rows:
                step.fail(
                    f"No event became a row with a {tested.view.timestamp_field} in {tested.interval}; events that the "
                    "function keeps can be given, or taken from the source."
                )
    if report.failed:
        return False
    with report.taking("schema") as step:
        if wrong_columns is not None:
            raise wrong_columns
        step.detail = f"{len(tested.view.columns)} columns are as declared"
    if report.passed:
        _laws(bench)
    return wrong_columns is None


def _laws(bench: Bench) -> None:
    """Add the steps about what must hold of any transformation."""
    tested, view = bench.tested, bench.tested.view
    with bench.report.taking("intervals") as step:
        if view.incremental_backfills:
            step.skip("incremental_backfills=True, so each interval is a query of its own in any case.")
        else:
            found = row_difference(view, bench.rows, by_intervals(tested))
            step.detail = "rows do not depend on which intervals are computed together"
            if found:
                step.fail(_interval_fault(tested, found.in_words("in one query for all", "interval by interval")))
    with bench.report.taking("future") as step:
        times = 0
        for time, found in future_differences(tested, bench.rows):
            times += 1
            if found:
                said = found.in_words("with later events", "without them")
                step.fail(
                    f"Rows before {format_time(time)} change when the events after it are taken away: {said}. The "
                    "transformation looks into the future."
                )
                break
        if step.state is StepState.PASSED:
            step.detail = f"rows before {times} times are the same without the events after them"


def _interval_fault(tested: ViewUnderTest, said: str) -> str:
    view = tested.view
    cut = {name: given.time_column for name, given in tested.events.items() if given.time_column}
    others = [f"{name} is cut by {column}" for name, column in cut.items() if column != view.timestamp_field]
    fault = f"The rows of an interval depend on what is computed with it: {said}."
    if others:
        return f"{fault} The view's time is {view.timestamp_field}, but {', '.join(others)}: is it the wrong column?"
    return f"{fault} Jobs of other lengths would store other features."


def _batch_steps(bench: Bench) -> None:
    view = bench.tested.view
    if not (view.online or view.offline):
        with bench.report.taking("materialization") as step:
            step.skip("The view writes no store (online=False, offline=False).")
        return
    with bench.report.taking("materialization") as step:
        bench.materialize(step, whole_interval(bench.tested), online=view.online, offline=view.offline)
    if step.state is not StepState.FAILED:
        bench.written()
        bench.read()
