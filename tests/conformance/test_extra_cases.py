"""The cases of our own are what the oracle says today, and the runner sees a wrong answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conformance.cases import load_cases
from tests.conformance.differences import holds
from tests.conformance.extra_cases import FOLDER, write_all
from tests.conformance.test_conformance import compare, materialized


def test_extra_cases_are_what_the_oracle_says(tmp_path: Path) -> None:
    write_all(tmp_path)
    written, kept = load_cases(tmp_path), load_cases(FOLDER)
    assert [case.content for case in written] == [case.content for case in kept]
    for new, old in zip(written, kept, strict=True):
        for file in sorted(old.folder.glob("*.parquet")):
            assert pq.read_table(new.folder / file.name).equals(pq.read_table(file)), file


def spoilt(table: pa.Table, name: str) -> pa.Table:
    """Return a table in whose last row with a number one number is off by one."""
    values = table[name].to_pylist()
    row = max(number for number, value in enumerate(values) if value is not None)
    values[row] += 1
    return table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type))


@pytest.mark.parametrize("number", [0, 1, 2], ids=["spine", "range", "history"])
def test_one_wrong_number_is_seen(number: int, tmp_path: Path) -> None:
    case = next(case for case in load_cases(FOLDER) if case.name == "x_10m_two_keys_one_entity")
    workspace, query = materialized(case, {}, tmp_path), case.content["queries"][number]
    expected = pq.read_table(case.folder / query["file"])
    name = next(name for name in expected.column_names if "k_max" in name)
    compare(case, workspace, query, expected, expected)
    with pytest.raises(AssertionError, match="k_max"):
        compare(case, workspace, query, spoilt(expected, name), expected)


@pytest.mark.parametrize(
    ("text", "row", "wanted"),
    [
        ("all", {}, True),
        ("user_id == 'tie'", {"user_id": "tie"}, True),
        ("user_id == 'tie'", {"user_id": "u0"}, False),
        ("user_id in ('tie', 'edge') and not k > 3", {"user_id": "edge", "k": 2}, True),
        ("user_id in ('tie', 'edge') and not k > 3", {"user_id": "edge", "k": 4}, False),
        ("rows that nobody has thought of", {"user_id": "u0"}, True),
    ],
)
def test_conditions_of_known_differences_are_read(text: str, row: dict[str, Any], wanted: bool) -> None:
    assert holds(text, row) is wanted
