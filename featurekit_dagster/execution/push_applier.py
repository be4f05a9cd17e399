"""The applier of a push source: one process that follows the source's log for all of its views.

It is the process that holds the lease `push:<workspace>/<source>`; others only log, and wait for what it has applied.
A run of Dagster that follows a view is drained for it, and takes over again when it has ended.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sqlalchemy.exc import OperationalError

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import FeatureKitError, LeaseHeld, StreamFollowed, safe_reason
from featurekit_dagster.execution.ingest import PushSource, applied_sequence
from featurekit_dagster.execution.stream_attempt import HANDED_OVER, StreamAttempt
from featurekit_dagster.execution.stream_follower import StreamFollower, StreamReport
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.job_state import FOLLOWED, JobState
from featurekit_dagster.planning.stream_code import stream_code
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.ledger_streams import STEADY_AFTER
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.readers import open_reader
from featurekit_dagster.streams.reading import ONLY_PARTITION

LEASE_TIME = timedelta(seconds=30)
_SECONDS_BETWEEN_LOOKS, _SECONDS_BETWEEN_TRIES, _SECONDS_BETWEEN_NOTES = 1.0, 0.2, 10.0
_POLL = timedelta(milliseconds=50)

_log = logging.getLogger("featurekit.ingest")


def lease_name(stores: WorkspaceStores, source: str) -> str:
    """Return the name of the lease that the applier of a push source holds."""
    return f"push:{stores.workspace}/{source}"


class PushApplier:
    """Applies what is sent to a push source, in threads of this process, for as long as no other process does.

    Args:
        push: The source.
        stores: The workspace's stores.
        on_applied: Called, in a thread of its own, when a view has got further.
    """

    def __init__(self, push: PushSource, stores: WorkspaceStores, on_applied: Callable[[], None]) -> None:
        self._name, self._stores = push.name, stores
        loaded_us = to_us(datetime.now(UTC))
        self._views = [_Following(view, stores, on_applied, loaded_us) for view in push.views if view.online]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"applier of {push.name}", daemon=True)

    def start(self) -> None:
        """Begin, as soon as no other process applies the source's events."""
        self._thread.start()

    def stop(self) -> None:
        """Commit what was read, and leave the rest to others."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        name, holder = lease_name(self._stores, self._name), f"ingest process {os.getpid()}"
        while self._views and not self._stop.is_set():
            try:
                with self._stores.ledger.lease(name, holder, LEASE_TIME):
                    _log.info("source=%s is applied by this process", self._name)
                    self._apply()
            except (LeaseHeld, OperationalError):
                self._stop.wait(_SECONDS_BETWEEN_LOOKS)

    def _apply(self) -> None:
        """Keep the views followed until told to stop."""
        try:
            while not self._stop.is_set():
                for view in self._views:
                    self._look_at(view)
                is_waiting = any(view.waits_for_run for view in self._views)
                self._stop.wait(_SECONDS_BETWEEN_TRIES if is_waiting else _SECONDS_BETWEEN_LOOKS)
        finally:
            for view in self._views:
                view.end(HANDED_OVER)

    def _look_at(self, view: _Following) -> None:
        try:
            view.look()
        except OperationalError:
            return  # the ledger was busy for long; the next look is soon
        except Exception as error:  # noqa: BLE001 - the other views of the source go on
            view.failed(error)


@dataclass(slots=True)
class _Following:
    """Keeps one view followed.

    Args:
        view: A view of the source that is written online.
        stores: The workspace's stores.
        on_applied: Called when it has got further.
        loaded_us: When its declaration was loaded, by the real clock.
    """

    view: FeatureView
    stores: WorkspaceStores
    on_applied: Callable[[], None]
    loaded_us: int
    waits_for_run: bool = field(default=False, init=False)
    _attempt: StreamAttempt | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _began: float = field(default=0.0, init=False)
    _noted: float = field(default=0.0, init=False)
    _due: float = field(default=float("-inf"), init=False)

    def look(self) -> None:
        """Begin to follow, go on, or end, as the ledger says."""
        if self._attempt is None:
            if time.monotonic() >= self._due:
                self._begin()
            return
        if self._attempt.ended.is_set():
            self.failed(self._attempt.error)
            self.end("")
        elif why := self._attempt.told():
            _log.info("view=%s is applied by this process no longer: %s", self.view.name, why)
            self.end(why)
        elif time.monotonic() - self._noted >= _SECONDS_BETWEEN_NOTES:
            self._noted = time.monotonic()
            self._attempt.note()

    def end(self, why: str) -> None:
        """End the attempt, if there is one."""
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.end(why)

    def failed(self, error: BaseException | None) -> None:
        """Try again after a while, which grows."""
        lasted = time.monotonic() - self._began >= STEADY_AFTER.total_seconds()
        self._failures = 1 if lasted else self._failures + 1
        self._due = time.monotonic() + FOLLOWED.wait_after(self._failures).total_seconds()
        reason = "the loop ended by itself" if error is None else safe_reason(error)
        _log.error("view=%s could not be applied any further: %s", self.view.name, reason)

    def _begin(self) -> None:
        self.waits_for_run = False
        ledger, place = self.stores.ledger, (self.stores.workspace, self.view.name)
        if may_not_follow(self.view, self.stores, self.loaded_us):
            return
        try:
            job = ledger.follow_stream(
                workspace=place[0],
                view=place[1],
                generation=ledger.open_generation(*place, StoredShape.of(self.view)),
                run_id=None,
                code_version=stream_code(self.view),
            )
        except StreamFollowed as held:
            self._ask_to_end(ledger.job(held.job_id))
            return
        except FeatureKitError as refused:
            self.failed(refused)
            return
        self._began = self._noted = time.monotonic()
        holder = f"ingest process {os.getpid()}"
        self._attempt = StreamAttempt(self.view, self.stores, job, holder=holder, on_report=self._told_of)
        self._attempt.start()

    def _ask_to_end(self, job: JobRecord) -> None:
        """Drain a run of Dagster of the same code, so that its view is applied here."""
        is_run = bool(job.attempts) and job.attempts[-1].run_id is not None
        if is_run and job.code_version == stream_code(self.view):
            self.waits_for_run = True
            if job.state == JobState.RUNNING:
                self.stores.ledger.drain(job.id)

    def _told_of(self, _: StreamReport) -> None:
        self.on_applied()


def may_not_follow(view: FeatureView, stores: WorkspaceStores, loaded_us: int) -> str | None:
    """Return why this process must leave a view's stream alone; None if it may follow.

    Args:
        view: A stream view.
        stores: The workspace's stores.
        loaded_us: When its declaration was loaded, by the real clock.
    """
    ledger, place = stores.ledger, (stores.workspace, view.name)
    if ledger.stream_paused(*place) is not None:
        return "it is paused"
    newest = next(iter(ledger.stream_jobs(*place)), None)
    if newest is not None and newest.state == JobState.MANUALLY_CANCELLED:
        return "it was cancelled by hand; featurekit stream resume starts it again"
    if ledger.deploy(place[0], {f"stream {view.name}": stream_code(view)}, loaded_us):
        return "a process that was loaded later has other code of it"
    return None


def make_visible(push: PushSource, stores: WorkspaceStores, sequence: int, timeout: timedelta) -> bool | None:
    """Wait until every view that moves with each event has the log up to a number, or apply it where nobody does.

    Args:
        push: The source.
        stores: The workspace's stores.
        sequence: Number of the last event.
        timeout: How long that may take.

    Returns:
        Whether they have it; None where no view moves with each event.
    """
    if not push.moving:
        return None
    deadline = time.monotonic() + timeout.total_seconds()
    if not any(_is_followed(view, stores) for view in push.moving):
        try:
            _apply_here(push, stores, sequence, deadline)
        except LeaseHeld:
            pass  # somebody applies after all
        except FeatureKitError as error:  # the events are logged all the same, and must not be sent again
            _log.error("source=%s could not be applied: %s", push.name, safe_reason(error))
            return False
    return push.wait_until_applied(sequence, timedelta(seconds=max(deadline - time.monotonic(), 0.0)))


def _is_followed(view: FeatureView, stores: WorkspaceStores) -> bool:
    """Tell whether the ledger knows of an attempt to follow a view, in a process that may live."""
    known = stores.ledger.stream_jobs(stores.workspace, view.name)
    return any(job.attempts and job.attempts[-1].state == "RUNNING" for job in known)


def _apply_here(push: PushSource, stores: WorkspaceStores, sequence: int, deadline: float) -> None:
    """Apply the log up to a number to the views that move with each event.

    Raises:
        LeaseHeld: Another process applies it.
    """
    holder, loaded_us = f"process {os.getpid()}", to_us(datetime.now(UTC))
    with stores.ledger.lease(lease_name(stores, push.name), holder, LEASE_TIME):
        for view in push.moving:
            if not may_not_follow(view, stores, loaded_us):
                _apply_to(view, push, stores, sequence, deadline, holder)


def _apply_to(
    view: FeatureView, push: PushSource, stores: WorkspaceStores, sequence: int, deadline: float, holder: str
) -> None:
    generation = stores.ledger.open_generation(stores.workspace, view.name, StoredShape.of(view))
    name = f"stream:{stores.workspace}/{view.name}/{generation}:{ONLY_PARTITION}"
    pinned = stores.pinned(view, generation)
    assert view.stream_source is not None
    reader = open_reader(view.stream_source, stores.home, workspace=stores.workspace)
    try:
        with stores.ledger.lease(name, holder, LEASE_TIME) as lease:
            follower = StreamFollower(view, reader, pinned, {ONLY_PARTITION: lease.epoch}, stores.clock)
            follower.begin()
            while (applied_sequence(pinned, view, push.log) or 0) < sequence and time.monotonic() < deadline:
                follower.poll(_POLL)
                follower.commit()
    finally:
        reader.close()
