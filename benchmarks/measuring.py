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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Form = Callable[[Path], pa.Table]
TOLERANCE = 1e-9
# A slow form is not repeated beyond this, so that a whole run stays within minutes.
_ENOUGH_SECONDS = 10.0
# A peer that needs longer is recorded as such.
_MOST_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class Case:
    """One line of output.

    Args:
        name: What is measured.
        prepare: Writes the input into a folder; given whether small sizes are wanted.
        ours: Our form.
        peers: The other forms by name; the best one counts. Without any, only our cost is shown.
        target: Largest ratio of ours to the peer, in CPU seconds; None where the peer computes something else.
        against: The peer that the target names; None for the best one.
        most_mb: Largest peak of memory that is wanted, above that of the start.
        tolerance: By how much floats may differ, relative and absolute.
        is_estimate: Whether the forms estimate in their own ways, so that only the averages of their columns are
            compared, to a twentieth.
    """

    name: str
    prepare: Callable[[Path, bool], None]
    ours: Form
    peers: Mapping[str, Form] = field(default_factory=dict)
    target: float | None = None
    against: str | None = None
    most_mb: float | None = None
    tolerance: float = TOLERANCE
    is_estimate: bool = False

    def form(self, name: str) -> Form:
        """Return one of the forms by its name."""
        return self.ours if name == "ours" else self.peers[name]


@dataclass(frozen=True)
class Cost:
    """CPU seconds of all threads, seconds on the clock, and the peak of resident memory above the start."""

    cpu: float
    wall: float
    peak_mb: float


@dataclass(frozen=True)
class Growth:
    """How our cost grows with one size.

    Args:
        name: What grows.
        cases: Size of each case by its name.
    """

    name: str
    cases: Mapping[str, float]


