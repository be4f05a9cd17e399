"""What the cases of our own declare and ask."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

FIRST = datetime.fromisoformat("2024-01-01")
MICROSECOND, HOUR, DAY = timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1)
Json = dict[str, Any]


def seconds(duration: timedelta) -> Json:
    return {"seconds": duration.total_seconds()}


def window(size: timedelta, offset: timedelta = 0 * DAY) -> Json:
    return {"kind": "window", "size_s": size.total_seconds(), "offset_s": offset.total_seconds()}


def aggregate(column: str, dtype: str, function: str, over: Json, args: Any = None, name: str | None = None) -> Json:
    return {"column": column, "dtype": dtype, "function": function, "window": over, "args": args, "name": name}


def aggregates(over: Iterable[Json]) -> list[Json]:
    """Return plain functions and lists over each window."""
    return [
        aggregate(column, dtype, function, one, args)
        for one in over
        for column, dtype, function, args in (
            ("v", "float", "sum", None),
            ("k", "int", "min", None),
            ("k", "int", "max", None),
            ("s", "str", "count", None),
            ("s", "str", "last", [2]),
            ("s", "str", "first_distinct", [2]),
        )
    ]


def series(start: int, size: int, step: int) -> Json:
    hours = {"series_start_s": -start, "series_end_s": 0, "step_s": step, "size_s": size}
    return {"kind": "series", **{name: value * 3600 for name, value in hours.items()}}


def span(start: datetime, end: datetime) -> Json:
    return {"start_time": start.isoformat(), "end_time": end.isoformat()}


def refused() -> Json:
    return {"refused": True, "error_type": "TectonValidationError"}


ATTRIBUTES = [("v", "float"), ("k", "int"), ("s", "str"), ("ok", "bool"), ("seen", "timestamp")]
PLAIN = {"attributes": [{"name": name, "dtype": dtype} for name, dtype in ATTRIBUTES]}
LIFETIME = {"kind": "lifetime"}
UNEVEN = span(FIRST + 30 * HOUR + 7 * MICROSECOND, FIRST + 5 * DAY + 13 * HOUR)
RANGED = {"method": "get_features_in_range", **UNEVEN}
FOR_EVENTS = {"method": "get_features_for_events"}
OLD = {"method": "get_historical_features", **UNEVEN}
BEFORE = span(FIRST - 3 * DAY, FIRST - 2 * DAY)
DECLARATIONS: tuple[tuple[str, Json, list[Json]], ...] = (
    (
        "x_lifetime_1h",
        {
            "aggregation_interval": seconds(HOUR),
            "batch_schedule": seconds(6 * HOUR),
            "data_delay": seconds(HOUR),
            "lifetime_start_time": "2024-01-02T03:00:00",
            "aggregates": aggregates([LIFETIME, window(DAY)]),
        },
        [FOR_EVENTS, RANGED, OLD],
    ),
    (
        "x_10m_two_keys_one_entity",
        {
            "entities": [["user_id", "shop"]],
            "aggregation_interval": seconds(HOUR / 6),
            "batch_schedule": seconds(HOUR),
            "aggregates": aggregates([window(HOUR / 2), window(3 * HOUR, -HOUR / 6)]),
        },
        [FOR_EVENTS, RANGED, OLD],
    ),
    (
        "x_ttl_off_schedule",
        {
            "batch_schedule": seconds(HOUR),
            "ttl": seconds(1.5 * HOUR),
            "data_delay": seconds(HOUR / 3),
            **PLAIN,
        },
        [FOR_EVENTS, RANGED, RANGED | {"max_lookback": seconds(2 * DAY)}, OLD],
    ),
    (
        "x_stream_ttl_two_entities",
        {
            "kind": "stream",
            "entities": [["shop"], ["user_id"]],
            "batch_schedule": seconds(DAY),
            "ttl": seconds(7 * HOUR),
            **PLAIN,
        },
        [FOR_EVENTS, RANGED, RANGED | {"entities": [{"shop": 1, "user_id": "u1"}, {"shop": 9, "user_id": "none"}]}],
    ),
    (
        "x_stream_interval_named",
        {
            "kind": "stream",
            "mode": "TIME_INTERVAL",
            "aggregation_interval": seconds(2 * HOUR),
            "aggregates": [
                aggregate("ok", "bool", "last", window(DAY), name="last_ok"),
                aggregate("ok", "bool", "last", window(DAY), [3], name="oks"),
                aggregate("seen", "timestamp", "last", window(2 * DAY), name="last_seen"),
                aggregate("seen", "timestamp", "count", window(2 * DAY), name="n_seen"),
                aggregate("k", "int", "mean", window(4 * HOUR, -2 * HOUR)),
            ],
        },
        [FOR_EVENTS | {"timestamp_key": "asked_at"}, RANGED],
    ),
    (
        "x_stream_compaction",
        {
            "kind": "stream",
            "compaction_enabled": True,
            "batch_schedule": seconds(DAY),
            "aggregates": aggregates([window(5 * HOUR), window(DAY, -HOUR)]),
        },
        [FOR_EVENTS, RANGED, {"method": "get_partial_aggregates", **UNEVEN, **refused()}],
    ),
    (
        "x_continuous_lifetime",
        {
            "kind": "stream",
            "mode": "CONTINUOUS",
            "lifetime_start_time": "2024-01-02T00:00:00",
            "aggregates": [
                aggregate("v", "float", "stddev_samp", LIFETIME),
                aggregate("k", "int", "sum", LIFETIME),
                aggregate("s", "str", "approx_count_distinct", window(2 * DAY), []),
                aggregate("v", "float", "approx_percentile", window(2 * DAY), [0.5]),
            ],
        },
        [FOR_EVENTS, RANGED, {"method": "get_partial_aggregates", **UNEVEN, **refused()}],
    ),
    (
        "x_secondary_key_range",
        {
            "aggregation_secondary_key": "s",
            "aggregation_interval": seconds(6 * HOUR),
            "batch_schedule": seconds(DAY),
            "aggregates": [aggregate("k", "int", f, window(n * DAY)) for n in (1, 2) for f in ("sum", "count")],
            "source_columns_used": ["k", "s"],
        },
        [FOR_EVENTS, RANGED],
    ),
    (
        "x_series_range",
        {
            "aggregation_interval": seconds(HOUR),
            "batch_schedule": seconds(2 * HOUR),
            "aggregates": [
                aggregate("v", "float", "count", series(4, 1, 2)),
                aggregate("k", "int", "max", series(6, 2, 1)),
            ],
        },
        [FOR_EVENTS, RANGED],
    ),
    (
        "x_table",
        {"kind": "feature_table", "feature_start_time": None, "entities": [["shop"], ["user_id"]], **PLAIN},
        [FOR_EVENTS, RANGED, OLD],
    ),
    (
        "x_table_ttl",
        {"kind": "feature_table", "feature_start_time": None, "ttl": seconds(7 * HOUR), **PLAIN},
        [
            FOR_EVENTS,
            RANGED,
            OLD,
            FOR_EVENTS | {"from_source": True} | refused(),
            {"method": "get_partial_aggregates", **UNEVEN, **refused()},
            {"method": "run_transformation", **UNEVEN, **refused()},
        ],
    ),
    (
        "x_refusals",
        {
            "aggregation_interval": seconds(HOUR),
            "aggregates": [aggregate("v", "float", "sum", window(HOUR))],
        },
        [
            RANGED | BEFORE | refused(),
            RANGED | {"max_lookback": seconds(DAY)} | refused(),
            {"method": "get_historical_features", "timestamp_key": "ts", **UNEVEN, **refused()},
            {"method": "run_transformation", "start_time": UNEVEN["start_time"], **refused()},
            {"method": "run", "aggregation_level": "whole", **UNEVEN, **refused()},
        ],
    ),
)
"""Name, declaration and queries of every case."""
