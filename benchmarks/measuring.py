"""Running the forms of one benchmark case side by side: answers compared first, then CPU seconds and peak memory.

Every form runs in a process of its own, so that neither its memory nor its threads are charged to another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Form = Callable[[Path], pa.Table]
TOLERANCE = 1e-9
# A slow peer is not repeated beyond this, so that a whole run stays within minutes.
_ENOUGH_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of output.

    Args:
        name: What is measured.
        prepare: Writes the input into a folder; given whether small sizes are wanted.
        ours: Our form.
        peers: The other forms by name; the best one counts.
        target: Largest ratio of ours to the peer, in CPU seconds.
        against: The peer that the target names; None for the best one.
    """

    name: str
    prepare: Callable[[Path, bool], None]
    ours: Form
    peers: Mapping[str, Form]
    target: float
    against: str | None = None

    def form(self, name: str) -> Form:
        """Return one of the forms by its name."""
        return self.ours if name == "ours" else self.peers[name]


@dataclass(frozen=True)
class Cost:
    """CPU seconds of all threads, seconds on the clock, and the peak of resident memory above the start."""

    cpu: float
    wall: float
    peak_mb: float


def run(description: str, script: str, cases: Sequence[Case]) -> None:
    """Parse the command line and run the cases; exits with 1 when answers differ."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    parser.add_argument("--case", help="only cases whose name contains this")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child(cases, *options.child)
        return
    for case in cases:
        if options.case is None or options.case in case.name:
            _report(case, script, quick=options.quick, as_json=options.json)


def _report(case: Case, script: str, *, quick: bool, as_json: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        case.prepare(Path(folder), quick)
        names = ["ours", *case.peers]
        for name in names:
            _start(script, case.name, name, folder, 0)
            _compare(Path(folder, "ours.answer"), Path(folder, f"{name}.answer"), f"{case.name}: {name}")
        costs = {name: _measured(script, case.name, name, folder, 1 if quick else 3) for name in names}
    named = case.against or min(case.peers, key=lambda name: costs[name].cpu)
    ours, peer = costs["ours"].cpu, costs[named].cpu
    line = {"case": case.name, "ours": round(ours, 3), "peer": round(peer, 3), "ratio": round(ours / peer, 3)}
    if as_json:
        print(json.dumps({**line, "target": case.target}), flush=True)
        return
    print(f"\n{case.name}: {ours / peer:.2f} of {named} (target {case.target})")
    for name, cost in costs.items():
        print(f"  {name:<28} {cost.cpu:8.3f} CPU s  {cost.wall:8.3f} s  {cost.peak_mb:8.0f} MB", flush=True)


def _start(script: str, case: str, name: str, folder: str, repeats: int) -> str:
    """Run one form in a process of its own and return what it prints."""
    command = [sys.executable, script, "--child", case, name, folder, str(repeats)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def _measured(script: str, case: str, name: str, folder: str, repeats: int) -> Cost:
    return Cost(*json.loads(_start(script, case, name, folder, repeats)))


def _child(cases: Sequence[Case], case_name: str, name: str, folder: str, repeats: str) -> None:
    """Run one form: once for its answer, or several times for its cost, of which the median counts."""
    form = next(case for case in cases if case.name == case_name).form(name)
    if repeats == "0":
        pq.write_table(form(Path(folder)), Path(folder, f"{name}.answer"))
        return
    first = _measure(form, Path(folder))
    costs: list[Cost] = [first] if first.wall > _ENOUGH_SECONDS else []
    while len(costs) < int(repeats) and sum(cost.wall for cost in costs) < _ENOUGH_SECONDS:
        costs.append(_measure(form, Path(folder)))
    # Allocators keep what the first run freed, so only that run shows how much memory the form needs.
    cpu, wall = (statistics.median(values) for values in zip(*((cost.cpu, cost.wall) for cost in costs), strict=True))
    print(json.dumps([cpu, wall, first.peak_mb]))


def _measure(form: Form, folder: Path) -> Cost:
    before, wall, cpu = _reset_peak(), time.perf_counter(), time.process_time()
    form(folder)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Cost(cpu, wall, (_status("VmHWM") - before) / 1024)


def _reset_peak() -> int:
    """Forget the peak of resident memory and return the present size in KiB (Linux only)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def _compare(ours: Path, theirs: Path, what: str) -> None:
    """Stop unless two answers have the same rows: integers and NULLs exactly, floats to a relative 1e-9."""
    left, right = pq.read_table(ours), pq.read_table(theirs)
    if left.column_names != right.column_names or left.num_rows != right.num_rows:
        sys.exit(f"{what}: other columns or another number of rows")
    for name in left.column_names:
        one, other = left.column(name), right.column(name)
        if not one.is_null().equals(other.is_null()):
            sys.exit(f"{what}: {name} is NULL elsewhere")
        one, other = one.drop_null().to_numpy(), other.drop_null().to_numpy()
        same = np.isclose(one, other, rtol=TOLERANCE, atol=TOLERANCE) if one.dtype.kind == "f" else one == other
        if not same.all():
            sys.exit(f"{what}: {name} differs in {(~same).sum():,} rows")
