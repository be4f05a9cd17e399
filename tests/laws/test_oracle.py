"""The oracle itself is judged by the reference answers of the conformance cases."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from featurekit_dagster.domain.aggregation import FUNCTION_NAMES, feature_name
from featurekit_dagster.domain.windows import TimeWindow, format_duration
from tests.conformance.cases import conformance_dir
from tests.support import oracle

DTYPES = {"float": "Float64", "int": "Int64", "str": "String", "bool": "Bool"}
LEFT_OUT = {"aggregation_secondary_key", "compaction_enabled", "mode", "incremental_backfills"}
ANSWER = "expected.parquet"


def seconds(declaration: dict[str, Any], name: str) -> timedelta:
    return timedelta(seconds=declaration.get(name, {"seconds": 0})["seconds"])


def in_scope(case: dict[str, Any]) -> bool:
    declaration = case.get("declaration", {})
    aggregates = declaration.get("aggregates", [])
    return (
        declaration.get("kind") == "batch"
        and not LEFT_OUT & set(declaration)
        and any(query.get("file") == ANSWER and not query.get("refused") for query in case["queries"])
        and all(wanted["window"]["kind"] == "window" and wanted["function"] in FUNCTION_NAMES for wanted in aggregates)
        and (bool(aggregates) or "attributes" in declaration)
        and not any(wanted.get("args") for wanted in aggregates)
    )


def expected(case: dict[str, Any], events: list[dict[str, Any]], spine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    declaration = case["declaration"]
    keys = [key for keys in declaration["entities"] for key in keys]
    common = {
        "batch_schedule": seconds(declaration, "batch_schedule"),
        "data_delay": seconds(declaration, "data_delay"),
        "feature_start_time": datetime.fromisoformat(declaration["feature_start_time"]).replace(tzinfo=UTC),
        "timestamp_field": declaration["timestamp_field"],
    }
    if "attributes" in declaration:
        names = [attribute["name"] for attribute in declaration["attributes"]]
        ttl = seconds(declaration, "ttl") if declaration.get("ttl") else None
        latest = oracle.LatestView(features=names, ttl=ttl, **common)
        answers = [oracle.latest_at(events, {key: row[key] for key in keys}, row["ts"], latest) for row in spine]
        return [dict(zip(names, answer, strict=True)) for answer in answers]
    aggregates, names = [], []
    for wanted in declaration["aggregates"]:
        size = timedelta(seconds=wanted["window"]["size_s"])
        offset = timedelta(seconds=wanted["window"]["offset_s"])
        aggregates.append(
            oracle.Aggregate(
                column=wanted["column"],
                function=wanted["function"],
                size=size,
                offset=offset,
                dtype=DTYPES[wanted["dtype"]],
            )
        )
        interval = seconds(declaration, "aggregation_interval")
        made = feature_name(wanted["column"], wanted["function"], TimeWindow(size, offset), format_duration(interval))
        names.append(wanted["name"] or made)
    view = oracle.AggregateView(aggregates=aggregates, **common)
    answers = [oracle.aggregate_at(events, {key: row[key] for key in keys}, row["ts"], view) for row in spine]
    return [dict(zip(names, answer, strict=True)) for answer in answers]


def same(got: Any, want: Any) -> bool:
    if isinstance(got, float) and isinstance(want, float):
        return math.isclose(got, want, rel_tol=1e-6, abs_tol=1e-9) or str(got) == str(want) == "nan"
    return bool(got == want)


CASES = [
    folder.parent
    for folder in sorted(conformance_dir().glob("*/case.json"))
    if in_scope(json.loads(folder.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_oracle_answers_as_the_reference_engine(folder: Path) -> None:
    case = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    events = pq.read_table(folder / "events.parquet").to_pylist()
    reference = pq.read_table(folder / ANSWER).to_pylist()
    answers = expected(case, events, reference)
    prefix = case["declaration"]["name"] + "__"
    assert answers
    for row, answer in zip(reference, answers, strict=True):
        for name, got in answer.items():
            assert same(got, row[prefix + name]), (name, row["row_id"], got, row[prefix + name])


def test_some_cases_are_in_the_oracles_scope() -> None:
    assert CASES, f"no cases in {conformance_dir()}; set FEATUREKIT_CONFORMANCE_DIR to the folder of cases"
