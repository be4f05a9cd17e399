"""Features of flights from New York: traffic per airport, delays per carrier and aircraft, weather.

Every view runs once a day and is served from the first day on which its longest window is full; all of them therefore
begin on 1 January 2013 and have 365 intervals up to the workspace's fixed clock. One view more follows departures as
they are sent, which `featurekit replay` does.
"""

from __future__ import annotations

from datetime import timedelta

import pandas as pd

from examples.flights.data import FIRST_DAY, HOME, NOW, data_dir
from featurekit_dagster import (
    Aggregation,
    AggregationLeadingEdge,
    BatchSource,
    Entity,
    FeatureService,
    Field,
    FileConfig,
    FilteredSource,
    Float64,
    Int64,
    PushConfig,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
    stream_feature_view,
)

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OWNER = "team:flights"

# data_dir() makes the files on the first import, a matter of seconds; after that it only looks whether they are there.
flights = BatchSource(
    name="flights",
    description="Every flight of 2013, at the moment its outcome was known.",
    batch_config=FileConfig(uri=str(data_dir() / "flights.parquet"), file_format="parquet", timestamp_field="known_at"),
)
weather = BatchSource(
    name="weather",
    description="Hourly weather at the three airports.",
    batch_config=FileConfig(
        uri=str(data_dir() / "weather.parquet"), file_format="parquet", timestamp_field="observed_at"
    ),
)
departures = StreamSource(
    name="departures",
    description="Flights at the moment they leave.",
    stream_config=PushConfig(
        timestamp_field="departed_at",
        watermark_delay_threshold=HOUR,
        deduplication_columns=["flight_id"],
    ),
    schema=[
        Field("flight_id", Int64),
        Field("origin", String),
        Field("departed_at", Timestamp),
        Field("dep_delay", Int64),
    ],
)

origin = Entity(name="origin", join_keys=[Field("origin", String)], description="An airport of New York.")
carrier = Entity(name="carrier", join_keys=[Field("carrier", String)], description="An airline.")
aircraft = Entity(name="aircraft", join_keys=[Field("tailnum", String)], description="An aircraft.")


def _over(windows: list[timedelta], **functions: list[str]) -> list[Aggregation]:
    """Return every function of every column over every window."""
    return [
        Aggregation(column=column, function=function, time_window=TimeWindow(window_size=window))
        for column, names in functions.items()
        for function in names
        for window in windows
    ]


@batch_feature_view(
    sources=[FilteredSource(flights)],
    entities=[origin],
    mode="sql",
    schema=[
        Field("origin", String),
        Field("known_at", Timestamp),
        Field("flights", Int64),
        Field("arrival_delay", Float64),
        Field("cancelled", Int64),
    ],
    aggregation_interval=HOUR,
    batch_schedule=DAY,
    aggregations=_over(
        [HOUR, 6 * HOUR, DAY, 7 * DAY], flights=["count"], arrival_delay=["mean", "stddev"], cancelled=["sum"]
    ),
    feature_start_time=FIRST_DAY + 7 * DAY,
    online=True,
    offline=True,
    description="How busy and how late an airport was: flights that landed, were diverted or were cancelled.",
    owner=OWNER,
)
def origin_traffic(flights: str) -> str:
    """Count every flight; one that never arrived has no delay."""
    return f"""
        SELECT
            origin, known_at, CAST(1 AS BIGINT) AS flights,
            CAST(arr_delay AS DOUBLE) AS arrival_delay, CAST(outcome = 'cancelled' AS BIGINT) AS cancelled
        FROM {flights}
    """


