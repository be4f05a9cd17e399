"""The declarations of the cases in the oracle's words: what a view's features are at a moment, by brute force."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tests.conformance.cases import as_duration, as_time, lifetime_start, stream_mode
from tests.support import oracle

_DTYPES = {
    "float": "Float64",
    "float32": "Float32",
    "int": "Int64",
    "int32": "Int32",
    "str": "String",
    "bool": "Bool",
    "timestamp": "Timestamp",
}
_LISTS = {"last": "last_n", "first": "first_n"}


def oracle_view(declaration: dict[str, Any]) -> oracle.AggregateView | oracle.LatestView:
    """Return what the oracle has to know of a declared view."""
    stream = declaration.get("kind", "batch") in ("stream", "feature_table")
    start = declaration.get("feature_start_time")
    common: dict[str, Any] = {
        "batch_schedule": as_duration(
            declaration.get("batch_schedule") or declaration.get("aggregation_interval") or timedelta(days=1)
        ),
        "data_delay": as_duration(declaration.get("data_delay", 0)),
        "feature_start_time": None if start is None else as_time(start),
        "timestamp_field": declaration.get("timestamp_field", "ts"),
    }
    if not declaration.get("aggregates"):
        names = [attribute["name"] for attribute in declaration.get("attributes", ())]
        ttl = as_duration(declaration["ttl"]) if declaration.get("ttl") else None
        return oracle.LatestView(features=names, ttl=ttl, stream=stream, **common)
    lifetime = lifetime_start(declaration)
    return oracle.AggregateView(
        aggregates=[_aggregate(given) for given in declaration["aggregates"]],
        secondary_key=declaration.get("aggregation_secondary_key"),
        lifetime_start_time=lifetime,
        stream=_mode(declaration) if stream else None,
        tile=as_duration(declaration["aggregation_interval"]) if declaration.get("aggregation_interval") else None,
        **common,
    )


def _mode(declaration: dict[str, Any]) -> str:
    """A stream's mode; without a word it moves with its tiles, and untiled with every event."""
    untiled = declaration.get("compaction_enabled") or not declaration.get("aggregation_interval")
    return "CONTINUOUS" if untiled else stream_mode(declaration) or "TIME_INTERVAL"


def _aggregate(given: dict[str, Any]) -> oracle.Aggregate:
    args, window = given.get("args"), given["window"]
    function = _LISTS.get(given["function"], given["function"]) if args else given["function"]
    options: dict[str, Any] = {}
    numbers = list(args.values()) if isinstance(args, dict) else list(args or ())
    if function in oracle.LISTS:
        options["n"] = numbers[0]
    elif function == "approx_percentile":
        options["percentile"] = numbers[0]
    elif function == "approx_count_distinct" and numbers:
        options["precision"] = numbers[0]
    if window["kind"] != "lifetime":
        options["size"] = timedelta(seconds=window["size_s"])
        options["offset"] = timedelta(seconds=window.get("offset_s") or 0)
    if window["kind"] == "series":
        options["series_start"] = timedelta(seconds=window["series_start_s"])
        options["series_end"] = timedelta(seconds=window.get("series_end_s") or 0)
        options["step"] = timedelta(seconds=window["step_s"]) if window.get("step_s") else None
    return oracle.Aggregate(column=given["column"], function=function, dtype=_DTYPES[given["dtype"]], **options)


def window_events(
    events: list[dict[str, Any]],
    key: dict[str, Any],
    time: datetime,
    view: oracle.AggregateView,
    feature: oracle.Aggregate,
) -> list[dict[str, Any]]:
    """Return the events that lie in any window of a feature as of a moment."""
    mine, edge = oracle.timed(oracle.of_key(events, key), view), oracle.edge_at(time, view)
    return [e for stretch in oracle.stretches_of(feature) for e in oracle.in_window(mine, edge, stretch, view)]
