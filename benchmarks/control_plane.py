"""What planning, a schedule's tick and the status cost at 20,000 partitions, and a ranged run over its bare events.

The history is a view of five-minute intervals over ten weeks with hundreds of jobs and some holes. Work is counted in
CPU seconds of this process, imports apart; the whole command in CPU seconds of its process, less those of a process
that only imports the project's module. A ranged run is ours with one event per interval, beside an asset that only
yields as many materializations with as much metadata, in the same instance.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from partition_events import FORMAT, QUIET, bare_asset, fill_dagster
from partition_history import FIRST, STEP, VIEW, at, fill_ledger, holes_of, make_events, make_workspace, view_of

from featurekit_dagster import Workspace
from featurekit_dagster.cli_reports import ViewStatus, status_jobs
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.due_jobs import due_runs
from featurekit_dagster.orchestration.run import failure_text, materialize_in_process, open_instance
from featurekit_dagster.planning.planner import split_tasks
from featurekit_dagster.planning.tasks import RunPlan

REPEATS = 5
BENCHMARKS = Path(__file__).resolve().parent
POSTGRES_SETTINGS = BENCHMARKS.parent / "dagster.postgres.yaml"
PROJECT = """\
from pathlib import Path

from partition_history import make_workspace

workspace = make_workspace(Path({folder!r}), {partitions})
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """CPU seconds of one case; with a peer the target is a ratio, else it is seconds."""

    case: str
    ours: float
    target: float
    peer: float | None = None

    def record(self) -> dict[str, object]:
        """Return the result as one JSON line has it."""
        ratio = None if self.peer is None else round(self.ours / self.peer, 3)
        peer = None if self.peer is None else round(self.peer, 4)
        return {"case": self.case, "ours": round(self.ours, 4), "peer": peer, "ratio": ratio, "target": self.target}


