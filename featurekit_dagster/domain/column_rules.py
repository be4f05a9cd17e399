"""Rules of a feature view's columns: which there are, of which type, and which of them are features."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from featurekit_dagster.domain.aggregate_rules import (
    check_stored_names,
    listed_names,
    resolve_aggregates,
    resolve_secondary_key,
)
from featurekit_dagster.domain.entity import join_key_fault
from featurekit_dagster.domain.feature_view import Aggregation
from featurekit_dagster.domain.schema import DataType, Field, Timestamp
from featurekit_dagster.domain.wording import described

if TYPE_CHECKING:
    from featurekit_dagster.domain.view_rules import Draft

RESERVED = ("time_partition", "_anchor_time", "_timestamp", "_valid_from", "_valid_to", "_effective_timestamp")


def resolve_columns(draft: Draft) -> None:
    """Resolve join keys, timestamp, columns and features; add what is wrong with them to the draft."""
    attributes, aggregations = _split_features(draft)
    schema = _schema_fields(draft)
    types = _declared_types(draft, schema, attributes, aggregations)
    keys = _resolve_keys(draft, types)
    timestamp = _resolve_timestamp(draft, types, {key.name for key in keys})
    taken = {key.name for key in keys} | {timestamp}
    if schema and not aggregations and not draft.given["aggregations"]:
        attributes = [column for column in schema if column.name not in taken]
    aggregates = resolve_aggregates(draft, aggregations, types)
    secondary = resolve_secondary_key(draft, types, {key.name for key in keys}, timestamp)
    extra = [secondary] if secondary else []
    inputs = [*extra, *([f.column for f in aggregates] or attributes), *schema]
    columns = {c.name: c for c in [*keys, Field(timestamp, Timestamp), *inputs]}
    names = [f.name for f in aggregates or attributes]
    wanted = aggregations or draft.given["aggregations"] or {"schema", "features", "aggregations"} & draft.wrong
    if not names and not wanted:
        draft.faults.append("there are no features; give schema, features or aggregations")
    _check_names(draft, names, [*(key.name for key in keys), timestamp], listed_names(secondary, aggregates), columns)
    draft.resolved |= {
        "join_keys": keys,
        "timestamp_field": timestamp,
        "columns": tuple(columns.values()),
        "attributes": () if aggregates else tuple(attributes),
        "aggregates": tuple(aggregates),
        "secondary_key": secondary,
    }
    check_stored_names(draft, [key.name for key in (*keys, *extra)], aggregates)


def _check_names(
    draft: Draft, names: Sequence[str], keys: Sequence[str], listed: Sequence[str], columns: Iterable[str]
) -> None:
    """Check that names of features and columns are told apart by the stores, which do not tell cases apart."""
    draft.faults += [f"feature name {n!r} is given twice; give one of them a name of its own" for n in repeated(names)]
    for group, what in ((keys, "a join key or the timestamp"), (listed, "a list of secondary keys")):
        draft.faults += [f"feature {n!r} has the name of {what}; rename it" for n in dict.fromkeys(names) if n in group]
    draft.faults += [f"column {n!r} has the name of a list of secondary keys; rename it" for n in keys if n in listed]
    everywhere = list(dict.fromkeys([*columns, *names]))
    draft.faults += [f"column {n!r} is a name the store uses itself; rename it" for n in everywhere if _is_reserved(n)]
    for group in (list(columns), [*keys, *listed, *names]):
        first: dict[str, str] = {}
        for name in dict.fromkeys(group):
            other = first.setdefault(name.lower(), name)
            if other != name:
                fault = f"columns {other!r} and {name!r} differ only in case; rename one"
                draft.faults += [fault] if fault not in draft.faults else []


def _is_reserved(name: str) -> bool:
    return name.lower() in RESERVED


def _split_features(draft: Draft) -> tuple[list[Field], list[Aggregation]]:
    """Return plain features and aggregations, from whichever spelling was used."""
    features, aggregations = draft.given["features"] or [], draft.given["aggregations"] or []
    attributes = [f for f in features if isinstance(f, Field) and _is_named(draft, f)]
    declared = [f for f in features if isinstance(f, Aggregation)]
    for other in (f for f in features if not isinstance(f, Field | Aggregation)):
        draft.faults.append(f"{described(other)} is given as a feature; give Attribute or Aggregate")
    for other in (a for a in aggregations if not isinstance(a, Aggregation)):
        draft.faults.append(f"{described(other)} is given as an aggregation; give Aggregation(column=, function=, ...)")
    if attributes and (declared or aggregations):
        draft.faults.append("features mixes Attributes with Aggregates; put them into two feature views")
    if features and (draft.given["schema"] is not None or aggregations):
        draft.faults.append("features is given beside schema or aggregations; use one spelling")
    return attributes, [*declared, *(a for a in aggregations if isinstance(a, Aggregation))]


def _schema_fields(draft: Draft) -> list[Field]:
    """Return the columns of the schema, each once."""
    fields = []
    for column in draft.given["schema"] or ():
        if not isinstance(column, Field):
            draft.faults.append(f"{described(column)} is in schema; give Field(name, type)")
        elif _is_named(draft, column):
            fields.append(column)
    draft.faults += [f"column {n!r} is twice in schema; keep one" for n in repeated([f.name for f in fields])]
    return list({column.name: column for column in fields}.values())


def _is_named(draft: Draft, column: Field) -> bool:
    if isinstance(column.name, str) and column.name:
        return True
    draft.faults.append(f"a column has the name {column.name!r}; give a text that is not empty")
    return False


def _declared_types(
    draft: Draft, schema: Sequence[Field], attributes: Sequence[Field], aggregations: Sequence[Aggregation]
) -> dict[str, DataType]:
    """Return the type of every column that is declared anywhere; a contradiction is a fault."""
    fields = [*schema, *(k for entity in draft.get("entities") for k in entity.join_keys if isinstance(k, Field))]
    fields += attributes
    fields += [a.column for a in aggregations if isinstance(a.column, Field) and _is_named(draft, a.column)]
    types: dict[str, DataType] = {}
    for column in fields:
        if not isinstance(column.dtype, DataType):
            draft.faults.append(
                f"column {column.name!r} has type {described(column.dtype)}; use a type such as String or Int64"
            )
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
            elif name in types:
                keys[name] = Field(name, types[name])
                draft.faults += [fault for fault in [join_key_fault(keys[name])] if fault]
            elif "schema" not in draft.wrong:
                draft.faults.append(
                    f"join key {name!r} of entity {entity.name!r} has no type; give it in schema, or write "
                    f"Entity(join_keys=[Field({name!r}, String)])"
                )
    return tuple(keys.values())


def _resolve_timestamp(draft: Draft, types: dict[str, DataType], keys: set[str]) -> str:
    given: str | None = draft.given["timestamp_field"]
    if given is not None:
        if types.get(given, Timestamp) != Timestamp:
            draft.faults.append(f"timestamp_field {given!r} is declared {types[given]}; it must be Timestamp")
        if given in keys:
            draft.faults.append(f"timestamp_field {given!r} is a join key; name a column of its own")
        return given
    found = [n for n, t in types.items() if t == Timestamp and n not in keys]
    if len(found) != 1 and not {"timestamp_field", "schema"} & draft.wrong:
        some = f"the columns have {len(found)} Timestamps ({', '.join(found)})"
        what = some if found else "no column is a Timestamp"
        draft.faults.append(f"timestamp_field is not given and {what}; name the event time column")
    return found[0] if found else "timestamp"


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that are there more than once, each once."""
    return [name for name in dict.fromkeys(names) if names.count(name) > 1]
