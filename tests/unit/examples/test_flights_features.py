from __future__ import annotations

from datetime import timedelta

import duckdb
import pandas as pd
import pytest

from examples.flights import data
from examples.flights.features import (
    aircraft_history,
    carrier_delays,
    departures,
    flight_delay,
    origin_congestion,
    origin_traffic,
    origin_weather,
)
from featurekit_dagster import FeatureView

VIEWS = [origin_traffic, carrier_delays, aircraft_history, origin_weather]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_every_view_has_365_daily_intervals_from_the_first_day_to_the_clock(view: FeatureView) -> None:
    assert view.materialization_start == data.FIRST_DAY
    assert view.batch_schedule == timedelta(days=1)
    assert (data.NOW - data.FIRST_DAY) / view.batch_schedule == 365
    assert view.online
    assert view.offline


def test_service_asks_for_keys_that_the_spine_has() -> None:
    assert flight_delay.join_keys == ("origin", "carrier", "tailnum")
    assert set(flight_delay.join_keys) <= set(data.spine(100).columns)


@pytest.mark.parametrize("view", [origin_traffic, aircraft_history], ids=lambda view: view.name)
def test_sql_transformations_return_the_declared_columns_and_no_null_key(view: FeatureView) -> None:
    source = f"read_parquet('{data.data_dir() / 'flights.parquet'}')"
    rows = duckdb.sql(view.function(source))
    assert rows.columns == [column.name for column in view.columns]
    (key,) = view.join_keys
    assert rows.filter(f"{key.name} IS NULL").fetchall() == []


@pytest.mark.parametrize(("view", "file"), [(carrier_delays, "flights"), (origin_weather, "weather")])
def test_pandas_transformations_return_the_declared_columns_and_keep_the_given_frame(
    view: FeatureView, file: str
) -> None:
    given = pd.read_parquet(data.data_dir() / f"{file}.parquet").head(5_000)
    before = given.copy()
    rows = view.function(given)
    assert list(rows.columns) == [column.name for column in view.columns]
    pd.testing.assert_frame_equal(given, before)


def test_traffic_counts_flights_that_never_left() -> None:
    source = f"(SELECT * FROM read_parquet('{data.data_dir() / 'flights.parquet'}') WHERE outcome = 'cancelled')"
    counted = duckdb.sql(
        f"SELECT count(*), sum(cancelled), count(arrival_delay) FROM ({origin_traffic.function(source)})"
    )
    assert counted.fetchall() == [(8_255, 8_255, 0)]


def test_departures_are_columns_of_the_file_of_flights_and_become_the_declared_columns() -> None:
    fields = ", ".join(field.name for field in departures.schema or ())
    source = (
        f"(SELECT {fields} FROM read_parquet('{data.data_dir() / 'flights.parquet'}') WHERE departed_at IS NOT NULL)"
    )
    rows = duckdb.sql(origin_congestion.function(source))
    assert rows.columns == [column.name for column in origin_congestion.columns]
    assert rows.filter("origin IS NULL OR delay IS NULL").fetchall() == []
