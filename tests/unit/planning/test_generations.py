"""When stored rows follow a changed declaration, and which generation is written and read."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from featurekit_dagster.aggregation_functions import last
from featurekit_dagster.domain.feature_view import Aggregation, FeatureView
from featurekit_dagster.domain.schema import Array, DataType, Field, Float64, Int64, Map, String, Struct, parse_type
from featurekit_dagster.domain.sources import FilteredSource
from featurekit_dagster.planning.generations import (
    GenerationRecord,
    GenerationState,
    Resolution,
    StoredShape,
    changes,
    following_shape,
    laid_out_fields,
    resolve,
)
from tests.unit.domain.declared import DAY, HOUR, START, TRANSACTIONS, aggregated, plain

NOW = datetime(2024, 6, 1, tzinfo=UTC)
CURRENT, BUILDING, RETIRED = GenerationState.CURRENT, GenerationState.BUILDING, GenerationState.RETIRED
SUM = Aggregation("amount", "sum", DAY)


def spending(**changed: Any) -> FeatureView:
    return aggregated(**{"online": True, "offline": True, "aggregations": [SUM], **changed})


def shape(**changed: Any) -> StoredShape:
    return StoredShape.of(spending(**changed))


def record(generation: int, state: GenerationState, stored: StoredShape | None) -> GenerationRecord:
    return GenerationRecord(generation=generation, state=state, shape=stored, created_at=NOW, changed_at=NOW)


BASE = shape()
OTHER_CODE = replace(BASE, code="other")
NEW_COLUMN = shape(aggregations=[SUM, Aggregation("amount", "max", DAY)])
OTHER_TILE = shape(aggregation_interval=2 * HOUR)
OTHER_INDEX = replace(BASE, online_index=("other",))


def test_where_nothing_was_written_a_changed_declaration_begins_anew_without_a_decision() -> None:
    empty, built = replace(record(1, CURRENT, BASE), is_empty=True), record(2, RETIRED, BASE)
    assert resolve(OTHER_CODE, [empty]).write == 2
    assert resolve(OTHER_CODE, [empty]).changes == ()
    assert resolve(BASE, [empty]).write == 1
    assert resolve(OTHER_CODE, [empty, built]).write == 3
    assert (
        resolve(OTHER_CODE, [record(1, CURRENT, BASE), replace(record(2, BUILDING, BASE), is_empty=True)]).write is None
    )


def test_a_shape_is_read_back_from_its_text_also_when_a_later_version_wrote_more() -> None:
    for each in (BASE, NEW_COLUMN, StoredShape.of(plain()), replace(BASE, secondary=("ad", "String"), start_us=None)):
        assert StoredShape.from_text(each.to_text()) == each
        assert StoredShape.from_text(json.dumps(json.loads(each.to_text()) | {"later": [1]})) == each


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"aggregations": [SUM, Aggregation("amount", "sum", 7 * DAY)]},
        {"aggregations": [Aggregation("amount", "sum", 30 * DAY, name="renamed")]},
        {"feature_start_time": START - 30 * DAY},
        {"online": False},
        {"offline": False},
        {"ttl": None, "description": "Words.", "owner": "anna", "tags": {"a": "b"}},
        {"max_backfill_interval": 7 * DAY},
    ],
)
def test_stored_rows_follow_new_windows_other_starts_stores_and_words(changed: dict[str, Any]) -> None:
    assert changes(BASE, shape(**changed)) == ()


def test_stored_rows_follow_when_a_column_is_declared_no_more() -> None:
    assert changes(NEW_COLUMN, BASE) == ()


def test_a_column_that_was_dropped_is_new_when_it_comes_back() -> None:
    after = following_shape(NEW_COLUMN, BASE)
    assert changes(after, BASE) == ()
    assert [change.what for change in changes(after, NEW_COLUMN)] == ["column max_amount"]


@pytest.mark.parametrize(
    ("declared", "text", "keepable"),
    [
        (OTHER_CODE, "the transformation's code", True),
        (replace(BASE, mode="sql"), "mode pandas -> sql", True),
        (shape(batch_schedule=2 * DAY), "batch_schedule 1d -> 2d", True),
        (OTHER_TILE, "aggregation_interval 1h -> 2h", False),
        (NEW_COLUMN, "new column max_amount: Float64", False),
        (replace(BASE, values=(("sum_amount", "Int64"),)), "column sum_amount Float64 -> Int64", False),
        (replace(BASE, keys=(("user_id", "Int64"),)), "join keys user_id: String -> user_id: Int64", False),
        (replace(BASE, secondary=("ad_id", "Int64")), "secondary key none -> ad_id: Int64", False),
        (replace(BASE, time_column="paid_at"), "time column _anchor_time -> paid_at", False),
        (replace(BASE, tile_us=1), "aggregation_interval 1h -> none (events)", False),
        (OTHER_INDEX, "online_serving_index user_id -> other", False),
    ],
)
def test_each_part_that_stored_rows_cannot_follow_is_told_with_what_it_was(
    declared: StoredShape, text: str, keepable: bool
) -> None:
    (change,) = changes(BASE, declared)
    assert (change.text, change.keepable) == (text, keepable)


def test_other_inputs_are_told_without_those_that_stayed() -> None:
    before = shape(sources=[FilteredSource(TRANSACTIONS)])
    (change,) = changes(before, shape(sources=[FilteredSource(TRANSACTIONS, start_time_offset=-6 * DAY)]))
    assert (change.what, change.keepable) == ("inputs", True)
    assert change.text == (
        "inputs transactions=transactions [MATERIALIZATION_START_TIME, MATERIALIZATION_END_TIME) -> "
        "transactions=transactions [MATERIALIZATION_START_TIME-6d, MATERIALIZATION_END_TIME)"
    )


def test_all_changes_are_told_at_once() -> None:
    found = changes(BASE, replace(NEW_COLUMN, code="other", batch_schedule_us=3_600_000_000))
    assert [change.what for change in found] == ["column max_amount", "batch_schedule", "transformation"]


def test_the_precision_of_a_sketch_and_the_length_of_a_list_are_part_of_a_column() -> None:
    def with_last(n: int) -> StoredShape:
        return shape(aggregations=[Aggregation("amount", last(n), DAY)])

    assert [change.keepable for change in changes(with_last(3), with_last(4))] == [False]


def test_the_serving_index_counts_only_between_two_declarations_that_are_online() -> None:
    offline_only = shape(online=False)
    assert offline_only.online_index == ()
    assert changes(offline_only, OTHER_INDEX) == changes(OTHER_INDEX, offline_only) == ()
    # while the view is not online the index is remembered, because what was written online is still there
    assert following_shape(BASE, offline_only).online_index == ("user_id",)
    assert changes(following_shape(BASE, offline_only), OTHER_INDEX)


def test_other_code_is_a_change_and_equal_code_under_another_name_is_none() -> None:
    def doubled(transactions: pd.DataFrame) -> pd.DataFrame:
        return transactions.assign(amount=transactions["amount"] * 2)

    def same(transactions: pd.DataFrame) -> pd.DataFrame:
        return transactions

    assert [change.what for change in changes(BASE, shape(function=doubled))] == ["transformation"]
    assert changes(BASE, shape(function=same)) == ()


def test_online_records_stay_laid_out_as_they_were_begun() -> None:
    max_first = shape(aggregations=[Aggregation("amount", "max", DAY), SUM])
    assert changes(NEW_COLUMN, max_first) == ()
    assert following_shape(NEW_COLUMN, max_first).online_values == NEW_COLUMN.online_values
    dropped = following_shape(NEW_COLUMN, BASE)
    assert (dropped.online_values, dropped.online_dropped) == (NEW_COLUMN.online_values, ("max_amount",))
    assert following_shape(dropped, BASE) == following_shape(dropped, replace(BASE, online_values=())) == dropped
    fields = laid_out_fields(spending(), dropped)
    assert fields == (Field("sum_amount", Float64), Field("max_amount", Float64))
    assert laid_out_fields(spending(), None) == fields[:1]


@pytest.mark.parametrize(
    "dtype", [Int64, Array(Int64), Map(String, Array(Float64)), Struct([Field("a", Array(Int64)), Field("b", String)])]
)
def test_a_type_is_read_back_from_its_text(dtype: DataType) -> None:
    assert parse_type(str(dtype)) == dtype


@pytest.mark.parametrize("text", ["", "(Int64)", "Array(Int64", "Int64)"])
def test_a_text_that_is_no_type_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="type"):
        parse_type(text)


# ---- which generation is written and read


def test_a_view_that_nobody_knows_writes_and_reads_generation_1() -> None:
    assert resolve(BASE, ()) == Resolution()


def test_a_generation_of_before_shapes_were_kept_is_taken_over() -> None:
    assert resolve(BASE, [record(1, CURRENT, None)]) == Resolution()


def test_a_declaration_that_stored_rows_follow_goes_on_writing() -> None:
    assert resolve(BASE, [record(1, CURRENT, NEW_COLUMN)]) == Resolution()


def test_a_changed_transformation_waits_and_reads_go_on() -> None:
    found = resolve(OTHER_CODE, [record(1, CURRENT, BASE)])
    assert (found.write, found.read, found.read_online, found.replaces) == (None, 1, 1, None)
    assert [change.what for change in found.changes] == ["transformation"]


@pytest.mark.parametrize("declared", [NEW_COLUMN, OTHER_TILE, replace(BASE, keys=(("user_id", "Int64"),))])
def test_what_stored_rows_do_not_have_is_read_from_the_generation_that_will_have_it(declared: StoredShape) -> None:
    found = resolve(declared, [record(1, CURRENT, BASE)])
    assert (found.write, found.read, found.read_online) == (None, 2, 2)
    rebuilt = resolve(declared, [record(1, CURRENT, BASE), record(2, BUILDING, declared)])
    assert (rebuilt.write, rebuilt.read, rebuilt.read_online, rebuilt.replaces) == (2, 2, 2, 1)


def test_another_serving_index_moves_online_reads_alone() -> None:
    found = resolve(OTHER_INDEX, [record(1, CURRENT, BASE), record(2, BUILDING, OTHER_INDEX)])
    assert (found.write, found.read, found.read_online, found.replaces) == (2, 1, 2, 1)


def test_while_a_generation_is_built_jobs_write_it_and_reads_answer_from_the_old_one() -> None:
    found = resolve(OTHER_CODE, [record(1, CURRENT, BASE), record(2, BUILDING, OTHER_CODE)])
    assert found == Resolution(write=2, read=1, read_online=1, replaces=1)


def test_a_generation_that_took_over_is_written_and_read() -> None:
    found = resolve(OTHER_CODE, [record(1, RETIRED, BASE), record(2, CURRENT, OTHER_CODE)])
    assert found == Resolution(write=2, read=2, read_online=2, retired=(1,))


def test_a_declaration_that_is_put_back_writes_the_old_generation_again() -> None:
    found = resolve(BASE, [record(1, CURRENT, BASE), record(2, BUILDING, OTHER_CODE)])
    assert found == Resolution(write=1, read=1, read_online=1)


def test_a_retired_generation_is_neither_written_nor_read_whatever_its_shape() -> None:
    found = resolve(BASE, [record(1, RETIRED, BASE), record(2, CURRENT, OTHER_CODE)])
    assert (found.write, found.read) == (None, 2)
    assert resolve(BASE, [record(3, RETIRED, BASE)]).write == 4


def test_changes_are_told_against_the_generation_that_was_begun_last() -> None:
    records = [record(1, CURRENT, BASE), record(2, BUILDING, OTHER_CODE)]
    found = resolve(replace(OTHER_CODE, batch_schedule_us=3_600_000_000), records)
    assert (found.write, [change.what for change in found.changes]) == (None, ["batch_schedule"])


def test_a_rebuild_without_any_change_writes_the_new_generation() -> None:
    found = resolve(BASE, [record(1, CURRENT, BASE), record(2, BUILDING, BASE)])
    assert found == Resolution(write=2, read=1, read_online=1, replaces=1)


def test_a_start_on_a_wider_schedule_is_wherever_the_wider_grid_puts_it() -> None:
    wide = shape(batch_schedule=2 * DAY)
    assert wide.start_us is not None
    assert wide.start_us % (2 * DAY // timedelta(microseconds=1)) == 0
