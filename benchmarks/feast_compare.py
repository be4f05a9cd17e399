"""A training set of newest values, beside Feast: CPU seconds, memory, and rows lost on the way.

Three views with other keys and ttls are joined to one spine, from the same Parquet files. Feast runs in an environment
of its own that this script makes. The spine holds what asks for trouble: rows twice, equal keys and times, NULL keys
and times, unknown keys, no order. `feast_rows.py` says what is right.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast_rows import DAYS, START, VIEWS, Judge, Verdict, generate

FEAST = "0.67.0"
TARGET = 8.0
HOUR = timedelta(hours=1)
OURS = {"stored": "ours, offline store", "source": "ours, from source"}
THEIRS = {"duckdb": f"Feast {FEAST}, duckdb store", "dask": f"Feast {FEAST}, file store (dask)"}
# The peer that the target names has to finish; the other one is information.
PATIENCE = {"duckdb": 1_800, "dask": 300}
# A slow form is not repeated beyond this.
_ENOUGH_SECONDS = 60.0


@dataclass(frozen=True)
class Cost:
    """CPU seconds, child processes included; seconds on the clock; peak of memory above the start; DuckDB's version."""

    cpu: float
    wall: float
    peak_mb: float
    duckdb: str


def read_spine(folder: Path) -> pd.DataFrame:
    """Return the spine as a pandas frame, the only kind that both sides take; integers with NULLs stay integers."""
    table = pq.read_table(folder / "spine.parquet")
    return table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)


def make_workspace(folder: Path) -> Any:
    """Return a workspace with the three views and a service over them."""
    import featurekit_dagster as fk  # Feast's environment has nothing of ours

    types = {"user_id": fk.Int64, "shop_id": fk.String}
    entities = {key: fk.Entity(name=key, join_keys=[fk.Field(key, dtype)]) for key, dtype in types.items()}

    def declare(name: str, keys: tuple[str, ...], ttl: timedelta | None) -> Any:
        file = fk.FileConfig(uri=str(folder / f"{name}.parquet"), file_format="parquet", timestamp_field="ts")
        fields = {**{key: types[key] for key in keys}, "ts": fk.Timestamp, "amount": fk.Float64, "number": fk.Int64}

        @fk.batch_feature_view(
            name=name,
            sources=[fk.FilteredSource(fk.BatchSource(name=f"{name}_rows", batch_config=file))],
            entities=[entities[key] for key in keys],
            mode="sql",
            schema=[fk.Field(column, dtype) for column, dtype in fields.items()],
            batch_schedule=HOUR,
            ttl=ttl,
            feature_start_time=START,
            online=False,
            offline=True,
        )
        def newest(rows: str) -> str:
            return f"SELECT {', '.join(fields)} FROM {rows}"

        return newest

    views = [declare(*view) for view in VIEWS]
    service = fk.FeatureService(name="training", features=views, online_serving_enabled=False)
    return fk.Workspace("comparison", [*views, service], home=folder / "home", clock=START + DAYS * 24 * HOUR + HOUR)


def materialize(folder: Path) -> None:
    """Fill the offline store."""
    from featurekit_dagster.execution.materialize import run_tasks

    workspace = make_workspace(folder)
    for plan in workspace.plan():
        for run in plan.runs:
            list(run_tasks(workspace.repo.view(plan.view), run.tasks, workspace.stores, trigger="backfill"))


def prepared(form: str, folder: Path) -> Callable[[pd.DataFrame], pa.Table]:
    """Return the read that a form is measured by, after what is declared and registered before it."""
    if form in THEIRS:
        from peers import feast_read

        return feast_read.prepared(folder, form, VIEWS)
    service = make_workspace(folder).get_feature_service("training")
    return lambda spine: service.get_features_for_events(
        spine, "event_timestamp", from_source=form == "source"
    ).to_arrow()


