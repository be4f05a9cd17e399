"""What is refused about functions, windows, secondary keys and untiled views."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.aggregation import FUNCTION_NAMES, PARAMETERIZED, AggregationFunction
from featurekit_dagster.domain.aggregation_functions import (
    approx_count_distinct,
    approx_percentile,
    first,
    last,
    last_distinct,
)
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import Aggregate, Aggregation
from featurekit_dagster.domain.schema import Array, Field, Float64, Int64, String, Timestamp
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries
from tests.unit.domain.declared import DAY, HOUR, SCHEMA, START, aggregated, faults, plain

FUNCTIONS = ", ".join((*FUNCTION_NAMES, *PARAMETERIZED.values()))
MERCHANT = Field("merchant", String)
WITH_MERCHANT = [*SCHEMA, MERCHANT]
TYPED_USER = Entity(name="user", join_keys=[Field("user_id", String)])
LATER_SPELLING: dict[str, Any] = {
    "schema": None,
    "aggregations": None,
    "entities": [TYPED_USER],
    "timestamp_field": "timestamp",
}


def aggregation(**changes: Any) -> Aggregation:
    return Aggregation(**({"column": "amount", "function": "sum", "time_window": 7 * DAY} | changes))


def series(**changes: Any) -> TimeWindowSeries:
    return TimeWindowSeries(**({"series_start": -3 * DAY, "window_size": DAY} | changes))


def found(*aggregations: Any, **changes: Any) -> tuple[str, ...]:
    return faults(aggregated, aggregations=list(aggregations), **changes)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("first", "first(n)"),
        ("last_distinct", "last_distinct(n)"),
        ("first_distinct", "first_distinct(n)"),
        ("approx_percentile", "approx_percentile(percentile, precision)"),
    ],
)
def test_a_function_with_parameters_is_not_given_as_text(name: str, call: str) -> None:
    assert found(aggregation(function=name)) == (
        f"aggregation '{name} of amount': function {name!r} has parameters; give {call}, called and not as text",
    )


def test_approx_count_distinct_may_be_text_because_all_its_parameters_have_defaults() -> None:
    by_text = aggregated(aggregations=[aggregation(column="user_id", function="approx_count_distinct")])
    by_call = aggregated(aggregations=[aggregation(column="user_id", function=approx_count_distinct())])
    assert by_text.aggregates == by_call.aggregates
    assert by_text.aggregates[0].precision == 8


@pytest.mark.parametrize("function", [last, first, approx_percentile])
def test_a_function_with_parameters_is_called(function: Any) -> None:
    (fault,) = found(aggregation(function=function, name="x"))
    assert fault.startswith("aggregation 'x': function is a function; call it, as ")
    assert function.__name__ in fault


def test_parameters_are_checked_however_the_function_was_made() -> None:
    assert found(aggregation(function=AggregationFunction("last_n", n=-1), name="x")) == (
        "aggregation 'x': n is -1; give an int from 1 to 10000",
    )
    (fault,) = found(aggregation(function=AggregationFunction("median"), name="x"))
    assert fault == f"aggregation 'x': 'median' is no function with parameters; use {', '.join(PARAMETERIZED.values())}"


@pytest.mark.parametrize(
    ("column", "function", "message"),
    [
        ("page", approx_percentile(0.5), "'approx_percentile(percentile, precision)' takes integer and float columns"),
        ("amount", approx_count_distinct(), "'approx_count_distinct(precision)' takes string and integer columns"),
        ("pages", last(3), "'last(n)' takes columns of plain values, not Array(Int64)"),
        ("pages", last_distinct(3), "'last_distinct(n)' takes columns of plain values"),
        ("timestamp", "mean", "'mean' takes integer and float columns, not Timestamp"),
    ],
)
def test_a_function_is_applied_to_types_that_it_takes(column: str, function: Any, message: str) -> None:
    schema = [*SCHEMA, Field("page", String), Field("pages", Array(Int64))]
    (fault,) = found(aggregation(column=column, function=function), schema=schema, timestamp_field="timestamp")
    assert message in fault


@pytest.mark.parametrize("window", ["7d", 7, None, LifetimeWindow, TimeWindowSeries])
def test_a_window_is_one_of_the_windows(window: Any) -> None:
    (fault,) = found(aggregation(time_window=window, name="x"))
    assert fault.startswith("aggregation 'x': time_window is ")
    assert fault.endswith("; give a TimeWindow, a TimeWindowSeries, a LifetimeWindow or a timedelta")


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (series(series_start=DAY), "series_start 1 day, 0:00:00 is not negative; windows look back, so give less "),
        (series(series_start=timedelta(0)), "series_start 0:00:00 is not negative; windows look back, so give less "),
        (series(series_end=DAY), "series_end 1 day, 0:00:00 is positive; windows look back, so give zero or less"),
        (series(window_size=timedelta(0)), "window_size 0:00:00 is not positive; give a longer one"),
        (series(step_size=timedelta(0)), "step_size 0:00:00 is not positive; give a longer one"),
        (series(step_size=-DAY), "step_size -1 day, 0:00:00 is not positive; give a longer one"),
        (series(window_size=2 * DAY), "the series has fewer than two windows; give an earlier series_start, or a "),
        (series(series_end=-2 * DAY), "the series has fewer than two windows; give an earlier series_start, or a "),
        (series(window_size=9 * DAY), "the series has fewer than two windows; give an earlier series_start, or a "),
        (series(series_start=-1_001 * DAY), "the series has 1001 windows; give at most 1000, by a longer step_size"),
        (series(series_start="3d"), "series_start is '3d'; give a timedelta"),
        (series(step_size=timedelta(microseconds=1)), "step_size 0:00:00.000001 is not in whole seconds; round it"),
    ],
)
def test_a_series_has_two_windows_or_more_that_look_back(window: TimeWindowSeries, message: str) -> None:
    (fault,) = found(aggregation(time_window=window, name="x"))
    assert fault.startswith(f"aggregation 'x': {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"series_start": -3 * DAY - HOUR / 2}, "series_start -3d30m is not a multiple of aggregation_interval 1h"),
        ({"series_end": -HOUR / 2}, "series_end -30m is not a multiple of aggregation_interval 1h"),
        ({"window_size": 1.5 * HOUR, "step_size": DAY}, "window_size 1h30m is not a multiple of aggregation_interval"),
        ({"step_size": 1.5 * HOUR}, "step_size 1h30m is not a multiple of aggregation_interval 1h"),
    ],
)
def test_all_of_a_series_is_in_whole_tiles(changes: dict[str, timedelta], message: str) -> None:
    (fault,) = found(aggregation(time_window=series(**changes), name="x"))
    assert fault.startswith(f"feature 'x': {message}")
    assert fault.endswith("; give a multiple of it")


def test_a_series_is_one_array_with_the_oldest_window_first() -> None:
    view = aggregated(aggregations=[aggregation(function="count", time_window=series())])
    (feature,) = view.aggregates
    assert feature.name == "amount_count_1d_1h_series_3d_0s_1d"
    assert feature.dtype == Array(Int64)
    assert feature.default == [0, 0, 0]
    assert [span.end_us for span in feature.spans] == sorted(span.end_us for span in feature.spans)


def test_a_lifetime_window_needs_the_time_it_begins() -> None:
    assert found(aggregation(time_window=LifetimeWindow(), name="x")) == (
        "feature 'x': a LifetimeWindow without lifetime_start_time; give the first instant that counts",
    )
    assert faults(aggregated, lifetime_start_time=START) == (
        "lifetime_start_time is given without a LifetimeWindow; leave it out",
    )


def test_a_lifetime_begins_where_a_tile_begins() -> None:
    window = aggregation(time_window=LifetimeWindow(), name="x")
    assert found(window, lifetime_start_time=START + HOUR / 2) == (
        "lifetime_start_time 2024-01-01T00:30Z is not on the 1h grid of the Unix epoch, on which aggregation_interval "
        "puts tiles; nearest are 2024-01-01T00:00Z and 2024-01-01T01:00Z",
    )
    view = aggregated(aggregations=[window], lifetime_start_time=START - 30 * DAY)
    assert view.materialization_start == START - 30 * DAY
    assert view.aggregates[0].spans[0].since_us == 1_701_475_200_000_000


def test_a_lifetime_begins_in_the_calendar() -> None:
    first_day = datetime(1, 1, 1, 5, tzinfo=UTC)
    (fault,) = found(aggregation(time_window=LifetimeWindow()), lifetime_start_time=first_day)
    assert fault == "lifetime_start_time 0001-01-01T05:00Z less one batch_schedule is before year 1; give a later time"


def test_two_precisions_of_one_sketch_over_one_column_are_refused_because_they_are_stored_under_one_name() -> None:
    both = [aggregation(function=approx_percentile(p, n), name=f"p{n}") for p, n in ((0.5, 100), (0.9, 200))]
    assert found(*both) == (
        "approx_percentile of 'amount' has precisions 100 and 200, but is stored once per column; give it one "
        "precision",
    )
    counts = [aggregation(column="user_id", function=approx_count_distinct(n), name=f"c{n}") for n in (8, 12)]
    assert found(*counts) == (
        "approx_count_distinct of 'user_id' has precisions 8 and 12, but is stored once per column; give it one "
        "precision",
    )
    same = [aggregation(function=approx_percentile(p), name=f"p{p}") for p in (0.5, 0.9)]
    assert len(aggregated(aggregations=same).partials) == 2


def test_tiles_of_two_columns_under_one_name_are_refused() -> None:
    schema = [*SCHEMA, Field("non_distinct_n3_amount", Float64)]
    clash = [aggregation(function=last(3)), aggregation(column="non_distinct_n3_amount", function="last")]
    assert found(*clash, schema=schema) == (
        "tiles of columns 'amount' and 'non_distinct_n3_amount' would both be stored as 'last_non_distinct_n3_amount'; "
        "rename one",
    )


def secondary(**changes: Any) -> dict[str, Any]:
    return {"schema": WITH_MERCHANT, "aggregation_secondary_key": "merchant"} | changes


def test_a_secondary_key_makes_every_feature_an_array_beside_an_array_of_keys_per_window() -> None:
    view = aggregated(**secondary(aggregations=[aggregation(), aggregation(time_window=TimeWindow(3 * DAY, -DAY))]))
    assert view.feature_names == (
        "merchant_keys_3d_offset_1d",
        "merchant_keys_7d",
        "amount_sum_7d_1h",
        "amount_sum_3d_1h_offset_1d",
    )
    assert view.features[0].dtype == Array(String)
    assert view.features[2].dtype == Array(Float64)
    assert view.tile_keys == ("user_id", "merchant")
    assert MERCHANT in view.columns


def test_a_secondary_key_is_a_text_column_of_the_output() -> None:
    assert faults(aggregated, **secondary(schema=SCHEMA)) == (
        "aggregation_secondary_key 'merchant' has no type; declare it in schema as String "
        "(declared: user_id, timestamp, amount)",
    )
    assert faults(aggregated, **secondary(schema=[*SCHEMA, Field("merchant", Int64)])) == (
        "aggregation_secondary_key 'merchant' is Int64; it must be String, so convert it in the transformation",
    )
    assert faults(aggregated, aggregation_secondary_key="user_id") == (
        "aggregation_secondary_key 'user_id' is a join key; name another column of the output",
    )
    assert faults(aggregated, aggregation_secondary_key="timestamp") == (
        "aggregation_secondary_key 'timestamp' is the timestamp; name another column of the output",
    )


def test_a_secondary_key_without_a_schema_is_text() -> None:
    feature = Aggregate(input_column=Field("amount", Float64), function="sum", time_window=DAY)
    view = aggregated(**LATER_SPELLING, features=[feature], aggregation_secondary_key="merchant")
    assert view.secondary_key == MERCHANT
    assert MERCHANT in view.columns


def test_an_aggregated_column_may_be_the_secondary_key() -> None:
    view = aggregated(**secondary(aggregations=[aggregation(column="merchant", function="count")]))
    assert view.feature_names == ("merchant_keys_7d", "merchant_count_7d_1h")


def test_a_secondary_key_needs_aggregates() -> None:
    assert faults(plain, **secondary()) == ("aggregation_secondary_key is given without aggregations; leave it out",)


def test_a_series_beside_a_secondary_key_is_refused() -> None:
    (fault,) = faults(aggregated, **secondary(aggregations=[aggregation(time_window=series(), name="x")]))
    assert fault == (
        "feature 'x': a TimeWindowSeries is not taken beside aggregation_secondary_key, which makes every feature an "
        "array already; declare one TimeWindow for each of its windows"
    )


def test_names_of_the_lists_of_secondary_keys_are_taken() -> None:
    assert faults(aggregated, **secondary(aggregations=[aggregation(name="merchant_keys_7d")])) == (
        "feature 'merchant_keys_7d' has the name of a list of secondary keys; rename it",
    )
    key = Field("merchant_keys_7d", String)
    odd = Entity(name="odd", join_keys=[key])
    assert faults(aggregated, **secondary(schema=[*WITH_MERCHANT, key], entities=[odd])) == (
        "column 'merchant_keys_7d' has the name of a list of secondary keys; rename it",
    )
    (fault,) = faults(aggregated, **secondary(aggregations=[aggregation(name="Merchant_keys_7d")]))
    assert fault == "columns 'merchant_keys_7d' and 'Merchant_keys_7d' differ only in case; rename one"


def test_a_secondary_key_named_like_a_stored_tile_column_is_refused() -> None:
    found_ = faults(aggregated, schema=[*SCHEMA, Field("Sum_amount", String)], aggregation_secondary_key="Sum_amount")
    assert found_ == (
        "aggregation_secondary_key 'Sum_amount' has the name under which tiles of column 'amount' are stored; rename "
        "one",
    )


UNTILED: dict[str, Any] = {"compaction_enabled": True, "online": False, "aggregation_interval": None}


def test_an_untiled_view_needs_no_aggregation_interval_and_its_windows_no_grid() -> None:
    view = aggregated(**UNTILED, aggregations=[aggregation(time_window=TimeWindow(timedelta(seconds=90), -HOUR))])
    assert view.feature_names == ("amount_sum_1m30s_offset_1h",)
    assert (view.is_tiled, view.tile_us, view.batch_schedule) == (False, 1, DAY)
    assert view.stored_time_column == "timestamp"


def test_an_aggregation_interval_of_an_untiled_view_is_only_the_default_of_the_schedule() -> None:
    view = aggregated(**(UNTILED | {"aggregation_interval": 5 * HOUR, "batch_schedule": None}))
    assert (view.aggregation_interval, view.batch_schedule) == (None, 5 * HOUR)
    assert aggregated(**(UNTILED | {"aggregation_interval": 5 * HOUR})).batch_schedule == DAY
    assert faults(aggregated, **(UNTILED | {"batch_schedule": None})) == (
        "batch_schedule is not given; it is the width of one interval, such as timedelta(days=1)",
    )


def test_a_series_over_untiled_events_is_refused() -> None:
    (fault,) = faults(aggregated, **UNTILED, aggregations=[aggregation(time_window=series(), name="x")])
    assert fault == (
        "feature 'x': a TimeWindowSeries is not taken with compaction_enabled; declare one TimeWindow for each of its "
        "windows"
    )


def test_a_lifetime_over_untiled_events_begins_at_any_instant() -> None:
    start = START - timedelta(microseconds=1)
    view = aggregated(**UNTILED, aggregations=[aggregation(time_window=LifetimeWindow())], lifetime_start_time=start)
    assert view.feature_names == ("amount_sum_lifetime",)
    assert view.lifetime_start_time == start


def test_compaction_changes_nothing_of_a_view_without_aggregates() -> None:
    view = plain(compaction_enabled=True, online=False)
    assert (view.tile_us, view.stored_time_column) == (None, "timestamp")


def test_settings_of_aggregates_are_refused_without_them() -> None:
    assert faults(plain, lifetime_start_time=START) == (
        "lifetime_start_time is given without aggregations; leave it out",
    )


def test_every_function_is_declared_over_every_window() -> None:
    schema = [*SCHEMA, Field("page", String), Field("seen", Timestamp)]
    windows = [TimeWindow(DAY), TimeWindow(DAY, -DAY), series(), LifetimeWindow()]
    functions: list[tuple[str, Any]] = [("amount", name) for name in FUNCTION_NAMES]
    functions += [(c, f(2)) for c in ("page", "seen") for f in (last, first, last_distinct)]
    functions += [("page", approx_count_distinct()), ("amount", approx_percentile(0.25))]
    view = aggregated(
        schema=schema,
        timestamp_field="timestamp",
        lifetime_start_time=START,
        aggregations=[Aggregation(c, f, w) for c, f in functions for w in windows],
    )
    assert len(set(view.feature_names)) == len(functions) * len(windows)
    assert "page_last_2_lifetime_1h" in view.feature_names
    assert "amount_approx_percentile_p0_25_1d_1h_offset_1d" in view.feature_names
