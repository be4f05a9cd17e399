"""The steps of an integration test of a stream view: the real loop, fed through the log of a push source.

Events of Kafka, Kinesis and Redis come through that log, too, in place of the broker; everything behind the reader is
what a deployment runs. Half of the intervals are there before the stream begins, as a batch job brings them.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc

from featurekit_dagster.arrow_types import TIMESTAMP
from featurekit_dagster.domain.feature_view import StreamProcessingMode
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.execution.ingest import PushSource, applied_sequence, event_payloads, open_push_log
from featurekit_dagster.execution.integration_report import Step
from featurekit_dagster.execution.integration_rows import reasons_in_words, row_difference, stream_rows
from featurekit_dagster.execution.stream import COMMIT_EVERY, run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamReport
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.integration_bench import Bench, whole_interval
from featurekit_dagster.streams.push_log import PushLogReader, push_log_path

_PIECES, _PATIENCE_SECONDS, _NAP_SECONDS = 10, 30.0, 0.002


@dataclass
class _Follower:
    """A loop in a thread of this process."""

    stop: threading.Event = field(default_factory=threading.Event)
    ready: threading.Event = field(default_factory=threading.Event)
    report: StreamReport | None = None
    error: BaseException | None = None

    def told(self, report: StreamReport) -> None:
        """Take a report of the loop."""
        self.report = report
        self.ready.set()


def stream_steps(bench: Bench, records: Sequence[bytes] | None) -> None:
    """Add the steps of a stream view.

    Args:
        bench: The view in its workspace.
        records: Records of the stream; by default the rows of the events as JSON.
    """
    (given,) = bench.tested.events.values()
    records = given.records if records is None else records
    events, begin = _events_and_begin(bench, records)
    _same_code(bench, events if records is not None else _payloads(_ordered(bench)))
    view = bench.tested.view
    if not view.online:
        with bench.report.taking("stream") as step:
            step.skip("The view is not written online (online=False), so nothing follows its stream.")
    if view.inputs:
        with bench.report.taking("bootstrap") as step:
            earlier = Interval(whole_interval(bench.tested).start, begin)
            bench.clock.time = begin
            bench.materialize(step, earlier, online=view.online, offline=view.offline)
    if view.online:
        _follow(bench, events, begin)
    if view.inputs and view.offline:
        with bench.report.taking("materialization") as step:
            bench.clock.time = bench.tested.interval.end + view.data_delay
            bench.materialize(step, Interval(begin, bench.tested.interval.end), online=False, offline=True)
    bench.clock.time = bench.tested.interval.end
    bench.written()
    bench.read()


def _ordered(bench: Bench) -> pa.Table:
    """Return the events in the order of their times."""
    (events,) = bench.tested.events.values()
    return events.rows if events.time_column is None else events.rows.sort_by(events.time_column)


def _payloads(rows: pa.Table) -> list[bytes]:
    return event_payloads(rows.to_pylist(), list)


def _events_and_begin(bench: Bench, records: Sequence[bytes] | None) -> tuple[list[bytes], datetime]:
    """Return what comes as a stream, and from when on: all of it if it is given, else the later half."""
    interval, schedule = bench.tested.interval, bench.tested.view.batch_schedule
    (events,) = bench.tested.events.values()
    if records is not None or events.time_column is None or not bench.tested.view.inputs:
        return list(records) if records is not None else _payloads(_ordered(bench)), interval.start
    begin = interval.start + interval.duration // schedule // 2 * schedule
    rows = _ordered(bench)
    return _payloads(rows.filter(pc.greater_equal(rows[events.time_column], pa.scalar(begin, TIMESTAMP)))), begin


def _same_code(bench: Bench, payloads: Sequence[bytes]) -> None:
    """Add the step that compares the rows of the stream's code with those of the batch code."""
    tested = bench.tested
    with bench.report.taking("stream_as_batch") as step:
        made = stream_rows(tested.history, payloads, tested.interval.end)
        time = tested.view.timestamp_field
        inside = pc.and_(
            pc.greater_equal(made.rows[time], pa.scalar(tested.interval.start, TIMESTAMP)),
            pc.less(made.rows[time], pa.scalar(tested.interval.end, TIMESTAMP)),
        )
        found = row_difference(tested.view, made.rows.filter(inside), bench.rows)
        step.detail = f"{len(payloads):,} events make the same rows, a few at a time and all at once"
        if made.refused:
            step.fail(f"The stream refuses events that the batch side takes: {reasons_in_words(made.refused)}.")
        elif found:
            step.fail(
                "The code of the stream and the batch code make other rows of the same events: "
                f"{found.in_words('in the stream', 'in the batch')}."
            )