@batch_feature_view(
    sources=[FilteredSource(flights)],
    entities=[carrier],
    mode="pandas",
    schema=[
        Field("carrier", String),
        Field("known_at", Timestamp),
        Field("departure_delay", Float64),
        Field("arrival_delay", Float64),
        Field("late", Int64),
    ],
    aggregation_interval=DAY,
    batch_schedule=DAY,
    aggregations=_over(
        [DAY, 7 * DAY, 30 * DAY], departure_delay=["mean"], arrival_delay=["mean", "max"], late=["count", "mean"]
    ),
    feature_start_time=FIRST_DAY + 30 * DAY,
    online=True,
    offline=True,
    description="Daily delays of an airline over a day, a week and 30 days.",
    owner=OWNER,
)
def carrier_delays(flights: pd.DataFrame) -> pd.DataFrame:
    """Take the flights that arrived; their lateness is what the model predicts."""
    arrived = flights[flights["outcome"] == "arrived"]
    return pd.DataFrame(
        {
            "carrier": arrived["carrier"],
            "known_at": arrived["known_at"],
            "departure_delay": arrived["dep_delay"].astype("float64"),
            "arrival_delay": arrived["arr_delay"].astype("float64"),
            "late": arrived["late"].astype("int64"),
        }
    )


@batch_feature_view(
    sources=[FilteredSource(flights)],
    entities=[aircraft],
    mode="sql",
    schema=[
        Field("tailnum", String),
        Field("known_at", Timestamp),
        Field("arrival_delay", Float64),
        Field("air_time", Int64),
    ],
    aggregation_interval=DAY,
    batch_schedule=DAY,
    aggregations=[
        *_over([DAY, 7 * DAY, 30 * DAY], arrival_delay=["count", "mean", "max"]),
        *_over([7 * DAY], arrival_delay=["last"], air_time=["sum"]),
    ],
    feature_start_time=FIRST_DAY + 30 * DAY,
    online=True,
    offline=True,
    description="How much and how punctually an aircraft flew.",
    owner=OWNER,
)
def aircraft_history(flights: str) -> str:
    """Leave out flights without a tail number: together they are not one aircraft."""
    return f"""
        SELECT tailnum, known_at, CAST(arr_delay AS DOUBLE) AS arrival_delay, air_time
        FROM {flights}
        WHERE tailnum IS NOT NULL AND outcome = 'arrived'
    """


@batch_feature_view(
    sources=[FilteredSource(weather)],
    entities=[origin],
    mode="pandas",
    schema=[
        Field("origin", String),
        Field("observed_at", Timestamp),
        Field("temperature", Float64),
        Field("humidity", Float64),
        Field("wind_speed", Float64),
        Field("precipitation", Float64),
        Field("pressure", Float64),
        Field("visibility", Float64),
    ],
    batch_schedule=DAY,
    ttl=2 * DAY,
    feature_start_time=FIRST_DAY,
    online=True,
    offline=True,
    description="The last observed weather at an airport; nothing when it is older than two days.",
    owner=OWNER,
)
def origin_weather(weather: pd.DataFrame) -> pd.DataFrame:
    """Give the columns readable names."""
    names = {
        "temp": "temperature",
        "humid": "humidity",
        "precip": "precipitation",
        "visib": "visibility",
    }
    kept = ["origin", "observed_at", "temp", "humid", "wind_speed", "precip", "pressure", "visib"]
    return weather[kept].rename(columns=names)


@stream_feature_view(
    source=departures,
    entities=[origin],
    mode="sql",
    schema=[
        Field("origin", String),
        Field("departed_at", Timestamp),
        Field("departures", Int64),
        Field("delay", Float64),
    ],
    aggregations=_over([HOUR, 3 * HOUR], departures=["count"], delay=["mean"]),
    aggregation_leading_edge=AggregationLeadingEdge.LATEST_EVENT_TIME,
    feature_start_time=FIRST_DAY,
    online=True,
    description="How congested an airport is right now: flights that left in the last hours, and how late.",
    owner=OWNER,
)
def origin_congestion(departures: str) -> str:
    """Count every flight that leaves; the windows end with the newest one."""
    return f"SELECT origin, departed_at, 1::BIGINT AS departures, dep_delay::DOUBLE AS delay FROM {departures}"


flight_delay = FeatureService(
    name="flight_delay",
    features=[origin_traffic, carrier_delays, aircraft_history, origin_weather],
    description="Will this flight be 15 minutes late?",
    owner=OWNER,
)

workspace = Workspace("dev", [flight_delay, origin_congestion], home=HOME, clock=NOW)
