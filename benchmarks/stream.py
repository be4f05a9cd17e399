"""Following a stream beside a raw loop in the same run: CPU per event, and how soon an event can be read.

Events are JSON of 200 bytes over 100,000 keys. Throughput is that of a loop that catches up, in tiles of a minute with
windows of an hour and a day, once without a function and once in SQL mode; the raw loop polls the same log, decodes,
puts one LMDB value per event's key, and commits as often. Latency is that of a view that moves with each event, at
2,000 events a second, from before an event is sent until a reader in another process sees it; `--soak` keeps that up
and watches memory. Answers are compared with those of the log. Every form runs in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from datetime import timedelta
from pathlib import Path

import msgspec
from stream_events import RawLoop, events, make_workspace
from stream_latency import latency_cases, run_child, soak

from featurekit_dagster import StreamProcessingMode, Workspace
from featurekit_dagster.execution.stream import COMMIT_EVERY, run_stream_loop
from featurekit_dagster.execution.stream_follower import StreamReport
from featurekit_dagster.streams.push_log import PushLog, PushLogReader

TARGET = 4.0
CHECKED_KEYS = 50
FEW = 200
EVENTS_PER_SECOND = 2_000
FORMS = {"ours": "no function", "sql": "SQL mode"}


def throughput(folder: Path, form: str, count: int) -> dict[str, float]:
    """Catch up with a log of so many events, and return what it cost."""
    workspace = make_workspace(folder / form, StreamProcessingMode.TIME_INTERVAL, sql=form == "sql")
    raw = RawLoop(PushLogReader(folder / "events.db"), folder / form, COMMIT_EVERY) if form == "raw" else None
    if raw is None:
        warm = make_workspace(folder / f"warm-{form}", StreamProcessingMode.TIME_INTERVAL, sql=form == "sql")
        follow(warm, folder / "few.db", FEW)  # what a loop pays once, imports above all, is not counted
    written, wall, cpu = _written(), time.perf_counter(), time.process_time()
    if raw is not None:
        raw.run(lambda: raw.events >= count)
    else:
        follow(workspace, folder / "events.db", count)
    cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "written": _written() - written}
    check(folder, form, workspace, raw)
    return cost


def follow(workspace: Workspace, log: Path, count: int) -> None:
    """Follow a log until so many events are online."""
    stop = threading.Event()

    def look(report: StreamReport) -> None:
        if report.events >= count:
            stop.set()

    every = timedelta(0) if count == FEW else COMMIT_EVERY
    run_stream_loop(
        workspace.repo.views[0], PushLogReader(log), workspace.stores, stop=stop, on_report=look, commit_every=every
    )


def _written() -> int:
    """Return the bytes that this process has handed to the disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("write_bytes"))


def check(folder: Path, form: str, workspace: Workspace, raw: RawLoop | None) -> None:
    """Compare what some keys have now with what the log says."""
    log = PushLog(folder / "events.db")
    rows = [msgspec.json.decode(payload) for payload in log.read(0, log.newest()).records]
    users = sorted({row["user_id"] for row in rows[:CHECKED_KEYS]})
    newest = max(row["ts"] for row in rows)
    for user in users:
        own = [row for row in rows if row["user_id"] == user]
        if raw is not None:
            same = raw.amount(user) == own[-1]["amount"]
        else:
            values = workspace.get_feature_view("activity").get_online_features({"user_id": user}).to_dict()
            # windows end with the newest whole minute
            amounts = [row["amount"] for row in own if row["ts"][:16] < newest[:16]]
            found = [values[f"amount_{name}_1d_1m"] for name in ("count", "sum", "max")]
            same = found == [len(amounts), *([sum(amounts), max(amounts)] if amounts else [None, None])]
        if not same:
            sys.exit(f"{form}: a key has another answer than the log")


def measure(folder: Path, form: str, count: int) -> dict[str, float]:
    """Run a form in a process of its own."""
    command = [sys.executable, __file__, "--child", "throughput", str(folder), form, str(count)]
    cost: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return cost


def throughput_cases(count: int, keys: int, *, as_json: bool) -> None:
    """Measure the loop of interval views beside the raw one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = PushLog(folder / "events.db")
        made = events(count, keys, EVENTS_PER_SECOND)
        for start in range(0, count, 5_000):
            log.append(made[start : start + 5_000])
        del made
        log.close()
        few = PushLog(folder / "few.db")
        few.append(events(FEW, keys, EVENTS_PER_SECOND))
        few.close()
        costs = {form: measure(folder, form, count) for form in ("raw", *FORMS)}
    peer = costs.pop("raw")
    for form, cost in costs.items():
        ratio, unit = cost["cpu"] / peer["cpu"], 1e6 / count
        if as_json:
            line = {"case": f"throughput, {FORMS[form]}", "ours": round(cost["cpu"], 3), "peer": round(peer["cpu"], 3)}
            line |= {"ratio": round(ratio, 3), "target": TARGET, "events": count}
            line |= {"bytes_per_event": round(cost["written"] / count), "peer_bytes": round(peer["written"] / count)}
            print(json.dumps(line), flush=True)
            continue
        print(f"\nthroughput, {FORMS[form]}: {ratio:.2f} of the raw loop (target {TARGET})")
        print(f"  ours {cost['cpu'] * unit:.1f} us CPU, raw {peer['cpu'] * unit:.1f} us per event; ", end="")
        print(f"{cost['written'] / count:,.0f} and {peer['written'] / count:,.0f} bytes written per event; ", end="")
        print(f"{count / cost['wall']:,.0f} and {count / peer['wall']:,.0f} events per second", flush=True)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Following a stream beside a raw loop.")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    parser.add_argument("--soak", action="store_true", help="only watch memory under load")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to soak (default 10)")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        kind, folder, *rest = options.child
        if kind == "throughput":
            print(json.dumps(throughput(Path(folder), rest[0], int(rest[1]))))
        else:
            run_child(kind, Path(folder), rest)
    elif options.soak:
        soak(__file__, options.minutes, as_json=options.json)
    else:
        throughput_cases(*((40_000, 5_000) if options.quick else (600_000, 100_000)), as_json=options.json)
        latency_cases(__file__, 6.0 if options.quick else 20.0, as_json=options.json)


if __name__ == "__main__":
    main()
