"""Online reads and writes beside raw LMDB that moves the same bytes in the same run.

Reads go through the public API, one key at a time and 100 in one call, on a view with 30 daily tiles per key, once with
the tiles in one stored chunk and once in two. Writes go to the store: the first load, and one new tile for every key.
Answers are compared with NumPy before anything is timed. All times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pyarrow as pa

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    Field,
    FileConfig,
    Float64,
    Int64,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.intervals import EPOCH, Interval, IntervalSet

DAY = timedelta(days=1)
TILES = 30
FUNCTIONS = ("count", "sum", "mean", "min", "max")
# A chunk of 64 tiles begins on this day since the epoch.
CHUNK_START = 64 * 309
RECORDS_PER_TRANSACTION = 2_500
READS = 20_000
ROUNDS = 5
BATCH = 100


@dataclass(frozen=True)
class Result:
    """One case: what a read or a key costs in CPU seconds, ours and raw LMDB's."""

    name: str
    ours: float
    peer: float
    target: float
    unit: str


class Setting:
    """A workspace with one view whose tiles begin on a given day, and random tiles for it."""

    def __init__(self, folder: Path, keys: int, first_day: int, online_store: str | None = None) -> None:
        self.folder, self.keys, self.first_day = folder, keys, first_day
        end = EPOCH + (first_day + TILES) * DAY
        config = FileConfig(uri=str(folder / "none.parquet"), file_format="parquet", timestamp_field="ts")

        @batch_feature_view(
            sources=[BatchSource(name="events", batch_config=config)],
            entities=[Entity(name="user", join_keys=[Field("user_id", Int64)])],
            mode="pandas",
            schema=[Field("user_id", Int64), Field("ts", Timestamp), Field("v", Float64)],
            aggregation_interval=DAY,
            batch_schedule=DAY,
            aggregations=[
                Aggregation(column="v", function=function, time_window=TimeWindow(window_size=TILES * DAY))
                for function in FUNCTIONS
            ],
            feature_start_time=end - DAY,
            online=True,
        )
        def view(events: Any) -> Any:  # noqa: ANN401 - never called
            return events

        self.workspace = Workspace("benchmark", [view], home=folder / "home", clock=end, online_store=online_store)
        self.handle = self.workspace.get_feature_view("view")
        stores = self.workspace.stores
        self.store, self.layout = stores.online, stores.online_layout(view)
        random_state = np.random.default_rng(7)
        self.values = {
            "count_v": random_state.integers(1, 9, (keys, TILES + 1)),
            **{name: random_state.random((keys, TILES + 1)) for name in ("sum_v", "min_v", "max_v")},
        }

    def records(self, first: int, last: int) -> pa.Table:
        """Return the tiles `first` to `last - 1` of every key, sorted by key and time."""
        days = np.arange(self.first_day + first, self.first_day + last)
        times = pa.array(np.tile(days * (DAY // timedelta(microseconds=1)), self.keys), pa.timestamp("us", "UTC"))
        columns = {name: cells[:, first:last].ravel() for name, cells in self.values.items()}
        return pa.table({"user_id": np.repeat(np.arange(self.keys), last - first), "_anchor_time": times, **columns})

    def write(self, first: int, last: int) -> None:
        """Write these tiles as a materialization job does."""
        begin = EPOCH + self.first_day * DAY
        covered = IntervalSet([Interval(begin, begin + last * DAY)])
        written = Interval(begin + first * DAY, begin + last * DAY)
        self.store.write(self.layout, self.table, covered=covered, epoch=1, replace=written)

    def timed_write(self, first: int, last: int) -> float:
        """Return the CPU seconds of a write; making the records is not part of it."""
        self.table = self.records(first, last)
        started = time.process_time()
        self.write(first, last)
        return time.process_time() - started

    def stored(self) -> list[tuple[bytes, bytes]]:
        """Return every record as it is stored, in order; closes the store."""
        self.store.close()
        path = self.folder / "home" / "online" / "benchmark" / "view"
        with lmdb.open(str(path), map_size=16 << 30, readonly=True) as environment, environment.begin() as transaction:
            return [(key, value) for key, value in transaction.cursor() if not key.startswith(b"\x00\x00")]

    def check(self) -> None:
        """Compare public answers with NumPy."""
        sample = [0, self.keys // 2, self.keys - 1]
        cells = {name: values[:, :TILES] for name, values in self.values.items()}
        several = self.handle.get_online_features_many([{"user_id": key} for key in range(min(self.keys, 50))])
        singles = [self.handle.get_online_features({"user_id": key}) for key in sample]
        for key, vector in [*enumerate(several), *zip(sample, singles, strict=True)]:
            found = list(vector.to_dict().values())
            count, total = int(cells["count_v"][key].sum()), float(cells["sum_v"][key].sum())
            expected = [count, total, total / count, cells["min_v"][key].min(), cells["max_v"][key].max()]
            if not np.allclose(found, expected, rtol=1e-12):
                raise SystemExit(f"key {key}: {found} instead of {expected}")


def raw_environment(folder: Path) -> lmdb.Environment:
    return lmdb.open(str(folder), map_size=16 << 30, metasync=False, readahead=False)


def raw_load(environment: lmdb.Environment, records: Sequence[tuple[bytes, bytes]], *, read_first: bool) -> float:
    """Return the CPU seconds of putting records, each after a get of what is there if `read_first`."""
    started = time.process_time()
    for first in range(0, len(records), RECORDS_PER_TRANSACTION):
        with environment.begin(write=True) as transaction:
            for key, value in records[first : first + RECORDS_PER_TRANSACTION]:
                if read_first:
                    transaction.get(key)
                transaction.put(key, value)
    return time.process_time() - started


def medians(ours: Callable[[], None], peer: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Return the CPU seconds of one of `repeats` reads, ours and the peer's, measured in turn."""
    found: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        start = time.process_time()
        ours()
        middle = time.process_time()
        peer()
        found.append((middle - start, time.process_time() - middle))
    return statistics.median(a for a, _ in found) / repeats, statistics.median(b for _, b in found) / repeats


def read_cases(setting: Setting, environment: lmdb.Environment, chunks: str) -> list[Result]:
    """Measure public reads beside gets of the same stored keys."""
    by_user: dict[int, list[bytes]] = {}
    with environment.begin() as transaction:
        for key in transaction.cursor().iternext(values=False):
            by_user.setdefault(int.from_bytes(key[3:11]) - (1 << 63), []).append(key)
    users = random.Random(3).sample(range(setting.keys), min(READS, setting.keys))
    asked = [{"user_id": user} for user in users]
    stored = [by_user[user] for user in users]
    batches = [asked[at : at + BATCH] for at in range(0, len(asked), BATCH)]
    stored_batches = [[k for keys in stored[at : at + BATCH] for k in keys] for at in range(0, len(asked), BATCH)]

    def one() -> None:
        for keys in asked:
            setting.handle.get_online_features(keys)

    def raw_one() -> None:
        for keys in stored:
            with environment.begin() as transaction:
                for key in keys:
                    transaction.get(key)

    def many() -> None:
        for keys in batches:
            setting.handle.get_online_features_many(keys)

    def raw_many() -> None:
        for keys in stored_batches:
            with environment.begin() as transaction:
                for key in keys:
                    transaction.get(key)

    setting.check()
    single, hundred = medians(one, raw_one, len(asked)), medians(many, raw_many, len(batches))
    return [
        Result(f"get_online_features, one key, 30 tiles in {chunks}", *single, 6.0, "read"),
        Result(f"get_online_features_many, 100 keys, 30 tiles in {chunks}", *hundred, 4.0, "call"),
    ]


def measure(keys: int) -> list[Result]:
    """Run all cases."""
    results: list[Result] = []
    for chunks, first_day in (("one chunk", CHUNK_START), ("two chunks", CHUNK_START + 50)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            setting = Setting(folder, keys, first_day)
            load = setting.timed_write(0, TILES)
            loaded = setting.stored()
            with raw_environment(folder / "raw") as environment:
                raw = raw_load(environment, loaded, read_first=False)
                results.append(Result(f"first load, {chunks} per key", load / keys, raw / keys, 3.0, "key"))
                results += read_cases(setting, environment, chunks)
                before = dict(loaded)
                merge = setting.timed_write(TILES, TILES + 1)
                changed = [(key, value) for key, value in setting.stored() if before.get(key) != value]
                raw = raw_load(environment, changed, read_first=True)
            results.append(Result(f"one new tile to 30 in {chunks}", merge / keys, raw / keys, 3.0, "key"))
    return results


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Online reads and writes beside raw LMDB of the same bytes.")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    parser.add_argument("--keys", type=int, default=200_000, help="number of keys (default 200,000)")
    options = parser.parse_args()
    for result in measure(5_000 if options.quick else options.keys):
        ratio = result.ours / result.peer
        if options.json:
            seconds = {"ours": round(result.ours, 9), "peer": round(result.peer, 9), "ratio": round(ratio, 3)}
            print(json.dumps({"case": result.name, **seconds, "target": result.target}), flush=True)
            continue
        print(f"{result.name}: {ratio:.2f} of raw LMDB (target {result.target})")
        print(f"  ours {result.ours * 1e6:.2f} us, raw {result.peer * 1e6:.2f} us per {result.unit}", end="")
        print(f", {1 / result.ours:,.0f} {result.unit}s per CPU second", flush=True)


if __name__ == "__main__":
    main()
