"""Whatever has happened to a view, the next tick of its schedule asks for exactly the windows that should be filled."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import dagster as dg
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from featurekit_dagster import Workspace
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.checks import UP_TO_DATE, check_view
from featurekit_dagster.orchestration.schedules import MOST_FAILURES
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.conftest import SOAK
from tests.flow.payments import day, key, keys, payments_workspace, statuses
from tests.flow.test_dagster_schedules import ranges, tick
from tests.support.clock import Clock

MOST_DAYS = 14
Days = frozenset[int]

SPANS = st.tuples(st.integers(0, MOST_DAYS - 1), st.integers(1, 5)).map(lambda span: range(span[0], span[0] + span[1]))
SOME_STORES = st.sampled_from([(OFFLINE,), (ONLINE,), (OFFLINE, ONLINE)])
HISTORIES = st.lists(
    st.one_of(
        st.tuples(st.just("materialize"), SPANS, SOME_STORES),
        st.tuples(st.just("delete coverage"), SPANS, SOME_STORES),
        st.tuples(st.sampled_from(["cancel", "fail for good", "fail once", "fail often", "queue"]), SPANS, SOME_STORES),
        st.tuples(st.just("end what waits"), st.sampled_from(["succeed", "cancel", "fail for good", "fail"])),
        st.tuples(st.just("days pass"), st.integers(1, 3)),
        st.tuples(st.just("tick")),
    ),
    min_size=3,
    max_size=40 if SOAK else 14,
)


@dataclass
class Model:
    """Days as numbers; what the view's schedule should ask for is said by `wanted` alone.

    Args:
        stores: The stores that the view writes.
        today: Days before it are complete.
    """

    stores: tuple[str, ...]
    today: int
    covered: dict[str, set[int]] = field(default_factory=dict)
    active: set[int] = field(default_factory=set)
    last_asked: dict[int, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    failures: dict[int, int] = field(default_factory=dict)
    shown: set[int] = field(default_factory=set)

    def lacking(self, number: int) -> tuple[str, ...]:
        """Return the stores in which a day is missing."""
        return tuple(store for store in self.stores if number not in self.covered[store])

    def is_left_alone(self, number: int) -> bool:
        """Tell whether a day waits for a person: the last job was cancelled or given up, or ten have failed."""
        how, stores = self.last_asked.get(number, ("", ()))
        ended_for_good = how in ("cancel", "fail for good") and any(s in self.lacking(number) for s in stores)
        return ended_for_good or self.failures.get(number, 0) >= MOST_FAILURES

    def wanted(self) -> list[tuple[str, str]]:
        """Return the windows to ask for: complete days, the same stores missing, nobody at it, nobody has to decide."""
        days = [n for n in range(self.today) if self.lacking(n) and n not in self.active and not self.is_left_alone(n)]
        # days that follow each other and lack the same stores keep the same distance to their place in the list
        runs = groupby(enumerate(days), key=lambda at: (at[1] - at[0], self.lacking(at[1])))
        found = [[number for _, number in run] for _, run in runs]
        return [(key(run[0]), key(run[-1])) for run in found]


class World:
    """One view of a real workspace with a real Dagster instance, and the model beside it."""

    def __init__(self, folder: Path, view: str, instance: dg.DagsterInstance) -> None:
        self.clock = Clock(day(2))
        self.workspace: Workspace = payments_workspace(folder, now=self.clock, days=1)
        self.view = self.workspace.repo.view(view)
        self.instance = instance
        self.ledger = self.workspace.stores.ledger
        stores = stores_of(self.view)
        self.model = Model(stores, today=2, covered={store: set() for store in stores})

    # ---- what happens ----------------------------------------------------------------------------------------------

    def happen(self, what: str, *facts: object) -> None:
        """Let one thing happen, to the workspace and to the model."""
        if what == "tick":
            self.tick()
        elif what == "days pass":
            (days,) = facts
            assert isinstance(days, int)
            self.model.today = min(self.model.today + days, MOST_DAYS)
            self.clock.now = day(self.model.today)
        elif what == "end what waits":
            for job in self.ledger.due(self.workspace.name)[:3]:
                self.end(job, str(facts[0]))
        else:
            self.ask(what, *facts)

    def ask(self, what: str, span: object, stores: object) -> None:
        """Let a person ask for days, or take days out of the coverage."""
        assert isinstance(span, range)
        assert isinstance(stores, tuple)
        days = frozenset(n for n in span if n < self.model.today)
        chosen = tuple(store for store in stores if store in self.model.stores)
        if not days or not chosen:
            return
        if what == "delete coverage":
            self.delete(days, chosen)
        elif not days & self.model.active:
            for _ in range(MOST_FAILURES if what == "fail often" else 1):
                self.one_job(what, days, chosen)

    def one_job(self, what: str, days: Days, stores: tuple[str, ...]) -> None:
        """Let a person have one job over days; it overwrites, so that only other jobs can be in its way."""
        facts = {
            "workspace": self.workspace.name,
            "view": self.view.name,
            "online": ONLINE in stores,
            "offline": OFFLINE in stores,
            "overwrite": True,
            "trigger": "manual",
        }
        span = Interval(day(min(days)), day(max(days) + 1))
        if what in ("fail once", "fail often"):
            job = self.ledger.claim(interval=span, **facts)
        else:
            (job,) = self.ledger.queue(intervals=[span], **facts)
        self.model.active |= days
        for number in days:
            self.model.last_asked[number] = ("asked", stores)
        how = {"materialize": "succeed", "fail once": "give up", "fail often": "give up"}.get(what, what)
        if how != "queue":
            self.end(job, how)

    def end(self, job: JobRecord, how: str) -> None:
        """Let a job end, or an attempt of it fail that is followed by another."""
        days, stores = days_of(job.interval), job.stores
        if how == "cancel":
            self.ledger.cancel(job.id)
        elif not job.attempts:
            self.ledger.begin(job.id)
        if how == "succeed":
            self.ledger.succeed(job.id, stats={})
            for store in stores:
                self.model.covered[store] |= days
        elif how != "cancel":
            self.ledger.fail(job.id, reason="it did not work", permanent=how == "fail for good")
        if how == "fail":
            return  # it waits for its next attempt
        self.model.active -= days
        for number in days:
            self.model.last_asked[number] = (how, stores)
            if how in ("give up", "fail for good"):
                self.model.failures[number] = self.model.failures.get(number, 0) + 1

    def delete(self, days: Days, stores: tuple[str, ...]) -> None:
        """Take days out of the coverage behind everybody's back; what Dagster shows stays."""
        gone = [Interval(day(n), day(n + 1)) for n in days]
        for store in stores:
            covered = self.workspace.stores.coverage(self.view, store)
            self.ledger.restore_coverage(self.workspace.name, self.view.name, store, covered.subtract(gone))
            self.model.covered[store] -= days

    # ---- what is judged --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let the schedule tick: it asks for the windows that the model wants, queues them, and nothing else."""
        before = {job.id for job in self.ledger.jobs(self.workspace.name)}
        wanted = self.model.wanted()
        lacking = {n: self.model.lacking(n) for n in range(self.model.today)}
        requests, _ = tick(self.workspace, self.view.name, self.instance)
        assert ranges(requests) == wanted
        made = [job for job in self.ledger.jobs(self.workspace.name) if job.id not in before]
        queued = sorted(n for job in made for n in days_of(job.interval))
        assert len(queued) == len(set(queued))
        assert queued == [n for first, last in wanted for n in range(number_of(first), number_of(last) + 1)]
        for job in made:
            assert {lacking[n] for n in days_of(job.interval)} == {job.stores}
        self.model.active |= set(queued)
        for job in made:
            for number in days_of(job.interval):
                self.model.last_asked[number] = ("asked", job.stores)
        assert ranges(tick(self.workspace, self.view.name, self.instance)[0]) == []
        self.look()

    def look(self) -> None:
        """Dagster shows what was ever covered, so the check must say what is missing."""
        self.model.shown |= {n for n in range(self.model.today) if not self.model.lacking(n)}
        found = statuses(self.workspace, self.view.name, self.instance, MOST_DAYS)
        assert {n for n, status in enumerate(found) if status == "M"} == self.model.shown
        outcomes = check_view(self.view, self.workspace.stores, self.workspace.now())
        (up_to_date,) = [outcome for outcome in outcomes if outcome.name == UP_TO_DATE]
        assert up_to_date.passed == (not any(self.model.lacking(n) for n in range(self.model.today)))


def days_of(interval: Interval) -> Days:
    """Return the numbers of an interval's days."""
    return frozenset(n for n in range(MOST_DAYS) if IntervalSet([interval]).covers(Interval(day(n), day(n + 1))))


def number_of(partition: str) -> int:
    """Return the number of a partition's day."""
    return keys(0, MOST_DAYS).index(partition)


# an example takes a second, so shrinking one would take minutes
@settings(max_examples=300 if SOAK else 10, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(view=st.sampled_from(["spending", "last_payment"]), history=HISTORIES)
def test_the_next_tick_asks_for_exactly_the_windows_that_should_be_filled(
    view: str, history: list[tuple[object, ...]]
) -> None:
    quiet = {"telemetry": {"enabled": False}}
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory() as home,
        dg.DagsterInstance.local_temp(home, overrides=quiet) as instance,
    ):
        world = World(Path(folder), view, instance)
        for what, *facts in history:
            world.happen(str(what), *facts)
        world.tick()
        world.ledger.close()
