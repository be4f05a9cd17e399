"""How long one online read takes, median and 99th percentile, beside the store's own get of the same bytes in turn.

A view with 30 daily tiles per key in one stored chunk, read one key at a time through the public API: 1,000,000 keys in
files, or 100,000 on Valkey, whose server this script starts. Answers are compared with NumPy first.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import numpy as np
import redis
from online import CHUNK_START, TILES, Setting

from featurekit_dagster.stores.key_codec import KeyCodec, chunk_suffix

READS = 20_000
KEYS = {"lmdb": 1_000_000, "valkey": 100_000}
Get = Callable[[int], bytes | None]


@contextmanager
def on_lmdb(folder: Path, keys: int) -> Iterator[tuple[Setting, float, Get]]:
    """Load a view into files; give it, the CPU seconds of the load, and a raw get from a copy of the files."""
    setting = Setting(folder, keys, CHUNK_START)
    load = setting.timed_write(0, TILES)
    setting.store.close()
    path, copy = folder / "home" / "online" / "benchmark" / "view", folder / "copy"
    copy.mkdir()
    with lmdb.open(str(path), map_size=16 << 30, readonly=True) as environment:
        environment.copy(str(copy))
    stored = stored_key(setting)
    with lmdb.open(str(copy), map_size=16 << 30, readahead=False) as environment:

        def get(user: int) -> bytes | None:
            with environment.begin() as transaction:
                value: bytes | None = transaction.get(stored(user))
                return value

        yield setting, load, get


@contextmanager
def on_valkey(folder: Path, keys: int) -> Iterator[tuple[Setting, float, Get]]:
    """Load a view into a server; give it, the CPU seconds of the load here, and a raw get from the server."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.support.stream_servers import valkey_server

    with valkey_server(folder, appends=False) as url:
        setting = Setting(folder, keys, CHUNK_START, online_store=url)
        load = setting.timed_write(0, TILES)
        client, stored = redis.Redis.from_url(url), stored_key(setting)

        def get(user: int) -> bytes | None:
            found: list[bytes | None] = client.execute_command("MGET", b"{featurekit/benchmark/view}:r:" + stored(user))
            return found[0]

        yield setting, load, get


def stored_key(setting: Setting) -> Callable[[int], bytes]:
    """Return what gives the stored key of a user's only chunk."""
    encode, suffix = KeyCodec(setting.layout).encode, chunk_suffix(CHUNK_START // 64)
    return lambda user: encode((user,)) + suffix


def timed(read: Callable[[int], object], users: list[int]) -> tuple[np.ndarray, float]:
    """Return the seconds of each read on the clock, and the CPU seconds of one."""
    times, cpu = np.empty(len(users)), time.process_time()
    for at, user in enumerate(users):
        started = time.perf_counter()
        read(user)
        times[at] = time.perf_counter() - started
    return times, (time.process_time() - cpu) / len(users)


def measure(store: str, keys: int, reads: int) -> None:
    """Load, compare, read in turn and print one line of JSON."""
    opened = {"lmdb": on_lmdb, "valkey": on_valkey}[store]
    with tempfile.TemporaryDirectory() as name, opened(Path(name), keys) as (setting, load, get):
        setting.check()
        users = random.Random(3).choices(range(keys), k=reads)
        if any(get(user) is None for user in users[:100]):
            raise SystemExit("the raw get does not find what the view has stored")

        def ask(user: int) -> object:
            return setting.handle.get_online_features({"user_id": user})

        line: dict[str, object] = {
            "store": store,
            "keys": keys,
            "reads": reads,
            "load_cpu_us_per_key": 1e6 * load / keys,
        }
        for form in (ask, get):
            timed(form, users)  # brings what is asked for into memory
        halves: dict[str, list[tuple[np.ndarray, float]]] = {"ours": [], "raw": []}
        for part in (users[: reads // 2], users[reads // 2 :]):
            for form, read in (("ours", ask), ("raw", get)):
                halves[form].append(timed(read, part))
        for form, found in halves.items():
            times = 1e6 * np.concatenate([each for each, _ in found])
            line |= {f"{form}_p50_us": float(np.median(times)), f"{form}_p99_us": float(np.percentile(times, 99))}
            line[f"{form}_cpu_us"] = 1e6 * sum(cpu for _, cpu in found) / len(found)
        print(json.dumps({name: round(v, 1) if isinstance(v, float) else v for name, v in line.items()}), flush=True)
        setting.workspace.stores.online.close()


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(description="Latency of one online read beside the store's own get.")
    parser.add_argument("--store", choices=sorted(KEYS), help="only this store (default: all)")
    parser.add_argument("--keys", type=int, help="number of keys (default 1,000,000 in files, 100,000 on Valkey)")
    parser.add_argument("--quick", action="store_true", help="small sizes: checks the answers, says little about speed")
    options = parser.parse_args()
    for store, keys in KEYS.items():
        if options.store in (None, store):
            measure(store, 2_000 if options.quick else options.keys or keys, 1_000 if options.quick else READS)


if __name__ == "__main__":
    main()
