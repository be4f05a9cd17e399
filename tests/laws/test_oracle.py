"""The oracle itself is judged by the reference answers of the conformance cases."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.conformance.cases import Case, as_time, build_view, load_cases
from tests.conformance.comparing import ViewJudge, first_change, moments, pieces_by_key, plain, same
from tests.conformance.differences import load_differences
from tests.support import oracle, oracle_ranges

ANSWERS = ("get_features_for_events", "get_features_in_range")
REFERENCE = Path(__file__).resolve().parents[1] / "conformance" / "reference"
KNOWN = load_differences(REFERENCE)


def queries(case: Case) -> list[dict[str, Any]]:
    asked = case.content["queries"]
    return [q for q in asked if q["method"] in ANSWERS and not q.get("refused") and "entities" not in q]


def in_scope(case: Case) -> bool:
    (declaration, *others) = case.declarations
    known = declaration.get("kind", "batch") in ("batch", "stream") and not declaration["variant"]
    return known and not others and "service" not in case.declaration and bool(queries(case))


CASES = [case for case in load_cases(REFERENCE) if in_scope(case)]


def test_some_cases_are_in_the_oracles_scope() -> None:
    assert CASES, f"no cases in {REFERENCE}"


def believed(value: Any) -> Any:
    """What the oracle would put in a cell; of an estimate, the values that it judges by."""
    if isinstance(value, list):
        return [believed(element) for element in value]
    return plain(value)


def agrees(judge: ViewJudge, name: str, answer: Any, reference: Any, key: dict[str, Any], time: datetime) -> bool:
    if isinstance(answer, oracle.Roughly | oracle.Ranked):
        return answer.holds(int(reference) if isinstance(answer, oracle.Roughly) else reference)
    return same(believed(answer), reference) or judge.excuses(name, believed(answer), reference, key, time)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_oracle_answers_as_the_reference_engine(case: Case) -> None:
    (declaration,) = case.declarations
    view = build_view(case, declaration)
    judge = ViewJudge(case, declaration, view)
    for query in queries(case):
        reference = [
            {n: plain(v) for n, v in r.items()} for r in pq.read_table(case.folder / query["file"]).to_pylist()
        ]
        known = [difference for difference in KNOWN if difference.concerns(case.name, query["file"])]
        if query["method"] == "get_features_in_range":
            check_range(judge, query, reference, known)
            continue
        for row in reference:
            key, time = {name: row[name] for name in view.key_names}, row[case.spine_time]
            answers = oracle.answers_at(case.events, key, time, judge.judged)
            for name, answer in zip(view.feature_names, answers, strict=True):
                wanted = row[f"{view.name}__{name}"]
                excused = any(difference.excuses(name, row) for difference in known)
                assert excused or agrees(judge, name, answer, wanted, key, time), (name, row, answer, wanted)


def check_range(judge: ViewJudge, query: dict[str, Any], reference: list[dict[str, Any]], known: list[Any]) -> None:
    """The oracle's validity ranges say what the reference's say, at every moment."""
    keys, names = list(judge.view.key_names), list(judge.view.feature_names)
    start, end = as_time(query["start_time"]), as_time(query["end_time"])
    met = {tuple(event[name] for name in keys) for event in judge.case.events}
    for values in met:
        key = dict(zip(keys, values, strict=True))
        pieces = [
            key | dict(zip(names, p.values, strict=True)) | {"_valid_from": p.start, "_valid_to": p.end}
            for p in oracle_ranges.pieces(judge.case.events, key, start, end, judge.judged)
        ]
        for time, ours, theirs in moments(pieces, pieces_by_key(reference, keys).get(values, [])):
            if time < (first_change(judge, start) or start):
                continue
            if not judge.aggregates:
                assert ours is not None, (time, theirs)
                assert theirs is not None, (time, ours)
            left, right = ours or judge.defaults, theirs or judge.defaults
            for name in names:
                excused = any(difference.excuses(name, key) for difference in known)
                assert excused or agrees(judge, name, left[name], right[name], key, time), (name, time, ours, theirs)
