"""`featurekit materialize`: which runs there are to do, doing them with progress, and what became of them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurekit_dagster.cli_output import count_of, print_line, short_interval
from featurekit_dagster.cli_reports import ViewOutcome
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import OverlappingMaterialization
from featurekit_dagster.execution.overwriting import overwrite_caution
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.planner import plan_view, stores_of
from featurekit_dagster.planning.tasks import ONLINE, LedgerSnapshot, RunPlan
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES

if TYPE_CHECKING:
    from rich.console import Console

    from featurekit_dagster.orchestration.run import Progress
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import JobRecord

Advance = Callable[[str, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewWork:
    """What is to be done for one view.

    Args:
        view: The feature view.
        runs: In order of time; none when there is nothing to do.
        note: What a person is told before it begins.
    """

    view: FeatureView
    runs: tuple[RunPlan, ...]
    note: str

    @property
    def partitions(self) -> int:
        """Number of batch intervals."""
        return sum(run.interval.duration // self.view.batch_schedule for run in self.runs)


def with_failed_as_missing(snapshot: LedgerSnapshot, jobs: Iterable[JobRecord]) -> LedgerSnapshot:
    """Return a snapshot in which a job that failed and waits to be tried again does not stand in the way.

    Who asks for its range here and now does not want to wait; the run carries out the job's next attempt.
    """
    waiting: dict[str, list[Interval]] = {}
    for job in jobs:
        if job.claims and job.attempts and job.next_attempt_at is not None:
            waiting.setdefault(job.view, []).append(job.interval)
    running = {view: claimed.subtract(waiting.get(view, ())) for view, claimed in snapshot.running.items()}
    return replace(snapshot, running=running)


def missing_runs(views: Sequence[FeatureView], snapshot: LedgerSnapshot, now: datetime) -> list[ViewWork]:
    """Return what the planner finds missing, with a word on what is there already."""
    work = []
    for view in views:
        plan = plan_view(view, snapshot, now)
        note = plan.reason
        if plan.runs and plan.wanted is not None:
            wanted = plan.wanted.duration // view.batch_schedule
            jobs = f"{count_of(plan.partitions, 'partition')} in {count_of(plan.jobs, 'job')}"
            done = wanted - plan.partitions
            note = jobs if done <= 0 else f"{jobs}; {done:,} of {wanted:,} partitions are covered already or running"
        work.append(ViewWork(view=view, runs=plan.runs, note=note))
    return work


def asked_runs(
    workspace: Workspace,
    views: Sequence[FeatureView],
    snapshot: LedgerSnapshot,
    start: datetime,
    end: datetime,
    *,
    overwrite: bool,
) -> list[ViewWork]:
    """Return one run per view for an interval that was asked for; nothing is started when one of them is refused.

    Raises:
        PlanError: The interval is off a view's grid, outside its time, or, without `overwrite`, overlaps what is there.
    """
    work = []
    for view in views:
        run = workspace.plan_interval(view.name, start, end, overwrite=overwrite)
        _refuse_overlap(view, run.interval, snapshot, workspace.jobs(view.name), overwrite=overwrite)
        one = ViewWork(view=view, runs=(run,), note=short_interval(run.interval))
        jobs = f"{count_of(one.partitions, 'partition')} in {count_of(len(run.tasks), 'job')}"
        replaced = ", replacing what is there" if overwrite else ""
        work.append(ViewWork(view=view, runs=(run,), note=f"{short_interval(run.interval)}, {jobs}{replaced}"))
    return work


def carry_out(workspace: Workspace, work: Sequence[ViewWork], console: Console, *, quiet: bool) -> list[ViewOutcome]:
    """Do the runs, one after another, and return what became of each view that had any.

    Args:
        workspace: Declarations bound to a lake.
        work: What is to be done.
        console: Where progress bars go.
        quiet: Whether to show none.

    Raises:
        TooManyPartitions: A view is new and has more partitions than Dagster can take; nothing is started.
    """
    todo = [each for each in work if each.runs]
    if not todo:
        return []
    workspace.check_partitions(each.view for each in todo)
    from featurekit_dagster.orchestration.run import open_instance

    outcomes = []
    with open_instance(workspace) as instance, _bars(todo, console, quiet=quiet) as advance:
        for each in todo:
            outcomes.append(_carry_out(workspace, each, instance, advance))
    return outcomes


def queue_runs(workspace: Workspace, work: Sequence[ViewWork]) -> list[JobRecord]:
    """Put the jobs of the runs into the ledger, where the daemon finds them, and return them in order.

    Raises:
        TooManyPartitions: A view is new and has more partitions than Dagster can take; nothing is queued.
    """
    workspace.check_partitions(each.view for each in work if each.runs)
    made = []
    for run in (run for each in work for run in each.runs):
        task = run.tasks[0]
        made += workspace.stores.queue(
            workspace.repo.view(run.view),
            [task.interval for task in run.tasks],
            online=task.online,
            offline=task.offline,
            overwrite=task.overwrite,
            trigger="manual",
        )
    return made


def _carry_out(workspace: Workspace, work: ViewWork, instance: Any, advance: Advance) -> ViewOutcome:
    from featurekit_dagster.orchestration.run import failure_text, materialize_in_process

    name, done, started = work.view.name, 0, time.perf_counter()
    run_ids, errors = set(), []
    for run in work.runs:

        def on_progress(progress: Progress, before: int = done) -> None:
            advance(name, before + progress.done)

        result = materialize_in_process(workspace, run, instance, on_progress)
        run_ids.add(result.run_id)
        errors += [text] if (text := failure_text(result)) else []
        done += run.interval.duration // work.view.batch_schedule
    ledger = workspace.stores.ledger
    jobs = [job for job in ledger.jobs(workspace.name, name) if any(a.run_id in run_ids for a in job.attempts)]
    outcome = ViewOutcome(
        view=name, partitions=work.partitions, jobs=tuple(reversed(jobs)), seconds=time.perf_counter() - started
    )
    # what the failed jobs say themselves need not be said twice
    return outcome if outcome.failed or not errors else outcome.with_error("; ".join(errors))


def cautions(workspace: Workspace, work: Sequence[ViewWork]) -> list[tuple[str, str]]:
    """Return what is to be said about runs that overwrite the online store: the view, and a sentence."""
    snapshot, found = workspace.snapshot(), []
    for each in work:
        for run in each.runs:
            if any(task.overwrite and task.online for task in run.tasks):
                name, covered = each.view.name, snapshot.coverage(each.view.name, ONLINE)
                caution = overwrite_caution(each.view, run.interval, covered, workspace.jobs(name))
                found += [(name, caution.removeprefix(f"{name}: "))] if caution else []
    return found


def _refuse_overlap(
    view: FeatureView, interval: Interval, snapshot: LedgerSnapshot, jobs: Sequence[JobRecord], *, overwrite: bool
) -> None:
    """Raise when an interval is being written, or was written and may not be overwritten."""
    running = snapshot.running.get(view.name, IntervalSet()).intersect([interval])
    for store in stores_of(view):
        covered = IntervalSet() if overwrite else snapshot.coverage(view.name, store).intersect([interval])
        if running or covered:
            raise OverlappingMaterialization(
                view=view.name,
                interval=interval,
                store=store,
                overlap=running or covered,
                running=bool(running),
                job_id=_holder(jobs, interval, store, running=bool(running)),
            )


def _holder(jobs: Sequence[JobRecord], interval: Interval, store: str, *, running: bool) -> str | None:
    """Return the newest job that has, or has written, a part of an interval in a store."""
    states = ACTIVE_STATES if running else (JobState.SUCCESS.value,)
    claiming = (job for job in jobs if job.claims)
    there = (job for job in claiming if job.state in states and job.interval.overlaps(interval))
    return next((job.id for job in there if running or store in job.stores), None)


@contextmanager
def _bars(work: Sequence[ViewWork], given: Console, *, quiet: bool) -> Iterator[Advance]:
    """Show one progress bar per view, on a terminal; elsewhere a line per finished view."""
    with _kept_open(given) as console, _shown(work, console, quiet=quiet) as advance:
        yield advance


@contextmanager
def _kept_open(console: Console) -> Iterator[Console]:
    """Give a console on a copy of the file descriptor: Dagster turns the original to a log file during each step."""
    from rich.console import Console

    try:
        copied = os.dup(console.file.fileno())
    except (OSError, ValueError):
        yield console  # a stream in memory stays where it is
        return
    with os.fdopen(copied, "w", encoding=console.encoding) as file:
        yield Console(file=file, width=console.width, highlight=False, markup=False, emoji=False)


@contextmanager
def _shown(work: Sequence[ViewWork], console: Console, *, quiet: bool) -> Iterator[Advance]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    total = {each.view.name: each.partitions for each in work}
    if quiet or not console.is_terminal:

        def say(view: str, done: int) -> None:
            if done == total[view] and not quiet:
                print_line(console, f"{view}: {count_of(done, 'partition')} done")

        yield say
        return
    room = console.width - max(map(len, total)) - 24
    bar = BarColumn(bar_width=max(10, min(40, room)), complete_style="cyan", finished_style="green")
    columns = (TextColumn("{task.description}"), bar, MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bars = {name: progress.add_task(name, total=count, start=False) for name, count in total.items()}

        def advance(view: str, done: int) -> None:
            progress.start_task(bars[view])
            progress.update(bars[view], completed=done)

        yield advance
