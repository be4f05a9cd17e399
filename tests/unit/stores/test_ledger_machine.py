"""Random lives of queued jobs, judged by the table of states and by sets of days."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from featurekit_dagster.errors import JobStateError, OverlappingMaterialization
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import JobEvent, JobState, next_state
from featurekit_dagster.stores.ledger import Ledger
from tests.conftest import SOAK
from tests.support.clock import Clock
from tests.unit.stores.test_ledger_jobs import MINUTE, days, queue


@dataclass
class Modelled:
    """What the model knows of one job."""

    interval: Interval
    state: JobState = JobState.RUNNING
    live: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Random lives of jobs over ten days, judged by the table of states and by sets of days."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.clock = Clock(datetime(2024, 6, 1, tzinfo=UTC))
        names = count()
        place = Path(self._folder.name) / "ledger.db"
        self.ledger = Ledger(place, clock=self.clock, new_id=lambda: f"{next(names):06}")
        self.model: dict[str, Modelled] = {}
        self.covered = IntervalSet()

    def teardown(self) -> None:
        self.ledger.close()
        self._folder.cleanup()

    def in_the_way(self, interval: Interval, but: str | None = None) -> bool:
        active = (m for name, m in self.model.items() if name != but and not m.state.is_final)
        return any(m.interval.overlaps(interval) for m in active)

    def pick(self, data: st.DataObject) -> str:
        return data.draw(st.sampled_from(sorted(self.model)))

    @rule(first=st.integers(0, 9), length=st.integers(1, 4), overwrite=st.booleans())
    def trigger(self, first: int, length: int, overwrite: bool) -> None:
        interval = days(first, first + length)
        refused = self.in_the_way(interval) or (not overwrite and self.covered.overlaps(interval))
        if refused:
            with pytest.raises(OverlappingMaterialization):
                queue(self.ledger, interval, overwrite=overwrite)
            return
        (job,) = queue(self.ledger, interval, overwrite=overwrite)
        self.model[job.id] = Modelled(interval)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        name = self.pick(data)
        found = self.model[name]
        after = next_state(found.state, JobEvent.START)
        if after is None or found.live:
            with pytest.raises(JobStateError):
                self.ledger.begin(name)
            return
        self.ledger.begin(name)
        found.state, found.live = after, True

    @precondition(lambda self: self.model)
    @rule(data=st.data(), how=st.sampled_from(["succeed", "fail", "give up", "stop"]))
    def end_attempt(self, data: st.DataObject, how: str) -> None:
        name = self.pick(data)
        found = self.model[name]
        if not found.live:
            return
        event = {"succeed": JobEvent.SUCCEED, "fail": JobEvent.FAIL, "stop": JobEvent.STOP}.get(how, JobEvent.GIVE_UP)
        attempts = self.ledger.job(name).attempts_used
        if event is JobEvent.FAIL and attempts >= 10:
            event = JobEvent.GIVE_UP
        if how == "succeed":
            self.ledger.succeed(name, stats={})
            self.covered = self.covered.union([found.interval])
        elif how == "stop":
            self.ledger.stop(name, reason="told to")
        else:
            self.ledger.fail(name, reason="no", permanent=how == "give up")
        after = next_state(found.state, event)
        assert after is not None
        found.state, found.live = after, False

    @precondition(lambda self: self.model)
    @rule(data=st.data(), event=st.sampled_from([JobEvent.CANCEL, JobEvent.DRAIN]))
    def ask_to_end(self, data: st.DataObject, event: JobEvent) -> None:
        name = self.pick(data)
        found = self.model[name]
        self.ledger.cancel(name) if event is JobEvent.CANCEL else self.ledger.drain(name)
        if not found.state.is_final:
            asked = next_state(found.state, event)
            assert asked is not None
            found.state = asked if found.live else next_state(asked, JobEvent.STOP) or asked

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        name = self.pick(data)
        found = self.model[name]
        after = next_state(found.state, JobEvent.RETRY)
        if after is None:
            with pytest.raises(JobStateError):
                self.ledger.retry(name)
        elif found.state.is_final and self.in_the_way(found.interval, but=name):
            with pytest.raises(OverlappingMaterialization):
                self.ledger.retry(name)
        else:
            self.ledger.retry(name)
            found.state = after

    @rule(minutes=st.sampled_from([1, 5, 60, 1440]))
    def wait(self, minutes: int) -> None:
        self.clock.now += minutes * MINUTE

    @invariant()
    def the_ledger_is_the_model(self) -> None:
        found = {job.id: job for job in self.ledger.jobs("w")}
        assert {name: job.state for name, job in found.items()} == {n: m.state.value for n, m in self.model.items()}
        for store in ("offline", "online"):
            assert self.ledger.coverage("w", "v", store) == self.covered
        for name, job in found.items():
            under_way = [a for a in job.attempts if a.state in ("RUNNING", "CANCELLING")]
            assert len(under_way) == self.model[name].live
            assert job.next_attempt_at is None or not self.model[name].live
        assert all(job.next_attempt_at is not None for job in self.ledger.due("w"))


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(
    max_examples=2_000 if SOAK else 30, stateful_step_count=30 if SOAK else 20, deadline=None
)
