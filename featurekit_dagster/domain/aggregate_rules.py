"""Rules of aggregate features: their functions, windows and names, the secondary key, and the tiles they share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.aggregation import (
    FUNCTION_NAMES,
    PARAMETERIZED,
    AggregateFeature,
    AggregationFunction,
    PartialColumn,
    check_function,
    distinct_spans,
    feature_name,
    secondary_keys_name,
)
from featurekit_dagster.domain.aggregation_functions import approx_count_distinct, parameter_faults
from featurekit_dagster.domain.feature_view import Aggregation, StreamProcessingMode
from featurekit_dagster.domain.schema import DataType, Field, String
from featurekit_dagster.domain.windows import (
    LifetimeWindow,
    TimeWindow,
    TimeWindowSeries,
    Window,
    format_duration,
    size_fault,
)
from featurekit_dagster.domain.wording import described
from featurekit_dagster.intervals import to_us

if TYPE_CHECKING:
    from featurekit_dagster.domain.view_rules import Draft

_ZERO = timedelta(0)
_MAX_WINDOWS = 1_000
_CALLED = {call.partition("(")[0]: call for call in PARAMETERIZED.values()}
_PLAIN = (*FUNCTION_NAMES, "approx_count_distinct")
_FUNCTIONS = ", ".join((*FUNCTION_NAMES, *PARAMETERIZED.values()))


def resolve_aggregates(
    draft: Draft, aggregations: Sequence[Aggregation], types: Mapping[str, DataType]
) -> list[AggregateFeature]:
    """Return the aggregate features without fault; add the faults of the others to the draft."""
    aggregates = []
    for given in aggregations:
        column = given.column.name if isinstance(given.column, Field) else given.column
        window: Any = TimeWindow(given.time_window) if isinstance(given.time_window, timedelta) else given.time_window
        faults = [
            *_window_faults(window),
            *_column_faults(column, types),
            *_function_faults(given, types.get(str(column))),
        ]
        faults += _name_faults(given.name)
        draft.faults += [f"{_spoken(given, column)}: {fault}" for fault in faults]
        if not faults:
            aggregates.append(_feature(draft, given, Field(column, types[column]), window))
    return aggregates


def _feature(draft: Draft, given: Aggregation, column: Field, window: Window) -> AggregateFeature:
    function = approx_count_distinct() if given.function == "approx_count_distinct" else given.function
    label = function if isinstance(function, str) else function.label
    name = given.name or feature_name(column.name, label, window, _interval_label(draft))
    since = draft.get("lifetime_start_time") if isinstance(window, LifetimeWindow) else None
    lifetime_start_us = None if since is None else to_us(since)
    if isinstance(function, str):
        return AggregateFeature(
            name=name, column=column, function=function, window=window, lifetime_start_us=lifetime_start_us
        )
    return AggregateFeature(
        name=name,
        column=column,
        function=function.name,
        window=window,
        n=function.n,
        precision=function.precision,
        percentile=function.percentile,
        lifetime_start_us=lifetime_start_us,
    )


def _interval_label(draft: Draft) -> str | None:
    """Return what generated names say of the tile size."""
    if draft.get("compaction_enabled"):
        return None
    if draft.get("stream_processing_mode") is StreamProcessingMode.CONTINUOUS:
        return "continuous"
    return format_duration(draft.get("aggregation_interval") or draft.get("batch_schedule") or timedelta(days=1))


def _spoken(given: Aggregation, column: Any) -> str:
    if given.name:
        return f"aggregation {given.name!r}"
    function = given.function
    if isinstance(function, AggregationFunction):
        written = described(function) if parameter_faults(function) else function.label
    else:
        written = str(function)
    return f"aggregation {f'{written} of {column}'!r}"


def _window_faults(window: Any) -> list[str]:
    """Return what is wrong with a window by itself; a series must be right before its windows can be listed."""
    if isinstance(window, LifetimeWindow):
        return []
    if isinstance(window, TimeWindow):
        return _duration_faults({"window_size": window.window_size, "offset": window.offset})
    if not isinstance(window, TimeWindowSeries):
        what = "a TimeWindow, a TimeWindowSeries, a LifetimeWindow or a timedelta"
        return [f"time_window is {described(window)}; give {what}"]
    given = {n: getattr(window, n) for n in ("series_start", "series_end", "window_size", "step_size")}
    faults = _duration_faults(
        {name: value for name, value in given.items() if name != "step_size" or value is not None}
    )
    return faults or _series_faults(window)


def _duration_faults(durations: Mapping[str, Any]) -> list[str]:
    faults = []
    for name, value in durations.items():
        if not isinstance(value, timedelta):
            faults.append(f"{name} is {described(value)}; give a timedelta")
        elif fault := size_fault(name, value):
            faults.append(fault)
    return faults


def _series_faults(series: TimeWindowSeries) -> list[str]:
    faults = []
    if series.series_start >= _ZERO:
        faults.append(f"series_start {series.series_start} is not negative; windows look back, so give less than zero")
    if series.series_end > _ZERO:
        faults.append(f"series_end {series.series_end} is positive; windows look back, so give zero or less")
    for name, length in (("window_size", series.window_size), ("step_size", series.step)):
        if length <= _ZERO and (name == "window_size" or series.step_size is not None):
            faults.append(f"{name} {length} is not positive; give a longer one")
    if faults:
        return faults
    count = (series.series_end - series.window_size - series.series_start) // series.step + 1
    if count < 2:
        faults.append("the series has fewer than two windows; give an earlier series_start, or a TimeWindow")
    if count > _MAX_WINDOWS:
        faults.append(f"the series has {count} windows; give at most {_MAX_WINDOWS}, by a longer step_size")
    return faults


def _column_faults(column: Any, types: Mapping[str, DataType]) -> list[str]:
    if not isinstance(column, str):
        return [f"column is {described(column)}; give the name of a column or a Field"]
    if column not in types:
        return [f"column {column!r} has no type; declare it in schema (declared: {', '.join(types) or 'none'})"]
    return []


def _function_faults(given: Aggregation, dtype: DataType | None) -> list[str]:
    function: Any = given.function
    if isinstance(function, AggregationFunction):
        faults = parameter_faults(function)
        fault = None if faults or dtype is None else check_function(function.name, dtype)
        return [fault] if fault else faults
    if not isinstance(function, str):
        called = _CALLED.get(str(getattr(function, "__name__", None))) if callable(function) else None
        what = f"function is {described(function)}"
        return [f"{what}; call it, as {called}" if called else f"{what}; use one of {_FUNCTIONS}"]
    if function in _PLAIN:
        fault = check_function(function, dtype) if dtype else None
        return [fault] if fault else []
    if function in _CALLED:
        return [f"function {function!r} has parameters; give {_CALLED[function]}, called and not as text"]
    return [f"function {function!r} is not known; use one of {_FUNCTIONS}"]


def _name_faults(name: Any) -> list[str]:
    return [] if name is None or (isinstance(name, str) and name) else [f"name is {name!r}; give text or leave it out"]


def resolve_secondary_key(
    draft: Draft, types: Mapping[str, DataType], keys: Collection[str], timestamp: str
) -> Field | None:
    """Return the secondary key with its type, or None; add what is wrong with it to the draft.

    Where there is no schema its type is String by itself. An aggregated column may be the secondary key.
    """
    name: str | None = draft.given["aggregation_secondary_key"]
    if name is None:
        return None
    what, dtype = f"aggregation_secondary_key {name!r}", types.get(name)
    if dtype is None and draft.given["schema"] is None:
        dtype = String
    if name in keys or name == timestamp:
        role = "the timestamp" if name == timestamp else "a join key"
        draft.faults.append(f"{what} is {role}; name another column of the output")
        return None
    if dtype is None:
        known = ", ".join(types) or "none"
        draft.faults.append(f"{what} has no type; declare it in schema as String (declared: {known})")
    elif dtype != String:
        draft.faults.append(f"{what} is {dtype}; it must be String, so convert it in the transformation")
    return None if dtype is None else Field(name, dtype)


def listed_names(key: Field | None, aggregates: Sequence[AggregateFeature]) -> list[str]:
    """Return the names of the columns that list the secondary keys, one per distinct window."""
    return [] if key is None else [secondary_keys_name(key.name, span) for span in distinct_spans(aggregates)]


def check_stored_names(draft: Draft, keys: Sequence[str], aggregates: Sequence[AggregateFeature]) -> None:
    """Check that tiles can hold all partial columns under their names, beside the keys."""
    stored: dict[str, PartialColumn] = {}
    for partial in (partial for feature in aggregates for partial in feature.partials):
        other = stored.setdefault(partial.name.lower(), partial)
        if other != partial:
            draft.faults += [fault for fault in [_clash(other, partial)] if fault not in draft.faults]
    for name in sorted(keys):
        if name.lower() in stored:
            column = stored[name.lower()].column
            what = "join key" if name != draft.given["aggregation_secondary_key"] else "aggregation_secondary_key"
            draft.faults.append(
                f"{what} {name!r} has the name under which tiles of column {column!r} are stored; rename one"
            )


def _clash(one: PartialColumn, other: PartialColumn) -> str:
    if (one.kind, one.column) == (other.kind, other.column):
        precisions = " and ".join(str(size) for size in sorted((one.size, other.size)))
        function = "approx_percentile" if one.kind.startswith("digest") else "approx_count_distinct"
        return (
            f"{function} of {one.column!r} has precisions {precisions}, but is stored once per column; give it one "
            "precision"
        )
    return f"tiles of columns {one.column!r} and {other.column!r} would both be stored as {one.name!r}; rename one"
