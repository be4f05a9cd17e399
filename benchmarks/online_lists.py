"""Online reads of lists and sketches beside plain Python over raw LMDB.

A view with 30 daily tiles per key answers `last(3)` of a text column and `approx_count_distinct()` of it, one key at a
time through the public API. The peer keeps the same lists and registers of each key as one msgpack value, reads it with
raw LMDB and merges it by loops. Answers are compared before anything is timed. All times are CPU time of this process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import lmdb
import msgpack
import numpy as np
import pyarrow as pa

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    Field,
    FileConfig,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    approx_count_distinct,
    batch_feature_view,
    last,
)
from featurekit_dagster.engine.sketches import finish_hll
from featurekit_dagster.engine.sketches_of_key import count_distinct_of
from featurekit_dagster.intervals import EPOCH, Interval, IntervalSet

DAY = timedelta(days=1)
DAY_US = 86_400_000_000
TILES, FIRST_DAY, VALUES, ROUNDS = 30, 64 * 309, 20, 5
TARGET = 1.0


def declare(folder: Path) -> tuple[Workspace, Any]:
    """Return a workspace with the view, as of the end of its tiles."""
    config = FileConfig(uri=str(folder / "none.parquet"), file_format="parquet", timestamp_field="ts")
    window, end = TimeWindow(window_size=TILES * DAY), EPOCH + (FIRST_DAY + TILES) * DAY

    @batch_feature_view(
        sources=[BatchSource(name="events", batch_config=config)],
        entities=[Entity(name="user", join_keys=[Field("user_id", Int64)])],
        mode="pandas",
        schema=[Field("user_id", Int64), Field("ts", Timestamp), Field("item", String)],
        aggregation_interval=DAY,
        batch_schedule=DAY,
        aggregations=[Aggregation("item", last(3), window), Aggregation("item", approx_count_distinct(), window)],
        feature_start_time=end - DAY,
        online=True,
    )
    def view(events: Any) -> Any:  # noqa: ANN401 - never called
        return events

    return Workspace("benchmark", [view], home=folder / "home", clock=end), view


def tiles_of(view: Any, keys: int) -> pa.Table:  # noqa: ANN401 - what the decorator returns
    """Return 30 tiles of every key: three texts, and the registers that 20 values set."""
    state, count = np.random.default_rng(7), keys * TILES
    texts = pa.array([f"item {number}" for number in range(1000)])
    items = texts.take(pa.array(state.integers(0, 1000, 3 * count)))
    # a code is a register above six bits of its rank
    codes = state.integers(0, 256, VALUES * count) << 6 | state.geometric(0.5, VALUES * count).clip(1, 40)
    listed, indices, registers = (partial.name for partial in view.partials)
    places, ranks = finish_hll(
        pa.ListArray.from_arrays(np.arange(0, VALUES * count + 1, VALUES, dtype=np.int32), codes), 8
    )
    days = np.tile(np.arange(FIRST_DAY, FIRST_DAY + TILES), keys)
    return pa.table(
        {
            "user_id": np.repeat(np.arange(keys), TILES),
            "_anchor_time": pa.array(days * DAY_US, pa.timestamp("us", "UTC")),
            listed: pa.ListArray.from_arrays(np.arange(0, 3 * count + 1, 3, dtype=np.int32), items),
            indices: places,
            registers: ranks,
        }
    )


def plain_answer(value: bytes) -> list[Any]:
    """Return what the peer makes of a stored key."""
    lists, indices, registers = msgpack.unpackb(value)
    newest: list[str] = []
    for cell in reversed(lists):
        newest[:0] = cell
        if len(newest) >= 3:  # noqa: PLR2004 - last(3)
            break
    best: dict[int, int] = {}
    for places, ranks in zip(indices, registers, strict=True):
        for place, rank in zip(places, ranks, strict=True):
            best[place] = max(rank, best.get(place, 0))
    return [newest[-3:], count_distinct_of(np.array(list(best)), np.array(list(best.values())), 8)]


def measure(keys: int, reads: int) -> tuple[float, float]:
    """Return the CPU seconds of one read, ours and the peer's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        workspace, view = declare(folder)
        tiles = tiles_of(view, keys)
        stores, written = workspace.stores, Interval(EPOCH + FIRST_DAY * DAY, EPOCH + (FIRST_DAY + TILES) * DAY)
        stores.online.write(stores.online_layout(view), tiles, covered=IntervalSet([written]), epoch=1, replace=written)
        columns = [tiles[partial.name].to_pylist() for partial in view.partials]
        with lmdb.open(str(folder / "raw"), map_size=16 << 30) as environment:
            with environment.begin(write=True) as transaction:
                for key in range(keys):
                    mine = [column[key * TILES : (key + 1) * TILES] for column in columns]
                    transaction.put(key.to_bytes(8), msgpack.packb(mine))
            return _timed(workspace, environment, random.Random(3).choices(range(keys), k=reads))


def _timed(workspace: Workspace, environment: lmdb.Environment, users: list[int]) -> tuple[float, float]:
    handle = workspace.get_feature_view("view")

    def ours(user: int) -> list[Any]:
        return list(handle.get_online_features({"user_id": user}).to_dict().values())

    def peer(user: int) -> list[Any]:
        with environment.begin() as transaction:
            return plain_answer(transaction.get(user.to_bytes(8), b""))

    for user in users[:200]:
        if ours(user) != peer(user):
            raise SystemExit(f"key {user}: {ours(user)} instead of {peer(user)}")
    pairs = [(_seconds(ours, users), _seconds(peer, users)) for _ in range(ROUNDS)]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)


def _seconds(read: Callable[[int], Any], users: list[int]) -> float:
    started = time.process_time()
    for user in users:
        read(user)
    return (time.process_time() - started) / len(users)


def main() -> None:
    """Parse the command line, measure and print."""
    parser = argparse.ArgumentParser(description="Online reads of lists and sketches beside raw LMDB and plain Python.")
    parser.add_argument("--json", action="store_true", help="one JSON object per case and nothing else")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    options = parser.parse_args()
    ours, peer = measure(*((500, 200) if options.quick else (10_000, 3_000)))
    name, ratio = "get_online_features, last(3) and approx_count_distinct over 30 tiles", ours / peer
    if options.json:
        seconds = {"ours": round(ours, 9), "peer": round(peer, 9), "ratio": round(ratio, 3)}
        print(json.dumps({"case": name, **seconds, "target": TARGET}))
        return
    print(f"{name}: {ratio:.2f} of plain Python over raw LMDB (target {TARGET})")
    print(f"  ours {ours * 1e6:.2f} us, peer {peer * 1e6:.2f} us per read, {1 / ours:,.0f} reads per CPU second")


if __name__ == "__main__":
    main()
