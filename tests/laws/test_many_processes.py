"""Three processes trigger, cancel, retry, overwrite and die at random: no window is doubled, none is lost."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from featurekit_dagster.execution.materialize import CLAIMED, COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from tests.conftest import SOAK
from tests.support.random_writers import (
    DAYS,
    HISTORY,
    ROWS,
    STORES,
    TILES,
    WorkerProcess,
    make_source,
    make_views,
    open_stores,
    span,
    stamps,
)

WORKERS = 3
ROUNDS, STEPS = (100, 30) if SOAK else (15, 12)
WAITS, DONE, CANCELLED, LOST = "waits", "done", "cancelled", "lost"
STEPS_OF_DEATH = (CLAIMED, COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE)
CHANCES = st.integers(0, 99)
NOTHING = 0
_NEVER = datetime.max.replace(tzinfo=UTC)
RECORDS = {(TILES, OFFLINE): 2, (TILES, ONLINE): 2, (ROWS, OFFLINE): 1, (ROWS, ONLINE): 1, (HISTORY, OFFLINE): 2}
Place = tuple[str, str]


@dataclass
class Job:
    """What the model knows of one job."""

    view: str
    days: range
    stores: tuple[str, ...]
    managed: bool
    replaces: bool
    state: str = WAITS
    tried: bool = False

    @property
    def places(self) -> list[Place]:
        """The stores that it writes."""
        return [(self.view, store) for store in self.stores]

    def is_in_the_way_of(self, other: Job) -> bool:
        """Tell whether two jobs want the same day of the same store."""
        return self.view == other.view and bool(set(self.days) & set(other.days) and {*self.stores} & {*other.stores})


@dataclass
class Model:
    """What is covered, which stamps each day may have in each store, and the jobs.

    `NOTHING` stands for a day without records. A day has more than one possible stamp from the death of a writer until
    it is written again.
    """

    jobs: dict[str, Job] = field(default_factory=dict)
    covered: dict[Place, set[int]] = field(default_factory=dict)
    stamps: dict[Place, dict[int, set[int]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for place in RECORDS:
            self.covered[place] = set()
            self.stamps[place] = {number: {NOTHING} for number in range(DAYS)}

    def active(self) -> dict[str, Job]:
        """Return the jobs that wait."""
        return {name: job for name, job in self.jobs.items() if job.state == WAITS}

    def is_refused(self, job: Job, but: str = "") -> bool:
        """Tell whether a job may not be asked for."""
        others = (other for name, other in self.active().items() if name != but)
        if any(other.is_in_the_way_of(job) for other in others):
            return True
        return not job.replaces and any(self.covered[place] & set(job.days) for place in job.places)

    def check_holder(self, name: str | None, refused: Job) -> None:
        """Judge which job a refusal names: none where the one that wrote the days was asked for again and gave up."""
        if name is not None:
            assert self.jobs[name].is_in_the_way_of(refused)
            return
        holders = (job for job in self.jobs.values() if job.state in (WAITS, DONE))
        assert not any(job.is_in_the_way_of(refused) for job in holders)

    def may_have_written(self, job: Job, stamp: int, stores: Iterable[str] = STORES[TILES]) -> None:
        """Let an attempt have died somewhere."""
        for view, store in job.places:
            if store in stores:
                for number in job.days:
                    self.stamps[view, store][number] |= {stamp}

    def succeeds(self, job: Job, stamp: int) -> None:
        """Let a job be done; one that writes online only what is covered offline copies it."""
        copies = job.stores == (ONLINE,) and not job.replaces and set(job.days) <= self.covered[job.view, OFFLINE]
        for view, store in job.places:
            self.covered[view, store] |= set(job.days)
            for number in job.days:
                self.stamps[view, store][number] = set(self.stamps[view, OFFLINE][number]) if copies else {stamp}
        job.state, job.tried = DONE, True

    def unsettled(self) -> list[str]:
        """Return the ended jobs whose writers died and may have left what the record does not say."""
        found = []
        for name, job in self.jobs.items():
            for place in job.places:
                days = self.stamps[place]
                if any(len(days[n]) > 1 or (days[n] != {NOTHING}) != (n in self.covered[place]) for n in job.days):
                    found.append(name)
                    break
        return found


def pick(jobs: Mapping[str, Job], chance: int) -> str | None:
    """Return the name of one of the jobs, None where there is none."""
    return list(jobs)[chance % len(jobs)] if jobs else None


@contextmanager
def worker_processes() -> Iterator[list[WorkerProcess]]:
    workers = [WorkerProcess() for _ in range(WORKERS)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.end()


def begun_by(workers: list[WorkerProcess]) -> list[tuple[str, int]]:
    """Return job and stamp of each attempt that began during the last command; nothing else may have been told."""
    told = [message for worker in workers for message in worker.told]
    assert all(message[0] == "begun" for message in told), told
    return [(name, stamp) for _, name, stamp in told]


class ManyProcesses(RuleBasedStateMachine):
    """Random lives of jobs in three processes beside the model."""

    workers: list[WorkerProcess]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.model = Model()
        self.stamp = 1

    @initialize()
    def begin(self) -> None:
        make_source(self.root)
        for worker in self.workers:
            worker.open(self.root)

    # ---- one process after another ---------------------------------------------------------------------------------

    @rule(data=st.data(), who=st.integers(0, WORKERS - 1), overwrite=st.booleans(), managed=st.booleans())
    def trigger(self, data: st.DataObject, who: int, overwrite: bool, managed: bool) -> None:
        job = self.draw_job(data, overwrite=overwrite, managed=managed)
        refused = self.model.is_refused(job)
        answer, name = self.workers[who].ask("trigger", *self.wanted(job))
        assert answer == ("refused" if refused else "accepted")
        if refused:
            self.model.check_holder(name, job)
        else:
            self.model.jobs[name] = job

    # What is drawn depends on nothing that races have decided: chances are numbers, and rules have no preconditions.

    @rule(chance=CHANCES, who=st.integers(0, WORKERS - 1))
    def cancel(self, chance: int, who: int) -> None:
        name = pick(self.model.jobs, chance)
        if name is not None:
            self.workers[who].ask("cancel", name)
            job = self.model.jobs[name]
            job.state = CANCELLED if job.state == WAITS else job.state

    @rule(chance=CHANCES, who=st.integers(0, WORKERS - 1))
    def retry(self, chance: int, who: int) -> None:
        name = pick(self.model.jobs, chance)
        if name is not None:
            self.ask_again(name, who)

    def ask_again(self, name: str, who: int) -> None:
        job = self.model.jobs[name]
        was, job.replaces = job.replaces, True
        answer = self.workers[who].ask("retry", name)
        if job.state == WAITS:
            job.replaces = was
            assert answer in ("JobStateError", "MANUAL_RETRY")
        elif self.model.is_refused(job, but=name):
            job.replaces = was
            assert answer == "OverlappingMaterialization"
        else:
            assert answer == "MANUAL_RETRY"
            # one that was never begun is still the job that was asked for
            job.state, job.managed, job.replaces = WAITS, True, was or job.tried

    @rule(who=st.integers(0, WORKERS - 1))
    def run(self, who: int) -> None:
        waiting = self.model.active()
        done = self.workers[who].ask("run", self.next_stamps())
        assert sorted(done) == sorted(waiting)
        self.finished(done, begun_by([self.workers[who]]))

    @rule(who=st.integers(0, WORKERS - 1), step=st.sampled_from(STEPS_OF_DEATH), later=st.integers(0, 1))
    def run_and_die(self, who: int, step: str, later: int) -> None:
        worker = self.workers[who]
        done = worker.ask("run", self.next_stamps(), step, later)
        begun = begun_by([worker])
        died = begun.pop() if done is None else None
        self.finished([name for name, _ in begun] if done is None else done, begun)
        if died is not None:
            self.died(*died, step)

    # ---- all at once -----------------------------------------------------------------------------------------------

    @rule(data=st.data())
    def race_triggers(self, data: st.DataObject) -> None:
        """Of what is asked for at once, what is accepted fits together, and what is refused fits no more."""
        jobs = [self.draw_job(data, overwrite=data.draw(st.booleans()), managed=True) for _ in self.workers]
        for worker, job in zip(self.workers, jobs, strict=True):
            worker.send("trigger", *self.wanted(job))
        answers = [worker.answer() for worker in self.workers]
        accepted = {n: job for (answer, n), job in zip(answers, jobs, strict=True) if answer == "accepted"}
        assert not any(self.model.is_refused(job) for job in accepted.values())
        assert not any(one.is_in_the_way_of(other) for one, other in combinations(accepted.values(), 2))
        self.model.jobs |= accepted
        for (answer, name), job in zip(answers, jobs, strict=True):
            if answer == "refused":
                assert self.model.is_refused(job)
                self.model.check_holder(name, job)

    @rule(chance=st.none() | CHANCES, killed=st.booleans(), milliseconds=st.integers(1, 400))
    def race_runs(self, chance: int | None, killed: bool, milliseconds: int) -> None:
        """Every job that waits is done once by one of them, whoever is killed, and one may be cancelled meanwhile."""
        waiting = dict(self.model.active())
        cancelled = None if chance is None else pick(waiting, chance)
        for worker in self.workers:
            worker.send("run", self.next_stamps())
        if killed:
            time.sleep(milliseconds / 1000)
            self.workers[0].kill()
        if cancelled is not None:
            self.cancel_behind_their_backs(cancelled)
        answers = [worker.answer() for worker in self.workers]
        done = [name for answer in answers if answer is not None for name in answer]
        assert len(done) == len(set(done))
        self.believe(begun_by(self.workers))
        lost = [name for name in waiting if name not in done and name != cancelled]
        assert not lost or killed

    # ---- at the end ------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        try:
            self.settle()
            self.look(exact=True)
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    def settle(self) -> None:
        """Carry out what waits, and ask again for what a writer that died may have left."""
        self.run(0)
        while unsettled := self.model.unsettled():
            self.ask_again(unsettled[0], 1)
            assert self.model.active()
            self.run(2)

    @rule()
    def look(self, exact: bool = False) -> None:
        """Judge coverage and contents."""
        stores = open_stores(self.root)
        found, records = stamps(self.root), stores.ledger.jobs("w")
        for name, view in make_views(self.root).items():
            for store in STORES[name]:
                place = (name, store)
                covered = IntervalSet(span(n, n) for n in self.model.covered[place])
                assert stores.coverage(view, store) == covered
                for number in range(-1, DAYS + 1):
                    seen = found[place].get(number, [])
                    possible = self.model.stamps[place].get(number, {NOTHING})
                    assert set(seen or [NOTHING]) <= possible
                    assert len(seen) == (RECORDS[place] if seen else 0)
                    assert not exact or bool(seen) == (number in self.model.covered[place])
            if exact and self.model.covered[name, OFFLINE]:
                assert stores.offline.coverage(name) == stores.coverage(view, OFFLINE)
        if exact:
            assert {job.id: job.state == "SUCCESS" for job in records} == {
                name: job.state == DONE for name, job in self.model.jobs.items()
            }
            assert all(a.state in ("SUCCESS", "ERROR", "CANCELLED") for job in records for a in job.attempts)
        stores.ledger.close()

    # ---- the model -------------------------------------------------------------------------------------------------

    def draw_job(self, data: st.DataObject, *, overwrite: bool, managed: bool) -> Job:
        view = data.draw(st.sampled_from([TILES, ROWS, HISTORY]))
        first = data.draw(st.integers(0, DAYS - 1))
        last = min(DAYS - 1, first + data.draw(st.integers(0, 2)))
        choices = [STORES[view], (OFFLINE,), *([(ONLINE,)] if ONLINE in STORES[view] else [])]
        return Job(view, range(first, last + 1), data.draw(st.sampled_from(choices)), managed, overwrite)

    def wanted(self, job: Job) -> tuple[object, ...]:
        return job.view, job.days[0], job.days[-1], job.stores, job.replaces, job.managed

    def next_stamps(self) -> int:
        self.stamp += 1000
        return self.stamp

    def finished(self, done: list[str], begun: list[tuple[str, int]]) -> None:
        """Take over the jobs that were done, in the order in which they were begun."""
        assert done == [name for name, _ in begun]
        for name, stamp in begun:
            self.model.succeeds(self.model.jobs[name], stamp)

    def died(self, name: str, stamp: int, step: str) -> None:
        """Let the attempt of a job have died at a step."""
        job = self.model.jobs[name]
        written = {WRITTEN_OFFLINE: (OFFLINE,), WRITTEN_ONLINE: (OFFLINE, ONLINE)}.get(step, ())
        self.model.may_have_written(job, stamp, written)
        self.lost(job)

    def lost(self, job: Job) -> None:
        job.replaces = job.tried = True
        if not job.managed:
            job.state = LOST

    def cancel_behind_their_backs(self, name: str) -> None:
        stores = open_stores(self.root)
        stores.ledger.cancel(name)
        stores.ledger.close()

    def believe(self, begun: list[tuple[str, int]]) -> None:
        """Take over what the ledger says of jobs that were raced for; their attempts may have written anything."""
        stores = open_stores(self.root)
        stores.ledger.abandon_dead("w")
        records = stores.ledger.jobs("w")
        stores.ledger.close()
        states = {record.id: record.state for record in records}
        begun_at = {record.id: record.attempts[-1].created_at for record in records if record.attempts}
        # in the order in which they were carried out: what one wrote offline another may have copied online
        for name, job in sorted(self.model.active().items(), key=lambda item: begun_at.get(item[0], _NEVER)):
            tried = [stamp for n, stamp in begun if n == name]
            if states[name] == "SUCCESS":
                self.model.succeeds(job, tried[-1])
                continue
            for stamp in tried:
                self.model.may_have_written(job, stamp)
            job.tried = job.tried or bool(tried)
            job.replaces = job.replaces or job.tried
            if states[name] == "MANUALLY_CANCELLED":
                job.state = CANCELLED
            elif states[name] == "FAILURE":
                job.state = LOST


@pytest.mark.slow
def test_whatever_three_processes_do_coverage_equals_contents_and_no_window_is_doubled_or_lost() -> None:
    with worker_processes() as workers:
        ManyProcesses.workers = workers
        run_state_machine_as_test(
            ManyProcesses,
            settings=settings(
                max_examples=ROUNDS,
                stateful_step_count=STEPS,
                deadline=None,
                # what processes do depends on their timing, so a smaller example tells nothing
                phases=[Phase.generate],
            ),
        )
