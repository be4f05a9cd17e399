"""Every case of the folder, read from the offline store and from the source, compared with the reference answers."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.execution.materialize import run_tasks
from tests.conformance.cases import (
    OUT_OF_SCOPE,
    Case,
    as_duration,
    as_time,
    build_workspace,
    conformance_dir,
    is_table,
    load_cases,
    rows_to_ingest,
)
from tests.conformance.comparing import (
    Row,
    ViewJudge,
    first_change,
    moments,
    moved,
    own_faults,
    pieces_by_key,
    plain,
    same,
)
from tests.conformance.differences import Difference, load_differences
from tests.support import oracle

EXTRA = Path(__file__).parent / "extra"
CASES = [*load_cases(conformance_dir()), *load_cases(EXTRA)]
KNOWN = [*load_differences(conformance_dir()), *load_differences(EXTRA)]
SPINE_METHODS = ("get_features_for_events", "get_historical_features")
# What a query says beside the arguments of its method.
ABOUT = ("method", "file", "rows", "columns", "variant", "refused", "error_type", "from_source")
REFUSALS = (TectonValidationError, TypeError)


def in_scope(case: Case) -> bool:
    return not case.needs()


def test_the_folder_holds_cases() -> None:
    assert load_cases(conformance_dir()), "set FEATUREKIT_CONFORMANCE_DIR to the folder of cases"


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
        for declaration in filter(is_table, case.declarations):
            workspace.get_feature_table(declaration["name"]).ingest(rows_to_ingest(case, declaration))
        workspaces[case.name] = workspace
    return workspaces[case.name]


@pytest.mark.parametrize("from_source", [False, True], ids=["store", "source"])
@pytest.mark.parametrize("case", [c for c in CASES if in_scope(c)], ids=lambda c: c.name)
def test_answers_are_those_of_the_reference(
    case: Case, from_source: bool, workspaces: dict[str, Workspace], tmp_path: Path
) -> None:
    if case.content.get("refused") or case.declaration.get("refused"):
        with pytest.raises(REFUSALS):
            build_workspace(case, tmp_path)
        return
    workspace = materialized(case, workspaces, tmp_path)
    for query in case.content["queries"]:
        if query.get("refused"):
            with pytest.raises(REFUSALS):
                answer(case, workspace, query, query.get("from_source"))
            continue
        asked = query.get("from_source", from_source)
        if asked and any(is_table(declaration) for declaration in case.declarations):
            with pytest.raises(REFUSALS, match="feature table"):
                answer(case, workspace, query, asked)
            continue
        expected = pq.read_table(case.folder / query["file"])
        compare(case, workspace, query, answer(case, workspace, query, asked), expected)


def answer(case: Case, workspace: Workspace, query: dict[str, Any], from_source: bool | None) -> pa.Table:
    """Return what our method answers to a query."""
    service = case.declaration.get("service", {}).get("name")
    view = query.get("variant") or case.declarations[0]["name"]
    handle: Any = workspace.get_feature_service(service) if service else workspace.get_feature_view(view)
    method, *every = query["method"].split(" for every ")
    if every:
        return over_days(case, handle, method, every[0])
    arguments = arguments_of(case, query)
    if method in SPINE_METHODS and "start_time" not in arguments and "end_time" not in arguments:
        arguments.setdefault("timestamp_key", case.spine_time)
        table = getattr(handle, method)(case.spine, from_source=from_source, **arguments).to_arrow()
        # the dot of the seed page; and the reference leaves out columns of the spine where there is a secondary key
        table = table.rename_columns([re.sub(r"^(\w+)\.", r"\1__", name) for name in table.column_names])
        return table.drop_columns([n for n in case.spine.column_names if n not in query.get("columns", [n])])
    if method not in ("run", "run_transformation"):
        arguments["from_source"] = from_source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return getattr(handle, method)(**arguments).to_arrow()


def arguments_of(case: Case, query: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a query as our methods take them."""
    arguments: dict[str, Any] = {}
    for name, value in query.items():
        if name in ABOUT or value is None:
            continue
        if name.endswith("_time"):
            arguments[name] = as_time(value)
        elif isinstance(value, dict) and "seconds" in value:
            arguments[name] = as_duration(value)
        elif name == "mock_inputs":
            (file,) = value.values()
            arguments[name] = {"events": pq.read_table(case.folder / file)}
        elif name == "entities" and isinstance(value, str):
            arguments[name] = pq.read_table(case.folder / value)
        elif name == "entities":
            arguments[name] = pl.DataFrame(value)
        else:
            arguments[name] = value
    return arguments


def over_days(case: Case, handle: Any, method: str, words: str) -> pa.Table:
    """Call a method for every interval of a span, as in `every day from feature_start_time, 30 days`."""
    unit, number = re.findall(r"^(\w+) from feature_start_time, (\d+)", words)[0]
    step, start = timedelta(**{f"{unit}s": 1}), as_time(case.declarations[0]["feature_start_time"])
    parts = []
    for begin in (start + n * step for n in range(int(number))):
        rows = getattr(handle, method)(begin, begin + step).to_arrow()
        column = pa.array([begin] * rows.num_rows, pa.timestamp("us", "UTC"))
        parts.append(rows.append_column("interval_start", column))
    return pa.concat_tables(parts)