def run_form(form: str, folder: Path) -> None:
    """Run one form in this process; writes its answer and its cost."""
    read, spine = prepared(form, folder), read_spine(folder)
    read(spine.head(1))  # loads modules and opens the registry or the ledger
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of resident memory (Linux only)
    before, cpu, wall = _memory_kb("VmRSS"), _cpu_seconds(), time.perf_counter()
    answer = read(spine)
    cpu, wall, peak = _cpu_seconds() - cpu, time.perf_counter() - wall, _memory_kb("VmHWM") - before
    pq.write_table(answer, folder / f"{form}.answer.parquet")
    cost = Cost(cpu, wall, peak / 1024, version("duckdb"))
    (folder / f"{form}.cost").write_text(json.dumps(asdict(cost)))


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def _memory_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def feast_python(home: Path) -> Path:
    """Return the Python of Feast's environment, which is made when it is not there."""
    folder = home / f"feast-{FEAST}"
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.exists():
        return python
    print(f"installing Feast {FEAST} into {folder}; this takes a minute or two", file=sys.stderr, flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    done = subprocess.run([*pip, f"feast[duckdb]=={FEAST}"], capture_output=True, text=True, check=False)
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        sys.exit(
            f"pip could not install feast[duckdb]=={FEAST}: {reasons[-1] if reasons else 'it gave no reason'}\n"
            "The comparison needs a package index that pip reaches; see `pip config list`, then run it again."
        )
    finished.touch()
    return python


def measured(form: str, python: Path | str, folder: Path, repeats: int) -> Cost | str:
    """Return the cost of a form, each run in a process of its own, medians; or why there is none."""
    costs: list[Cost] = []
    command = [python, __file__, "--child", form, str(folder)]
    environment = {**os.environ, "TZ": "UTC"}  # DuckDB casts times without a zone in the local one
    while len(costs) < repeats and sum(cost.wall for cost in costs) < _ENOUGH_SECONDS:
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment, timeout=PATIENCE.get(form), check=False
            )
        except subprocess.TimeoutExpired:
            return f"not finished in {PATIENCE[form]} s"
        if done.returncode:
            return f"failed: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}"
        costs.append(Cost(**json.loads((folder / f"{form}.cost").read_text())))
    cpu, wall, peak = (statistics.median(getattr(c, name) for c in costs) for name in ("cpu", "wall", "peak_mb"))
    return Cost(cpu, wall, peak, costs[0].duckdb)


def report(folder: Path, forms: Sequence[tuple[str, str, Path | str]], *, quick: bool, as_json: bool) -> bool:
    """Run, judge and print every form; return whether every answer of ours is flawless."""
    judge = Judge(folder)
    judged, filled = judge.cells()
    costs: dict[str, Cost] = {}
    verdicts: dict[str, Verdict] = {}
    say = partial(print, file=sys.stderr if as_json else sys.stdout, flush=True)
    rows = pq.read_metadata(folder / "spine.parquet").num_rows
    say(f"{rows:,} spine rows, {len(VIEWS)} views; {judged:,} cells are judged, {filled:,} of them hold a value\n")
    say(f"{'':<32} {'CPU s':>8} {'seconds':>8} {'MB':>6} {'lost':>8} {'multiplied':>11} {'differing':>10}  order")
    for form, title, python in forms:
        cost = measured(form, python, folder, 1 if quick or form == "dask" else 3)
        if isinstance(cost, str):
            if form != "dask":
                sys.exit(f"{title}: {cost}")
            say(f"{title:<32} {cost}")
            continue
        seen = judge.verdict(form)
        costs[form], verdicts[form] = cost, seen
        say(
            f"{title:<32} {cost.cpu:8.2f} {cost.wall:8.2f} {cost.peak_mb:6.0f} {seen.lost:8,} {seen.multiplied:11,} "
            f"{seen.differing:10,}  {'kept' if seen.in_order else 'changed'}"
        )
    for form in OURS:
        _print_ratio(form, costs, verdicts[form], as_json=as_json)
    if quick:
        say("\nso few rows say nothing about speed")
    return all(verdicts[form].flawless for form in OURS)


def _print_ratio(form: str, costs: Mapping[str, Cost], seen: Verdict, *, as_json: bool) -> None:
    ours, peer = costs[form], costs["duckdb"]
    if as_json:
        figures = {"ours": round(ours.cpu, 3), "peer": round(peer.cpu, 3), "ratio": round(ours.cpu / peer.cpu, 3)}
        print(json.dumps({"case": f"feast_{form}", **figures, "target": 1 / TARGET, **asdict(seen)}), flush=True)
        return
    times = peer.cpu / ours.cpu
    reached = "PASS" if times >= TARGET and seen.flawless else "MISS"
    print(f"\n{OURS[form]}: {times:.1f} times less CPU than Feast's duckdb store (target {TARGET:.0f}): {reached}")
    print(f"  {peer.peak_mb / ours.peak_mb:.1f} times less memory; DuckDB is {ours.duckdb} here, {peer.duckdb} there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per form of ours and nothing else")
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the rows: checks answers, not speed")
    home = Path(__file__).resolve().parents[1] / ".featurekit"
    parser.add_argument("--home", type=Path, default=home, help="where Feast's environment is made (%(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run_form(given.child[0], Path(given.child[1]))
        return
    python = feast_python(given.home.resolve())
    forms = [*((form, title, sys.executable) for form, title in OURS.items())]
    forms += [(form, title, python) for form, title in THEIRS.items()]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(folder, 50 if given.quick else 1)
        materialize(folder)
        if not report(folder, forms, quick=given.quick, as_json=given.json):
            sys.exit("ours lost, multiplied, mistook or reordered rows")


if __name__ == "__main__":
    main()
