"""One attempt to follow a view's stream: the loop in a thread of its own, and what the ledger is told of it."""

from __future__ import annotations

import threading
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import JobStateError, safe_reason
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamReport
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.readers import open_reader
from featurekit_dagster.streams.sharing import ONLY_SHARE, Share

CANCELLED = "its run was cancelled in Dagster"
PAUSED = "the stream was paused"
HANDED_OVER = "its process ended"
TOLD = {
    JobState.MANUAL_CANCELLATION_REQUESTED: "it was cancelled by hand",
    JobState.DRAINING: "it was drained: newer code, or the ingest process of its source, follows the stream",
}


class StreamAttempt:
    """Follows a view's stream until it is told to end.

    Args:
        view: A stream view that is written online.
        stores: Where rows and record are kept.
        job: The ledger's job, whose attempt has begun in this process.
        share: Which of several attempts this is.
        holder: Who holds the leases.
        on_report: Told of every report, in the loop's thread.
    """

    def __init__(
        self,
        view: FeatureView,
        stores: WorkspaceStores,
        job: JobRecord,
        *,
        share: Share = ONLY_SHARE,
        holder: str = "in process",
        on_report: Callable[[StreamReport], None] | None = None,
    ) -> None:
        self.job = job
        self.report: StreamReport | None = None
        self.error: BaseException | None = None
        self.ended = threading.Event()
        self._view, self._stores, self._share, self._holder = view, stores, share, holder
        self._on_report, self._stop = on_report, threading.Event()
        self._thread = threading.Thread(target=self._follow, name=f"stream of {view.name}", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def _follow(self) -> None:
        """Be the thread."""
        source = self._view.stream_source
        try:
            if source is None:
                raise ValueError(f"{self._view.name} follows no stream")
            reader = open_reader(source, self._stores.home, workspace=self._stores.workspace)
            try:
                run_stream_loop(
                    self._view,
                    reader,
                    self._stores,
                    stop=self._stop,
                    share=self._share,
                    on_report=self._told_of,
                    holder=self._holder,
                )
            finally:
                reader.close()
        except BaseException as error:  # noqa: BLE001 - told by whoever waits for the thread
            self.error = error
        finally:
            self.ended.set()

    def _told_of(self, report: StreamReport) -> None:
        self.report = report
        if self._on_report is not None:
            self._on_report(report)

    def told(self) -> str | None:
        """Return why the attempt has to end; None while it may go on."""
        ledger = self._stores.ledger
        try:
            state = ledger.look(self.job.id)
            if state in TOLD:
                return TOLD[state]
            return PAUSED if ledger.stream_paused(self._stores.workspace, self._view.name) else None
        except JobStateError as ended:
            return str(ended)
        except OperationalError:
            return None  # the ledger was busy for long; the next look is soon

    def note(self) -> None:
        """Write down how far it is."""
        if self.report is not None:
            self._stores.ledger.report_stream(self.job.id, stats_of(self.report))

    def end(self, why: str) -> None:
        """Let the loop commit and end, and tell the ledger.

        Args:
            why: Why it was told to end; empty where it ended by itself.
        """
        self._stop.set()
        self._thread.join()
        ledger = self._stores.ledger
        try:
            self.note()
            if self.error is not None:
                ledger.fail(self.job.id, reason=safe_reason(self.error))
                return
            if why in (PAUSED, HANDED_OVER):
                ledger.drain(self.job.id)
            if why in (PAUSED, HANDED_OVER, CANCELLED, *TOLD.values()):
                ledger.stop(self.job.id, reason=why)
            else:
                ledger.fail(self.job.id, reason=why or "the loop ended by itself")
        except JobStateError:
            return  # somebody else has ended the attempt, and said why


def stats_of(report: StreamReport) -> dict[str, int]:
    """Return what the ledger remembers of a report: counts, and times in microseconds where they are known."""
    times = {"watermark_us": report.watermark, "newest_event_us": report.newest_event}
    return {
        "events": report.events,
        "late": report.late,
        "duplicates": report.duplicates,
        "superseded": report.superseded,
        "dead_letters": report.refused,
        **({"deleted": report.deleted} if report.deleted else {}),
        "lag": report.lag,
        "reported_us": to_us(report.at),
        **{name: to_us(time) for name, time in times.items() if time is not None},
        **({} if report.retention is None else {"retention_seconds": int(report.retention.total_seconds())}),
    }