def cpu_of(work: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    started = time.process_time()
    work()
    return time.process_time() - started


def median_cpu(work: Callable[[], object], repeats: int) -> float:
    """Return the median of several calls, after a first one."""
    work()
    return statistics.median(cpu_of(work) for _ in range(repeats))


def tick(workspace: Workspace, defs: dg.Definitions, instance: dg.DagsterInstance) -> int:
    """Let the view's schedule tick; return how many runs it requests."""
    schedule = defs.resolve_schedule_def(f"materialize_{VIEW}_schedule")
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_schedule_context(instance=instance, scheduled_execution_time=workspace.now(), **given) as context:
        return len(schedule.evaluate_tick(context).run_requests or [])


def statuses(workspace: Workspace) -> list[ViewStatus]:
    """Return what `featurekit status` prints."""
    now, snapshot = workspace.now(), workspace.snapshot()
    return [ViewStatus.of(view, snapshot, status_jobs(workspace, view), now) for view in workspace.repo.views]


def planning_cases(folder: Path, partitions: int, repeats: int) -> Iterator[Result]:
    """Measure plan, status, the whole command and ticks on one long history."""
    workspace, holes = make_workspace(folder, partitions), len(holes_of(partitions))
    fill_ledger(workspace, partitions)
    (plan,) = workspace.plan()
    if (plan.partitions, len(plan.runs)) != (holes, holes):
        raise SystemExit(f"{plan.partitions} partitions in {len(plan.runs)} runs are planned instead of {holes}")
    about = f"{partitions:,} partitions"
    yield Result(case=f"plan, {about}", ours=median_cpu(workspace.plan, repeats), target=1.0)
    yield Result(case=f"status, {about}", ours=median_cpu(lambda: statuses(workspace), repeats), target=1.0)
    yield Result(
        case=f"featurekit plan, the whole command, {about}", ours=command_cpu(folder, partitions, repeats), target=2.0
    )
    defs = workspace.definitions()
    with open_instance(workspace) as instance:
        fill_dagster(workspace, instance, partitions)
        requested: list[int] = []
        first = cpu_of(lambda: requested.append(tick(workspace, defs, instance)))
        if requested != [holes]:
            raise SystemExit(f"the tick requests {requested} runs instead of {holes}")
        yield Result(case=f"tick that starts {holes} runs, {about}", ours=first, target=1.0)
        idle = median_cpu(lambda: tick(workspace, defs, instance), repeats)
        yield Result(case=f"tick that finds everything started, {about}", ours=idle, target=1.0)


def queue_cases(folder: Path, partitions: int, repeats: int) -> Iterator[Result]:
    """Measure what as many jobs as partitions cost that are planned, queued and due at one time."""
    workspace = make_workspace(folder, partitions, incremental=True)
    ledger, view = workspace.stores.ledger, view_of(workspace)
    (plan,) = workspace.plan()
    if plan.jobs != partitions:
        raise SystemExit(f"{plan.jobs} jobs are planned instead of {partitions}")
    about = f"{partitions:,} jobs at once"
    yield Result(case=f"plan, {about}", ours=median_cpu(workspace.plan, repeats), target=1.0)
    facts = {"workspace": workspace.name, "view": view.name, "online": True, "offline": True, "trigger": "schedule"}
    intervals = [task.interval for task in plan.tasks]
    yield Result(case=f"queue, {about}", ours=cpu_of(lambda: ledger.queue(intervals=intervals, **facts)), target=4.0)
    yield Result(case=f"plan while they wait, {about}", ours=median_cpu(workspace.plan, repeats), target=1.0)
    due = median_cpu(lambda: due_runs(ledger.due(workspace.name)), repeats)
    yield Result(case=f"what is due, {about}", ours=due, target=2.0)


def command_cpu(folder: Path, partitions: int, repeats: int) -> float:
    """Return the CPU seconds of `featurekit plan` beyond importing the project's module."""
    project = folder / "project"
    project.mkdir(exist_ok=True)
    (project / "features.py").write_text(PROJECT.format(folder=str(folder), partitions=partitions))
    (project / "pyproject.toml").write_text('[tool.featurekit.workspaces]\nbenchmark = "features:workspace"\n')
    command = [str(Path(sys.executable).with_name("featurekit")), "plan"]
    importing = [sys.executable, "-c", "import features"]
    return child_cpu(command, project, repeats) - child_cpu(importing, project, repeats)


def child_cpu(command: list[str], folder: Path, repeats: int) -> float:
    """Return the median of the CPU seconds of a process, after a first one."""
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{folder}"}
    environment = {name: value for name, value in environment.items() if not name.startswith("FEATUREKIT_")}
    costs = []
    for _ in range(repeats + 1):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return statistics.median(costs[1:])


def run_case(folder: Path, partitions: int, where: str) -> Result:
    """Measure one ranged run of ours beside one that only reports its partitions; per partition."""
    first = 2  # two partitions load modules and make the tables
    make_events(folder / "events.parquet", partitions + first)
    workspace = make_workspace(folder, partitions + first)
    with open_instance(workspace) as instance:
        run_bare(instance, 0, first)
        run_ours(workspace, instance, 0, first)
        bare = cpu_of(lambda: run_bare(instance, first, first + partitions))
        ours = cpu_of(lambda: run_ours(workspace, instance, first, first + partitions))
        known = instance.get_materialized_partitions(dg.AssetKey(VIEW))
    if len(known) != partitions + first:
        raise SystemExit(f"{len(known)} partitions are shown as materialized instead of {partitions + first}")
    case = f"ranged run of {partitions:,} partitions in {where}, per partition"
    return Result(case=case, ours=ours / partitions, peer=bare / partitions, target=2.0)


def run_bare(instance: dg.DagsterInstance, first: int, end: int) -> None:
    keys = [at(number).strftime(FORMAT) for number in range(first, end)]
    tags = {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
    asset = bare_asset("bare", [at(number).strftime(FORMAT) for number in range(end)][first:])
    dg.materialize([asset], instance=instance, tags=tags, run_config=QUIET)


def run_ours(workspace: Workspace, instance: dg.DagsterInstance, first: int, end: int) -> None:
    interval, view = Interval(FIRST + first * STEP, FIRST + end * STEP), view_of(workspace)
    run = RunPlan(view=VIEW, interval=interval, tasks=split_tasks(view, interval, online=True, offline=True))
    result = materialize_in_process(workspace, run, instance)
    if not result.success:
        raise SystemExit(failure_text(result))


def groups(given: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], Iterable[Result]]]]:
    """Yield the groups of cases by name."""
    repeats = 1 if given.quick else REPEATS
    partitions, run_partitions = (2_000, 20) if given.quick else (given.partitions, given.run_partitions)
    where = "SQLite" if given.postgres is None else "PostgreSQL"
    yield "history", lambda folder: planning_cases(folder, partitions, repeats)
    yield "queue", lambda folder: queue_cases(folder, partitions, repeats)
    yield "run", lambda folder: [run_case(folder, run_partitions, where)]


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    parser.add_argument("--case", choices=("history", "queue", "run"), help="only this group of cases")
    parser.add_argument("--partitions", type=int, default=20_000, help="of the history (default 20,000)")
    parser.add_argument("--run-partitions", type=int, default=500, help="of the ranged run (default 500)")
    parser.add_argument("--postgres", metavar="URL", help="where Dagster keeps the run: postgresql+psycopg2://...")
    given = parser.parse_args()
    os.environ.pop("DAGSTER_HOME", None)
    for name, measure in groups(given):
        if given.case not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            if name == "run" and given.postgres is not None:
                use_postgres(folder, given.postgres)
            for result in measure(folder):
                show(result, as_json=given.json)


def use_postgres(folder: Path, url: str) -> None:
    """Let the instance that is opened next keep its events in PostgreSQL."""
    home = folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(POSTGRES_SETTINGS.read_text(encoding="utf-8"), encoding="utf-8")
    os.environ.update(DAGSTER_HOME=str(home), DAGSTER_POSTGRES_URL=url)


def show(result: Result, *, as_json: bool) -> None:
    """Print one result."""
    if as_json:
        print(json.dumps(result.record()), flush=True)
        return
    beside = "" if result.peer is None else f" beside {result.peer:.4f}, {result.ours / result.peer:.2f} of it"
    unit = " CPU s" if result.peer is None else ""
    print(f"{result.case}: {result.ours:.4f} CPU s{beside} (target {result.target:g}{unit})", flush=True)


if __name__ == "__main__":
    main()
