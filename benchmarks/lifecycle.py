"""What the life of stored data costs: `deletion` of 10,000 keys out of an offline table, beside delta-rs's own delete.

Ours is one commit per partition under the view's lease, as the job `delete_keys` makes them, after a look into every
file; the peer is one `DeltaTable.delete` with a list of the keys. Each runs in a process of its own on a copy of the
same table; the rows that are left are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.stores.delta import DeltaOfflineStore
from featurekit_dagster.stores.hidden_rows import CUTOFF
from featurekit_dagster.stores.tombstones import FOR_EVER_US

DAY = timedelta(days=1)
FIRST = datetime(2024, 1, 1, tzinfo=UTC)
USERS, KEYS, DAYS = 500_000, 10_000, 100
TARGET = 1.0
SCHEMA = pa.schema(
    [
        ("user_id", pa.int64()),
        ("_anchor_time", pa.timestamp("us", tz="UTC")),
        ("count_amount", pa.int64()),
        ("sum_amount", pa.float64()),
    ]
)
TILES = """
    SELECT (hash(i, {day}) % {users})::BIGINT AS user_id,
        TIMESTAMPTZ '{first}' + to_hours((hash(i + 1, {day}) % 24)::BIGINT) AS _anchor_time,
        (hash(i + 2) % 9 + 1)::BIGINT AS count_amount, (hash(i + 3) % 100_000) / 100 AS sum_amount
    FROM range({rows}) t(i)
"""


def make_table(root: Path, rows: int) -> None:
    """Write a table of tiles, a partition a day, and the keys that are to go."""
    store = DeltaOfflineStore(root / "lake")
    for number in range(DAYS):
        start = FIRST + number * DAY
        query = TILES.format(day=number, users=USERS, first=start.isoformat(), rows=rows // DAYS)
        with duckdb.connect() as con:
            con.execute("SET TimeZone = 'UTC'")
            tiles = con.sql(query).to_arrow_table().cast(SCHEMA)
        store.replace_interval(
            "view",
            tiles,
            Interval(start, start + DAY),
            schema=SCHEMA,
            time_column="_anchor_time",
            sort_by=["user_id", "_anchor_time"],
            job_id="benchmark",
            epoch=1,
            coverage=IntervalSet([Interval(FIRST, start + DAY)]),
        )
    keys = np.random.default_rng(0).choice(USERS, KEYS, replace=False)
    pq.write_table(pa.table({"user_id": np.sort(keys)}), root / "keys.parquet")


def delete_ours(root: Path) -> None:
    """Delete the keys as the job does."""
    keys = pq.read_table(root / "keys.parquet")
    keys = keys.append_column(CUTOFF, pa.array(np.full(len(keys), FOR_EVER_US)))
    deletion = DeltaOfflineStore(root / "lake").key_deletion("view", 1, keys, time_column="_anchor_time")
    for partition in deletion.left():
        deletion.rewrite(partition, job_id="benchmark", epoch=1)


def delete_peer(root: Path) -> None:
    """Delete the keys with the Delta library alone."""
    keys = pq.read_table(root / "keys.parquet")["user_id"].to_pylist()
    DeltaTable(root / "lake" / "offline" / "view" / "g1").delete(f"user_id IN ({', '.join(map(str, keys))})")


FORMS = {"ours": delete_ours, "delta-rs": delete_peer}


def child(form: str, root: Path) -> None:
    """Run one form and print what it cost, how many bytes it wrote, and what is left."""
    table = root / "lake" / "offline" / "view" / "g1"
    before = {path: path.stat().st_size for path in table.rglob("*.parquet")}
    wall, cpu = time.perf_counter(), time.process_time()
    FORMS[form](root)
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    written = sum(path.stat().st_size for path in table.rglob("*.parquet") if path not in before)
    files = DeltaTable(table).file_uris()
    left = duckdb.sql(f"SELECT count(*), sum(count_amount), sum(hash(user_id) % 1000) FROM read_parquet({files})")
    print(json.dumps({"cpu": cpu, "wall": wall, "bytes": written, "left": [int(n) for n in left.fetchall()[0]]}))


def measure(form: str, root: Path) -> dict[str, float]:
    """Run a form in a process of its own, on a copy whose files are shared until they are replaced."""
    with tempfile.TemporaryDirectory(dir=root.parent) as copy:
        place = Path(copy, "root")
        shutil.copytree(root, place, copy_function=os.link)
        command = [sys.executable, __file__, "deletion", "--child", form, str(place)]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found: dict[str, float] = json.loads(printed)
        return found


def deletion(rows: int, *, as_json: bool) -> None:
    """Measure the deletion out of a table of so many rows; exits with 1 when other rows are left."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "root")
        root.mkdir()
        make_table(root, rows)
        ours, peer = (measure(form, root) for form in FORMS)
    if ours["left"] != peer["left"]:
        sys.exit("deletion: other rows are left")
    ratios = {name: ours[name] / peer[name] for name in ("cpu", "bytes")}
    if as_json:
        line = {"case": f"deletion of {KEYS:,} keys", "rows": rows, "ours": ours, "peer": peer, "target": TARGET}
        print(json.dumps({**line, "ratio": ratios}))
        return
    print(f"deletion of {KEYS:,} keys out of {rows:,} rows in {DAYS} partitions; target {TARGET} for both")
    print(f"  CPU seconds      {ours['cpu']:10.1f}  delta-rs {peer['cpu']:10.1f}  {ratios['cpu']:.2f}")
    print(
        f"  megabytes        {ours['bytes'] / 1e6:10.1f}  delta-rs {peer['bytes'] / 1e6:10.1f}  {ratios['bytes']:.2f}"
    )
    print(f"  seconds          {ours['wall']:10.1f}  delta-rs {peer['wall']:10.1f}")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["deletion"])
    parser.add_argument("--rows", type=int, default=50_000_000, help="rows of the table")
    parser.add_argument("--quick", action="store_true", help="a million rows: checks the answers")
    parser.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]))
    else:
        deletion(1_000_000 if options.quick else options.rows, as_json=options.json)


if __name__ == "__main__":
    main()