def judges_of(
    case: Case, workspace: Workspace, query: Mapping[str, Any]
) -> dict[str, tuple[ViewJudge, dict[str, str]]]:
    """Return who judges features, by what stands before their names, and the spine columns of the view's keys."""
    by_name = {d["name"]: d for d in case.declarations}
    if "service" in case.declaration:
        service = workspace.repo.service(case.declaration["service"]["name"])
        used = [(f"{r.label}__", r.view, r.spine_keys) for r in service.features]
    else:
        view = workspace.repo.view(query.get("variant") or case.declarations[0]["name"])
        used = [(f"{view.name}__" if is_spine_query(query) else "", view, view.key_names)]
    return {
        prefix: (ViewJudge(case, by_name[view.name], view), dict(zip(view.key_names, keys, strict=True)))
        for prefix, view, keys in used
    }


def is_spine_query(query: Mapping[str, Any]) -> bool:
    return query["method"] in SPINE_METHODS and "start_time" not in query


def compare(case: Case, workspace: Workspace, query: dict[str, Any], given: pa.Table, expected: pa.Table) -> None:
    """Compare as sets of rows: by row_id where there is one, else by keys and times; ranges moment by moment."""
    where = f"{case.name}: {query['method']} {query['file']}"
    assert set(given.column_names) == set(expected.column_names), where
    ours, theirs = (
        [{name: plain(row[name]) for name in expected.column_names} for row in side.to_pylist()]
        for side in (given, expected)
    )
    known = [difference for difference in KNOWN if difference.concerns(case.name, query["file"])]
    judges = judges_of(case, workspace, query)
    if "_valid_from" in expected.column_names:
        ((judge, _),) = judges.values()
        compare_ranges(where, judge, query, known, ours, theirs)
        return
    assert len(ours) == len(theirs), f"{where}: {len(ours)} rows, expected {len(theirs)}"
    for mine, reference in zip(sorted(ours, key=order), sorted(theirs, key=order), strict=True):
        for name, value in reference.items():
            if not same(mine[name], value) and not any(difference.excuses(name, reference) for difference in known):
                excused = is_excused(case, query, judges, reference, name, mine[name], value)
                assert excused, f"{where}: {name} is {mine[name]!r}, expected {value!r} in {reference}"


def is_excused(
    case: Case,
    query: Mapping[str, Any],
    judges: Mapping[str, tuple[ViewJudge, dict[str, str]]],
    row: Row,
    name: str,
    ours: Any,
    reference: Any,
) -> bool:
    """Tell whether a cell of a row that is no validity range may differ."""
    if name.startswith("approx_") and query["method"] == "get_partial_aggregates":
        return bool(ours) == bool(reference)  # one sketch is not another's, but both are there
    label, _, feature = name.rpartition("__")
    judge, columns = judges.get(f"{label}__" if label else "", (None, {}))
    if judge is None:
        return False
    key: Row | None = None
    time = row.get(case.spine_time if is_spine_query(query) else "")
    if time is not None:
        key = {view_key: row[column] for view_key, column in columns.items()}
    return judge.excuses(feature, ours, reference, key, time)


def compare_ranges(
    where: str, judge: ViewJudge, query: Mapping[str, Any], known: list[Difference], ours: list[Row], theirs: list[Row]
) -> None:
    """Compare what both sides say at every moment, and check our ranges in themselves."""
    start, end = as_time(query["start_time"]), as_time(query["end_time"])
    keys = list(judge.view.key_names)
    assert not own_faults(ours, judge, keys, start, end), f"{where}: {own_faults(ours, judge, keys, start, end)[:3]}"
    faults = range_faults(judge, known, start, ours, theirs)
    view = judge.judged
    if faults and isinstance(view, oracle.AggregateView) and view.stream == "TIME_INTERVAL":
        assert view.tile is not None
        # the reference shows a tile from its start on, against its own point-in-time answers
        early, last = moved(ours, -view.tile, start, end - view.tile), end - view.tile
        faults = range_faults(judge, known, start, early, moved(theirs, timedelta(0), start, last), view.tile)
    assert not faults, f"{where}: {len(faults)} moments differ: {faults[:3]}"


def range_faults(
    judge: ViewJudge,
    known: list[Difference],
    start: datetime,
    ours: list[Row],
    theirs: list[Row],
    early: timedelta = timedelta(0),
) -> list[str]:
    """Return the moments at which two sets of validity ranges say different things."""
    keys, faults = list(judge.view.key_names), []
    trusted = first_change(judge, start) or start
    untrusted_start = any("_valid_from" in difference.rows for difference in known)
    mine_by_key, theirs_by_key = (pieces_by_key(side, keys) for side in (ours, theirs))
    for key in {**mine_by_key, **theirs_by_key}:
        for time, mine, reference in moments(mine_by_key.get(key, []), theirs_by_key.get(key, [])):
            if time < trusted or (untrusted_start and reference and reference["_valid_from"] == start):
                continue
            named = dict(zip(keys, key, strict=True))
            if judge.aggregates or (mine and reference):
                left, right = mine or judge.defaults | named, reference or judge.defaults | named
                differing = [name for name in judge.view.feature_names if not same(left[name], right[name])]
                row = right | {"_valid_from": time}
                differing = [name for name in differing if not any(d.excuses(name, row) for d in known)]
                differing = [n for n in differing if not judge.excuses(n, left[n], right[n], named, time + early)]
            else:
                differing = ["the whole row"]
            if differing:
                faults.append(f"{differing} at {time}: {mine} and {reference}")
    return faults


def order(row: Row) -> tuple[Any, ...]:
    """Return what orders rows on both sides alike: identity and times first, then numbers."""
    exact = [(v is not None, str(v)) for v in row.values() if v is None or isinstance(v, str | datetime)]
    numbers = [float(v) for v in row.values() if isinstance(v, int | float)]
    return (row.get("row_id", 0), *exact, *numbers)
