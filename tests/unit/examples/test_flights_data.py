from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from examples.flights import data

LATEST_ANSWER = timedelta(hours=2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def flights(home: Path) -> pd.DataFrame:
    return pd.read_parquet(data.data_dir(home) / "flights.parquet")


@pytest.fixture(scope="module")
def weather(home: Path) -> pd.DataFrame:
    return pd.read_parquet(data.data_dir(home) / "weather.parquet")


@pytest.fixture(scope="module")
def spine(home: Path) -> pd.DataFrame:
    return data.spine(home=home)


def test_no_row_of_the_package_is_lost(flights: pd.DataFrame, weather: pd.DataFrame) -> None:
    assert len(flights) == 336_776
    assert sorted(flights["flight_id"]) == list(range(1, 336_777))
    assert len(weather) == 26_115


def test_times_are_microseconds_in_utc(flights: pd.DataFrame, weather: pd.DataFrame) -> None:
    times = [flights[name] for name in ("known_at", "scheduled_departure", "departed_at")] + [weather["observed_at"]]
    assert {str(time.dtype) for time in times} == {"datetime64[us, UTC]"}


def test_outcome_is_never_known_before_the_flight_could_be_asked_about(flights: pd.DataFrame) -> None:
    asked = flights["scheduled_departure"] - LATEST_ANSWER
    assert (flights["known_at"] > asked).all()


def test_arrival_is_after_the_time_in_the_air_and_within_four_hours_of_taxiing(flights: pd.DataFrame) -> None:
    arrived = flights[flights["outcome"] == "arrived"]
    taxi = arrived["known_at"] - arrived["departed_at"] - pd.to_timedelta(arrived["air_time"], unit="min")
    assert taxi.min() > timedelta(0)
    assert taxi.max() < timedelta(hours=4)


def test_arrival_agrees_with_the_scheduled_one_wherever_both_lie_in_new_yorks_time_zone(flights: pd.DataFrame) -> None:
    boston = flights[(flights["dest"] == "BOS") & (flights["outcome"] == "arrived")]
    scheduled = boston["known_at"] - pd.to_timedelta(boston["arr_delay"], unit="min")
    planned = scheduled - boston["scheduled_departure"]
    assert planned.between(timedelta(minutes=40), timedelta(hours=2)).all()


def test_every_flight_has_one_of_three_outcomes(flights: pd.DataFrame) -> None:
    assert flights["outcome"].value_counts().to_dict() == {"arrived": 327_346, "cancelled": 8_255, "diverted": 1_175}
    assert flights.groupby("outcome")["late"].count().to_dict() == {"arrived": 327_346, "cancelled": 0, "diverted": 0}


def test_rows_are_stored_in_the_order_they_became_known(flights: pd.DataFrame, weather: pd.DataFrame) -> None:
    assert flights["known_at"].is_monotonic_increasing
    assert weather["observed_at"].is_monotonic_increasing


def test_weather_is_unique_per_airport_and_hour_also_where_the_clocks_go_back(weather: pd.DataFrame) -> None:
    assert not weather.duplicated(["origin", "observed_at"]).any()
    first_one_oclock = datetime(2013, 11, 3, 5, tzinfo=UTC)
    both = weather[weather["observed_at"].isin([first_one_oclock, first_one_oclock + timedelta(hours=1)])]
    assert len(both) == 6
    assert weather["observed_at"].dt.floor("h").equals(weather["observed_at"])


@pytest.mark.parametrize(
    ("day", "utc_hour"),
    [("2013-03-09", 10), ("2013-03-10", 9), ("2013-11-02", 9), ("2013-11-03", 10)],
    ids=["before_spring", "in_spring", "before_autumn", "in_autumn"],
)
def test_a_departure_at_five_local_follows_daylight_saving(flights: pd.DataFrame, day: str, utc_hour: int) -> None:
    on_day = flights[flights["scheduled_departure"].dt.strftime("%Y-%m-%d") == day]
    at_five = on_day.loc[on_day["hour"] == 5, "scheduled_departure"]
    assert len(at_five) > 0
    assert set(at_five.dt.hour) == {utc_hour}


def test_spine_asks_each_drawn_flight_once_in_order_and_before_2014(spine: pd.DataFrame) -> None:
    assert len(spine) == 100_000
    assert spine["flight_id"].is_unique
    assert spine["prediction_time"].is_monotonic_increasing
    assert spine["prediction_time"].max() < data.NOW
    assert spine["late"].mean() == pytest.approx(0.244, abs=0.01)


def test_spine_has_only_flights_that_arrived_later_than_they_are_asked_about(
    spine: pd.DataFrame, flights: pd.DataFrame
) -> None:
    both = spine[["flight_id", "prediction_time", "late"]].merge(flights, on="flight_id", validate="1:1")
    assert (both["outcome"] == "arrived").all()
    assert (both["late_x"] == (both["arr_delay"] >= 15)).all()
    assert (both["known_at"] > both["prediction_time"]).all()


def test_same_seed_draws_the_same_flights_and_another_seed_others(home: Path) -> None:
    once, again, other = (data.spine(500, seed=seed, home=home) for seed in (7, 7, 8))
    pd.testing.assert_frame_equal(once, again)
    assert set(once["flight_id"]) != set(other["flight_id"])


def test_preparing_twice_leaves_the_files_alone_and_no_drafts(home: Path) -> None:
    folder = data.data_dir(home)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert data.data_dir(home) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert set(before) == {"flights.parquet", "weather.parquet"}
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_one_day_of_flights_lies_in_few_row_groups(home: Path) -> None:
    groups: list[Any] = duckdb.sql(
        """
        SELECT stats_min_value::TIMESTAMPTZ <= '2013-06-02' AND stats_max_value::TIMESTAMPTZ >= '2013-06-01'
        FROM parquet_metadata($path) WHERE path_in_schema = 'known_at'
        """,
        params={"path": str(data.data_dir(home) / "flights.parquet")},
    ).fetchall()
    assert len(groups) > 10
    assert sum(touched for (touched,) in groups) <= 2