def _follow(bench: Bench, payloads: Sequence[bytes], begin: datetime) -> None:
    """Add the steps of the loop: events are logged piece by piece, and each is waited for."""
    seconds: list[float] = []
    bench.clock.time = begin
    with bench.report.taking("stream") as step:
        with _following(bench) as follower:
            bench.clock.time = bench.tested.interval.end
            size = max(-(-len(payloads) // _PIECES), 1)
            for at in range(0, len(payloads), size):
                seconds.append(_seconds_until_online(bench, payloads[at : at + size], follower))
        _tell(step, follower)
    with bench.report.taking("freshness") as step:
        _freshness(bench, step, seconds)


@contextmanager
def _following(bench: Bench) -> Iterator[_Follower]:
    """Run the loop in a thread until the end of the block.

    Raises:
        FeatureKitError: The loop has failed.
    """
    view, stores, follower = bench.tested.view, bench.workspace.stores, _Follower()
    assert view.stream_source is not None
    reader = PushLogReader(push_log_path(stores.home, stores.workspace, view.stream_source.name))

    def follow() -> None:
        try:
            run_stream_loop(
                view, reader, stores, stop=follower.stop, on_report=follower.told, commit_every=timedelta(0)
            )
        except BaseException as error:  # noqa: BLE001 - it is raised at the end of the block
            follower.error = error
        finally:
            reader.close()
            follower.ready.set()

    thread = threading.Thread(target=follow, name="integration test", daemon=True)
    thread.start()
    follower.ready.wait()
    try:
        if follower.error is None:
            yield follower
    finally:
        follower.stop.set()
        thread.join()
    if follower.error is not None:
        raise follower.error


def _seconds_until_online(bench: Bench, payloads: Sequence[bytes], follower: _Follower) -> float:
    """Log events and wait until a read sees them; return how long that took from before the first was logged."""
    view, stores = bench.tested.view, bench.workspace.stores
    assert view.stream_source is not None
    began = time.perf_counter()
    sequence, log = _logged(bench, payloads), open_push_log(stores, view.stream_source.name)
    while (applied_sequence(stores, view, log) or 0) < sequence and follower.error is None:
        if time.perf_counter() - began > _PATIENCE_SECONDS:
            raise TimeoutError
        time.sleep(_NAP_SECONDS)
    return time.perf_counter() - began


def _logged(bench: Bench, payloads: Sequence[bytes]) -> int:
    """Put events into the log: of a push source as its users send them."""
    source, stores = bench.tested.view.stream_source, bench.workspace.stores
    assert source is not None
    if not source.is_push or not source.schema or source.stream_config.post_processor is not None:
        return open_push_log(stores, source.name).append(payloads)
    result = PushSource(source, [bench.tested.view], stores).ingest(payloads)
    if result.sequence is None:
        first = result.refused[0]
        raise ValueError(f"{first.field} {first.rule}")
    return result.sequence


def _tell(step: Step, follower: _Follower) -> None:
    report = follower.report
    if report is None:
        return
    counts = ("events", "late", "duplicates", "superseded", "refused")
    step.counts |= {name: getattr(report, name) for name in counts}
    step.detail = f"{report.events:,} events were read, {report.duplicates:,} of them twice"
    if report.refused:
        step.fail(f"{report.refused:,} events became dead letters.")
    if report.late:
        step.fail(f"{report.late:,} events in the order of their times were dropped as late.")


def _freshness(bench: Bench, step: Step, seconds: Sequence[float]) -> None:
    """Judge how soon events were online, with the pause that the view makes between two commits."""
    view = bench.tested.view
    if not seconds:
        step.skip("No event came by the stream.")
        return
    worst, middle = max(seconds), statistics.median(seconds)
    step.counts |= {"median_ms": round(middle * 1e3), "worst_ms": round(worst * 1e3)}
    waits = view.is_tiled or view.stream_processing_mode is StreamProcessingMode.TIME_INTERVAL
    pause = COMMIT_EVERY if waits else timedelta(0)
    more = f", and up to {format_duration(pause)} between two commits" if pause else ""
    step.detail = f"online after {middle * 1e3:,.0f} ms, at most {worst * 1e3:,.0f} ms{more}"
    expected = view.expected_feature_freshness
    if expected is not None and timedelta(seconds=worst) + pause > expected:
        step.fail(f"{format_duration(expected)} are expected; events were {step.detail}.")
