"""Law: whatever is ingested, in whatever pieces, order and with whatever interruptions, reads answer by the last word.

The judge is a dict of the last row of each key and time, read by the brute-force oracle.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster.execution.table_ingest import CLAIMED, WRITTEN_OFFLINE, WRITTEN_ONLINE, ingest_rows
from tests.support import oracle
from tests.support.scores import FIRST, HOUR, Table, rows

SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))
USERS: tuple[str | None, ...] = ("a", "b", None)
TIMES = [FIRST + n * 7 * HOUR for n in range(12)]
Row = tuple[str | None, datetime, float | None]
ROWS = st.lists(
    st.tuples(st.sampled_from(USERS), st.sampled_from(TIMES), st.none() | st.integers(0, 9).map(float)),
    min_size=1,
    max_size=6,
)
INGESTS = st.lists(
    st.tuples(ROWS, st.sampled_from([None, None, None, CLAIMED, WRITTEN_OFFLINE, WRITTEN_ONLINE])),
    min_size=1,
    max_size=5,
)


class Killed(BaseException):
    """The end of the process, as far as `except Exception` can tell."""


def ingest(table: Table, frame: Sequence[Row], killed_at: str | None) -> bool:
    """Ingest rows, and tell whether they are in the table afterwards."""

    def on_step(step: str) -> None:
        if step == killed_at:
            raise Killed

    try:
        ingest_rows(table.view, rows(*frame), table.stores, on_step=on_step)
    except Killed:
        return killed_at != CLAIMED
    return True


@settings(
    max_examples=200 if SOAK else 12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(ingests=INGESTS, ttl=st.none() | st.sampled_from([HOUR, 10 * HOUR, 3 * 24 * HOUR]), asked=st.integers(0, 90))
def test_reads_answer_by_the_last_row_of_each_key_and_time(
    ingests: list[tuple[list[Row], str | None]], ttl: timedelta | None, asked: int
) -> None:
    with tempfile.TemporaryDirectory() as home:
        table = Table(Path(home), ttl=ttl)
        table.clock.now = now = TIMES[-1] + asked * HOUR
        last: dict[tuple[str | None, datetime], dict[str, Any]] = {}
        for frame, killed_at in ingests:
            if ingest(table, frame, killed_at):
                last |= {(user, at): {"user_id": user, "ts": at, "score": score} for user, at, score in frame}
        table.handle.finish_ingests()
        view = oracle.LatestView(features=["score"], batch_schedule=HOUR, ttl=ttl, stream=True)
        events = list(last.values())

        assert table.stored() == sorted(((u, t, row["score"]) for (u, t), row in last.items()), key=str)
        probes = [(user, at) for user in USERS for at in (*TIMES, TIMES[3] + HOUR, now)]
        spine = pa.table(
            {
                "user_id": pa.array([user for user, _ in probes], pa.string()),
                "at": pa.array([at for _, at in probes], pa.timestamp("us", tz="UTC")),
            }
        )
        offline = table.handle.get_features_for_events(spine).to_arrow()["scores__score"].to_pylist()
        expected = [oracle.latest_at(events, {"user_id": user}, at, view)[0] for user, at in probes]
        assert offline == expected
        for user in USERS:
            assert [table.online(user)] == oracle.latest_at(events, {"user_id": user}, now, view)
