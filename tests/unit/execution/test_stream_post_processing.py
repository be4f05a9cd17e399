"""What comes in is made rows of the source by the user's own function first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from featurekit_dagster import Field, KafkaConfig, PushConfig, StreamSource, String, Timestamp
from tests.support.clicks import continuous, followed
from tests.support.followed import NOON, Followed
from tests.support.stream_lists import document
from tests.support.visits import DAY, FIELDS, visit

SENT = [Field("who", String), Field("at", Timestamp), Field("amount", String)]


def sent(who: str, amount: str = "2.5") -> bytes:
    return document({"who": who, "at": NOON, "amount": amount})


def by_record(record: dict[str, Any]) -> dict[str, Any] | None:
    if record["who"] == "nobody":
        return None
    return {"user": int(record["who"]), "ts": record["at"], "amount": float(record["amount"]), "visits": 1}


def by_frame(frame: pd.DataFrame) -> pd.DataFrame:
    known = frame[frame["who"] != "nobody"]
    return pd.DataFrame(
        {
            "user": known["who"].astype("int64"),
            "ts": known["at"],
            "amount": known["amount"].astype("float64"),
            "visits": pd.Series(1, index=known.index),
            "unused": "",
        }
    )


@pytest.mark.parametrize(("function", "mode"), [(by_record, "python"), (by_record, None), (by_frame, "pandas")])
def test_sent_records_become_rows_and_those_that_cannot_are_refused(
    tmp_path: Path, function: Any, mode: str | None
) -> None:
    config = PushConfig(timestamp_field="ts", post_processor=function, post_processor_mode=mode, input_schema=SENT)
    source = StreamSource(name="visits", stream_config=config, schema=FIELDS)
    world = Followed(tmp_path, continuous(source, online=True))
    report = world.send(sent("1"), sent("nobody"), sent("2", "much"), sent("1", "1.5"), sent("x"), b"[]")
    assert (report.events, report.refused) == (6, 3)
    assert [world.online(user) for user in (1, 2)] == [[4.0, 2], [None, 0]]
    letters = world.workspace.stores.dead_letters(world.view).read().to_pylist()
    assert [letter["payload"] for letter in letters] == [sent("2", "much"), sent("x"), b"[]"]
    assert letters[0]["reason"] == "the post_processor raised ValueError"


def of_text(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([{**json.loads(text.removeprefix("v1 ")), "page": "home"} for text in frame["value"]]).assign(
        ts=lambda made: pd.to_datetime(made["ts"])
    )


def test_records_of_a_stream_that_is_read_come_as_text(tmp_path: Path) -> None:
    plain = followed(tmp_path, [])
    config = KafkaConfig(
        kafka_bootstrap_servers="unused:9092",
        topics="visits",
        timestamp_field="ts",
        post_processor=of_text,
        initial_stream_position="trim_horizon",
    )
    world = Followed(tmp_path, continuous(replace(plain, stream_config=config), online=True), now=NOON)
    row = dict(zip((field.name for field in FIELDS), visit(1, NOON, 2.0), strict=True))
    ahead = document({**row, "ts": NOON + 2 * DAY})
    report = world.send(b"v1 " + document(row), b"v1 {", b"\xff", document(row), ahead)
    assert (report.events, report.refused) == (5, 3)
    letters = world.workspace.stores.dead_letters(world.view).read()
    assert letters["payload"].to_pylist() == [b"v1 {", b"\xff", ahead]
    assert letters["reason"][2].as_py() == "ts lies too far ahead of now"
    assert world.online(1, NOON) == [4.0, 2]
