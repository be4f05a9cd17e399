"""Every case of the folder, read from the offline store and from the source, compared with the reference answers."""

from __future__ import annotations

import json
import math
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.execution.materialize import run_tasks
from tests.conformance.cases import OUT_OF_SCOPE, Case, build_workspace, conformance_dir, load_cases

CASES = load_cases()
RELATIVE = 1e-6
KNOWN = (
    json.loads((conformance_dir() / "known_differences.json").read_text(encoding="utf-8"))["entries"]
    if (conformance_dir() / "known_differences.json").exists()
    else []
)
SPINE_METHODS = ("get_features_for_events", "get_historical_features")


def in_scope(case: Case) -> bool:
    return not case.needs()


def test_the_folder_holds_cases() -> None:
    assert CASES, f"no cases in {conformance_dir()}; set FEATUREKIT_CONFORMANCE_DIR to the folder of cases"


def test_some_cases_are_in_scope() -> None:
    assert any(in_scope(case) for case in CASES)


def test_every_reason_for_leaving_a_case_out_is_a_sentence() -> None:
    assert all(len(reason.split()) > 3 for reason in OUT_OF_SCOPE.values())


@pytest.fixture(scope="module")
def workspaces(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Workspace]:
    """Workspaces by case, each materialized once."""
    return {}


def materialized(case: Case, workspaces: dict[str, Workspace], home: Path) -> Workspace:
    if case.name not in workspaces:
        workspace = build_workspace(case, home)
        for plan in workspace.plan():
            for run in plan.runs:
                view = workspace.repo.view(plan.view)
                list(run_tasks(view, run.tasks, workspace.stores, trigger="backfill"))
        workspaces[case.name] = workspace
    return workspaces[case.name]


@pytest.mark.parametrize("from_source", [False, True], ids=["store", "source"])
@pytest.mark.parametrize("case", [c for c in CASES if in_scope(c)], ids=lambda c: c.name)
def test_answers_are_those_of_the_reference(
    case: Case, from_source: bool, workspaces: dict[str, Workspace], tmp_path: Path
) -> None:
    workspace = materialized(case, workspaces, tmp_path)
    for query in case.content["queries"]:
        if query.get("refused"):
            with pytest.raises((TectonValidationError, TypeError)):
                answer(case, workspace, query, query.get("from_source"))
            continue
        expected = pq.read_table(case.folder / query["file"])
        given = answer(case, workspace, query, from_source)
        compare(case, query, given, expected)


def answer(case: Case, workspace: Workspace, query: dict[str, Any], from_source: bool | None) -> pa.Table:
    """Return what our method answers to a query."""
    name = case.content["declaration"].get("service", {}).get("name")
    handle: Any = (
        workspace.get_feature_service(name) if name else workspace.get_feature_view(case.declarations[0]["name"])
    )
    times: dict[str, datetime] = {k: case.time(query[k]) for k in ("start_time", "end_time") if k in query}
    method = getattr(handle, query["method"])
    if query["method"] in SPINE_METHODS and not times:
        table = method(
            pq.read_table(case.folder / "spine.parquet"), timestamp_key=case.timestamp_field, from_source=from_source
        ).to_arrow()
        label = name or handle.name
        return table.rename_columns([re.sub(rf"^({label}|\w+)\.", r"\1__", n) for n in table.column_names])
    arguments: dict[str, Any] = dict(times)
    if query["method"] not in ("run", "run_transformation"):
        arguments["from_source"] = from_source
    if query.get("aggregation_level"):
        arguments["aggregation_level"] = query["aggregation_level"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return method(**arguments).to_arrow()


def compare(case: Case, query: dict[str, Any], given: pa.Table, expected: pa.Table) -> None:
    """Compare as sets of rows: by row_id where there is one, else by keys and times."""
    where = f"{case.name}: {query['method']} {query['file']}"
    assert set(given.column_names) == set(expected.column_names), where
    rows, wanted = (coalesced(case, as_rows(side, expected.column_names)) for side in (given, expected))
    ours, theirs = sorted(rows, key=order), sorted(wanted, key=order)
    skip = [e for e in KNOWN if case.name in e["cases"] and e.get("file", query["file"]) == query["file"]]
    if any("_valid_from" in e["rows"] for e in skip):
        start = case.time(query["start_time"])
        ours, theirs = ([r for r in side if r["_valid_from"] != start] for side in (ours, theirs))
    assert len(ours) == len(theirs), f"{where}: {len(ours)} rows, expected {len(theirs)}"
    for mine, reference in zip(ours, theirs, strict=True):
        for name, value in reference.items():
            assert same(mine[name], value), f"{where}: {name} is {mine[name]!r}, expected {value!r} in {reference}"


def as_rows(table: pa.Table, names: list[str]) -> list[dict[str, Any]]:
    """Return rows as plain values; floats that are missing integers in the reference become None."""
    return [{n: plain(row[n]) for n in names} for row in table.select(names).to_pylist()]


def coalesced(case: Case, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join validity ranges that touch and hold values equal within the tolerance; other rows come back as they are.

    The reference keeps two ranges apart where only the last digit of a float sum differs.
    """
    if not rows or "_valid_from" not in rows[0]:
        return rows
    keys = {name for view in case.declarations for entity in view["entities"] for name in entity}
    joined: list[dict[str, Any]] = []
    for row in sorted(rows, key=lambda r: (*(str(r[n]) for n in r if n in keys), r["_valid_from"])):
        before = joined[-1] if joined else None
        values = [name for name in row if name not in ("_valid_from", "_valid_to")]
        touches = before is not None and before["_valid_to"] == row["_valid_from"]
        if before is not None and touches and all(same(before[n], row[n]) for n in values):
            joined[-1] = before | {"_valid_to": row["_valid_to"]}
        else:
            joined.append(row)
    return joined


def plain(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return value


def order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return what orders rows on both sides alike: identity and times first, then numbers."""
    exact = [(v is not None, str(v)) for v in row.values() if v is None or isinstance(v, str | datetime)]
    numbers = [float(v) for v in row.values() if isinstance(v, int | float)]
    return (row.get("row_id", 0), *exact, *numbers)


def same(ours: Any, reference: Any) -> bool:
    if isinstance(ours, float | int) and isinstance(reference, float | int) and not isinstance(ours, bool):
        return math.isclose(ours, reference, rel_tol=RELATIVE, abs_tol=1e-9)
    return bool(ours == reference)