def run(
    description: str, script: str, cases: Sequence[Case], *, full: Sequence[Case] = (), growth: Sequence[Growth] = ()
) -> None:
    """Parse the command line and run the cases; exits with 1 when answers differ.

    Args:
        description: Of the script.
        script: Its path.
        cases: What is measured.
        full: What is measured as well where `--full` is given.
        growth: What is fitted to the measured cases.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    parser.add_argument("--case", help="only cases whose name contains this")
    if full:
        parser.add_argument("--full", action="store_true", help="the large grid too, which takes hours")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        _child([*cases, *full], *options.child)
        return
    found: dict[str, Cost] = {}
    for case in [*cases, *(full if full and options.full else ())]:
        if options.case is None or options.case in case.name:
            found[case.name] = _report(case, script, quick=options.quick, as_json=options.json)
    for fit in growth:
        if all(name in found for name in fit.cases):
            _show_growth(fit, found, as_json=options.json)


def _show_growth(fit: Growth, costs: Mapping[str, Cost], *, as_json: bool) -> None:
    """Print the exponent of the power law through the costs."""
    sizes, seconds = list(fit.cases.values()), [costs[name].cpu for name in fit.cases]
    exponent = float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
    if as_json:
        print(json.dumps({"growth": fit.name, "exponent": round(exponent, 3)}), flush=True)
        return
    steps = ", ".join(f"{size:,}: {cpu:.3f}" for size, cpu in zip(sizes, seconds, strict=True))
    print(f"\ngrowth in {fit.name}: CPU seconds ~ n ** {exponent:.2f} ({steps})", flush=True)


def _report(case: Case, script: str, *, quick: bool, as_json: bool) -> Cost:
    """Compare and measure the forms of a case, print what they cost, and return our cost."""
    with tempfile.TemporaryDirectory() as folder:
        case.prepare(Path(folder), quick)
        costs: dict[str, Cost | None] = {}
        for name in ("ours", *case.peers):
            try:
                first = _start(script, case.name, name, folder, 0) if case.peers else None
                if first is not None:
                    _compare(case, Path(folder), name)
                is_slow = first is not None and first.wall > _ENOUGH_SECONDS
                costs[name] = first if is_slow else _start(script, case.name, name, folder, 1 if quick else 3)
            except subprocess.TimeoutExpired:
                costs[name] = None
    ours = costs["ours"]
    if ours is None:
        sys.exit(f"{case.name}: ours took over {_MOST_SECONDS:.0f} s")
    done = {name: cost for name, cost in costs.items() if cost is not None and name != "ours"}
    best = case.against or min(done, key=lambda name: done[name].cpu, default=None)
    peer = done[best].cpu if best in done else _MOST_SECONDS if case.peers else None
    ratio = None if peer is None else ours.cpu / peer
    if as_json:
        line = {"case": case.name, "ours": round(ours.cpu, 3), "peer": peer and round(peer, 3),
                "ratio": ratio and round(ratio, 3), "target": case.target, "peak_mb": round(ours.peak_mb)}  # fmt: skip
        print(json.dumps(line), flush=True)
        return ours
    print(f"\n{case.name}: {_verdict(case, ratio, best, ours)}")
    for name, cost in costs.items():
        told = (
            "more than 300 s" if cost is None else f"{cost.cpu:8.3f} CPU s  {cost.wall:8.3f} s  {cost.peak_mb:8.0f} MB"
        )
        print(f"  {name:<28} {told}", flush=True)
    return ours


def _verdict(case: Case, ratio: float | None, best: str | None, ours: Cost) -> str:
    told = [] if ratio is None else [f"{ratio:.2f} of {best or 'a peer that took over 300 s'}"]
    told += [] if case.target is None else [f"target {case.target}"]
    told += [] if case.most_mb is None else [f"{ours.peak_mb:.0f} MB, target {case.most_mb:.0f}"]
    return "; ".join(told)


def _start(script: str, case: str, name: str, folder: str, repeats: int) -> Cost:
    """Run one form in a process of its own, so often or once for its answer, and return what it costs."""
    command = [sys.executable, script, "--child", case, name, folder, str(repeats)]
    most = None if name == "ours" else _MOST_SECONDS
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=most).stdout
    return Cost(*json.loads(printed))


def _child(cases: Sequence[Case], case_name: str, name: str, folder: str, repeats: str) -> None:
    """Run one form: once for its answer, or several times for its cost, of which the median counts."""
    form = next(case for case in cases if case.name == case_name).form(name)
    if repeats == "0":
        answers: list[pa.Table] = []
        cost = _measure(lambda place: answers.append(form(place)), Path(folder))
        pq.write_table(answers[0], Path(folder, f"{name}.answer"))
        print(json.dumps([cost.cpu, cost.wall, cost.peak_mb]))
        return
    first = _measure(form, Path(folder))
    costs: list[Cost] = [first] if first.wall > _ENOUGH_SECONDS else []
    while len(costs) < int(repeats) and sum(cost.wall for cost in costs) < _ENOUGH_SECONDS:
        costs.append(_measure(form, Path(folder)))
    # Allocators keep what the first run freed, so only that run shows how much memory the form needs.
    cpu, wall = (statistics.median(values) for values in zip(*((cost.cpu, cost.wall) for cost in costs), strict=True))
    print(json.dumps([cpu, wall, first.peak_mb]))


def _measure(form: Callable[[Path], object], folder: Path) -> Cost:
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


def _compare(case: Case, folder: Path, peer: str) -> None:
    """Stop unless two answers have the same rows: integers and NULLs exactly, floats to the case's tolerance."""
    left, right = (pq.read_table(folder / f"{name}.answer") for name in ("ours", peer))
    what = f"{case.name}: {peer}"
    if left.column_names != right.column_names or left.num_rows != right.num_rows:
        sys.exit(f"{what}: other columns or another number of rows")
    for name in left.column_names:
        one, other = left.column(name).combine_chunks(), right.column(name).combine_chunks()
        if pa.types.is_list(one.type):
            if not pc.list_value_length(one).equals(pc.list_value_length(other)):
                sys.exit(f"{what}: {name} has lists of other lengths")
            one, other = one.flatten(), other.flatten()
        if not one.is_null().equals(other.is_null()):
            sys.exit(f"{what}: {name} is NULL elsewhere")
        _compare_values(case, one.drop_null(), other.drop_null(), f"{what}: {name}")


def _compare_values(case: Case, left: pa.Array, right: pa.Array, what: str) -> None:
    one, other = (values.to_numpy(zero_copy_only=False) for values in (left, right))
    if case.is_estimate:
        if not np.isclose(one.mean(), other.mean(), rtol=0.05):
            sys.exit(f"{what} is {one.mean()} on average, not {other.mean()}")
        return
    is_float = one.dtype.kind == "f"
    same = np.isclose(one, other, rtol=case.tolerance, atol=case.tolerance) if is_float else one == other
    if not same.all():
        sys.exit(f"{what} differs in {(~same).sum():,} values")
