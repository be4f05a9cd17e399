"""The transformation of a stream view over events that are at hand, instead of over its batch source."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import pyarrow as pa

from featurekit_dagster.domain.context import MaterializationContext
from featurekit_dagster.domain.feature_view import PASS_THROUGH, FeatureView
from featurekit_dagster.domain.schema import (
    Array,
    Bool,
    Bytes,
    DataType,
    Field,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
)
from featurekit_dagster.domain.sources import BatchSource, SourceRange, pandas_batch_config
from featurekit_dagster.engine.conform import conform_table
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.scan import register_inputs
from featurekit_dagster.engine.transform import transform, transform_frame
from featurekit_dagster.errors import TransformError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.sql_text import quoted

_ALWAYS = Interval(datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 30, tzinfo=UTC))
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NOTHING = Interval(_EPOCH, _EPOCH.replace(microsecond=1))


def transform_events(view: FeatureView, events: pa.Table) -> pa.Table:
    """Return what a stream view makes of events: columns `view.columns`, in its order.

    Args:
        view: A stream feature view.
        events: Rows of its source, as they would come from the batch side.

    Raises:
        OutputSchemaMismatch: The output's columns or types are not the declared ones.
        TransformError: The function failed, or a row has no timestamp.
    """
    if view.mode == PASS_THROUGH:
        known = [column.name for column in view.columns if column.name in events.column_names]
        return _timed(view, conform_table(view, events.select(known)))
    fed = _fed_by_hand(view)
    (parameter,) = fed.inputs
    if view.mode == "sql" or any(pa.types.is_nested(column.type) for column in events.schema):
        with connect() as con:
            return transform(con, fed, _ALWAYS, {parameter: events}).table()
    context = MaterializationContext.for_interval(_ALWAYS, view.batch_schedule)
    extra = {view.context_parameter: context} if view.context_parameter else {}
    return _timed(view, transform_frame(view, parameter, _without_zones(events), extra))


def _timed(view: FeatureView, rows: pa.Table) -> pa.Table:
    if rows[view.timestamp_field].null_count:
        raise TransformError(f"{view.name}: a row has no {view.timestamp_field}; leave such rows out or fill it")
    return rows


def _without_zones(events: pa.Table) -> pa.Table:
    """Return the events with naive UTC timestamps, which is what transformations see."""
    for place, column in enumerate(events.schema):
        if pa.types.is_timestamp(column.type):
            naive = events.column(place).cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
            events = events.set_column(place, column.name, naive)
    return events


@lru_cache(maxsize=256)
def _fed_by_hand(view: FeatureView) -> FeatureView:
    """Return the view with one unfiltered input, also where it has no batch side."""
    inputs: Mapping[str, SourceRange] = {name: used.source.unfiltered() for name, used in view.inputs.items()}
    if not inputs:
        source = BatchSource(name=_source_name(view), batch_config=pandas_batch_config()(_no_batch_side))
        parameters = inspect.signature(view.function).parameters if view.function else {}
        (parameter,) = [name for name in parameters if name != view.context_parameter]
        inputs = {parameter: source.unfiltered()}
    return replace(view, inputs=inputs)


def _source_name(view: FeatureView) -> str:
    return view.name if view.stream_source is None else view.stream_source.name


def _no_batch_side() -> Any:  # noqa: ANN401 - never called: rows are always given
    raise AssertionError


def batch_side_fields(view: FeatureView) -> tuple[Field, ...]:
    """Return the columns of a view's batch side that an event can have; the stream has the same.

    Raises:
        SourceError: The source cannot be read.
    """
    with connect() as con:
        (name,) = register_inputs(con, view.inputs, _NOTHING).values()
        schema = con.sql(f"SELECT * FROM {quoted(name)} LIMIT 0").to_arrow_table().schema
    typed = [(column.name, _declared(column.type)) for column in schema]
    return tuple(Field(name, dtype) for name, dtype in typed if dtype is not None)


def _declared(given: pa.DataType) -> DataType | None:
    """Return the declared type of an Arrow type; None where events have no such values."""
    kinds = pa.types
    if kinds.is_list(given) or kinds.is_large_list(given):
        element = _declared(given.value_type)
        return None if element is None else Array(element)
    known = (
        (Bool, kinds.is_boolean),
        (Int32, kinds.is_int32),
        (Int64, kinds.is_integer),
        (Float32, kinds.is_float32),
        (Float64, kinds.is_floating),
        (Timestamp, kinds.is_timestamp),
        (String, lambda dtype: kinds.is_string(dtype) or kinds.is_large_string(dtype)),
        (Bytes, lambda dtype: kinds.is_binary(dtype) or kinds.is_large_binary(dtype)),
    )
    return next((dtype for dtype, is_kind in known if is_kind(given)), None)
