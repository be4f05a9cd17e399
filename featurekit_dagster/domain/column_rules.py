"""Rules of a feature view's columns: which there are, of which type, and which of them are features."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.aggregation import AggregateFeature, check_function, feature_name
from featurekit_dagster.domain.entity import join_key_fault
from featurekit_dagster.domain.feature_view import Aggregation
from featurekit_dagster.domain.schema import DataType, Field, Timestamp
from featurekit_dagster.domain.windows import TimeWindow

if TYPE_CHECKING:
    from featurekit_dagster.domain.view_rules import Draft

RESERVED = ("time_partition", "_anchor_time", "_timestamp", "_valid_from", "_valid_to", "_effective_timestamp")


def resolve_columns(draft: Draft) -> None:
    """Resolve join keys, timestamp, columns and features; add what is wrong with them to the draft."""
    attributes, aggregations = _split_features(draft)
    types = _declared_types(draft, attributes, aggregations)
    keys = _resolve_keys(draft, types)
    timestamp = _resolve_timestamp(draft, types, {key.name for key in keys})
    taken = {key.name for key in keys} | {timestamp}
    if draft.given["schema"] is not None and not aggregations:
        attributes = [column for column in draft.given["schema"] if column.name not in taken]
    aggregates = _resolve_aggregates(draft, aggregations, types)
    names = [f.name for f in aggregates or attributes]
    if not names and not draft.given["aggregations"]:
        draft.faults.append("there are no features; give schema, features or aggregations")
    draft.faults += [f"feature name {n!r} is given twice; give one of them a name of its own" for n in _repeated(names)]
    draft.faults += [
        f"feature {n!r} has the name of a join key or the timestamp; rename it" for n in names if n in taken
    ]
    inputs = [f.column for f in aggregates] if aggregates else attributes
    inputs = [*inputs, *(c for c in draft.given["schema"] or () if isinstance(c, Field))]
    columns = {c.name: c for c in [*keys, Field(timestamp, Timestamp), *inputs]}
    draft.faults += [f"column {n!r} is a name the store uses itself; rename it" for n in columns if n in RESERVED]
    draft.resolved |= {
        "join_keys": keys,
        "timestamp_field": timestamp,
        "columns": tuple(columns.values()),
        "attributes": () if aggregates else tuple(attributes),
        "aggregates": tuple(aggregates),
    }


def _split_features(draft: Draft) -> tuple[list[Field], list[Aggregation]]:
    """Return plain features and aggregations, from whichever spelling was used."""
    features, aggregations = list(draft.given["features"] or ()), list(draft.given["aggregations"] or ())
    attributes = [f for f in features if isinstance(f, Field)]
    declared = [f for f in features if isinstance(f, Aggregation)]
    for other in (f for f in features if not isinstance(f, Field | Aggregation)):
        draft.faults.append(f"a {type(other).__name__} is given as a feature; give Attribute or Aggregate")
    for other in (a for a in aggregations if not isinstance(a, Aggregation)):
        draft.faults.append(
            f"a {type(other).__name__} is given as an aggregation; give Aggregation(column=, function=, ...)"
        )
    if attributes and (declared or aggregations):
        draft.faults.append("features mixes Attributes with Aggregates; put them into two feature views")
    if features and (draft.given["schema"] is not None or aggregations):
        draft.faults.append("features is given beside schema or aggregations; use one spelling")
    return attributes, [*declared, *(a for a in aggregations if isinstance(a, Aggregation))]


def _declared_types(
    draft: Draft, attributes: Sequence[Field], aggregations: Sequence[Aggregation]
) -> dict[str, DataType]:
    """Return the type of every column that is declared anywhere; a contradiction is a fault."""
    fields: list[Field] = []
    for column in draft.given["schema"] or ():
        if isinstance(column, Field):
            fields.append(column)
        else:
            draft.faults.append(f"a {type(column).__name__} is in schema; give Field(name, type)")
    draft.faults += [f"column {n!r} is twice in schema; keep one" for n in _repeated([f.name for f in fields])]
    fields += [key for entity in draft.get("entities") for key in entity.join_keys if isinstance(key, Field)]
    fields += [*attributes, *(a.column for a in aggregations if isinstance(a.column, Field))]
    types: dict[str, DataType] = {}
    for column in fields:
        if not isinstance(column.dtype, DataType):
            draft.faults.append(f"column {column.name!r} has type {column.dtype!r}; use a type such as String or Int64")
        elif types.setdefault(column.name, column.dtype) != column.dtype:
            draft.faults.append(
                f"column {column.name!r} is declared {types[column.name]} and {column.dtype}; make them equal"
            )
    return types


def _resolve_keys(draft: Draft, types: dict[str, DataType]) -> tuple[Field, ...]:
    keys: dict[str, Field] = {}
    for entity in draft.get("entities"):
        for name in entity.key_names:
            if name in keys:
                draft.faults.append(f"join key {name!r} belongs to two entities of the view; rename one")
            elif name not in types:
                draft.faults.append(
                    f"join key {name!r} of entity {entity.name!r} has no type; give it in schema, or write "
                    f"Entity(join_keys=[Field({name!r}, String)])"
                )
                continue
            elif fault := join_key_fault(Field(name, types[name])):
                draft.faults.append(fault)
            keys[name] = Field(name, types[name])
    return tuple(keys.values())


def _resolve_timestamp(draft: Draft, types: dict[str, DataType], keys: set[str]) -> str:
    given = draft.given["timestamp_field"]
    if given is not None:
        if types.get(given, Timestamp) != Timestamp:
            draft.faults.append(f"timestamp_field {given!r} is declared {types[given]}; it must be Timestamp")
        return str(given)
    found = [n for n, t in types.items() if t == Timestamp and n not in keys]
    if len(found) == 1:
        return found[0]
    what = (
        f"schema has {len(found)} Timestamp columns ({', '.join(found)})" if found else "schema has no Timestamp column"
    )
    draft.faults.append(f"timestamp_field is not given and {what}; name the event time column")
    return found[0] if found else "timestamp"


def _resolve_aggregates(
    draft: Draft, aggregations: Sequence[Aggregation], types: dict[str, DataType]
) -> list[AggregateFeature]:
    interval = draft.get("aggregation_interval") or draft.get("batch_schedule") or timedelta(days=1)
    aggregates = []
    for given in aggregations:
        window = TimeWindow(given.time_window) if isinstance(given.time_window, timedelta) else given.time_window
        name = given.column.name if isinstance(given.column, Field) else given.column
        what = f"aggregation {given.name or f'{given.function} of {name}'!r}"
        if not isinstance(window, TimeWindow):
            draft.faults.append(f"{what}: time_window is a {_kind(window)}; give a TimeWindow or a timedelta")
        elif name not in types:
            known = ", ".join(types) or "none"
            draft.faults.append(f"{what}: column {name!r} has no type; declare it in schema (declared: {known})")
        elif fault := check_function(given.function, types[name]):
            draft.faults.append(f"{what}: {fault}")
        else:
            feature = given.name or feature_name(name, given.function, window, interval)
            column = Field(name, types[name])
            aggregates.append(AggregateFeature(name=feature, column=column, function=given.function, window=window))
    return aggregates


def _kind(value: Any) -> str:
    return type(value).__name__


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
