"""The rules of a feature view: every fault is found, then raised at once.

Each rule reads what the user gave, adds its faults to one list and returns what it resolved. Nothing here has side
effects.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from featurekit_dagster.domain.aggregation import AggregateFeature
from featurekit_dagster.domain.column_rules import resolve_columns
from featurekit_dagster.domain.context import UnboundContext
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import BatchTriggerType, DeltaConfig
from featurekit_dagster.domain.schedule_rules import check_aggregates, check_schedule
from featurekit_dagster.domain.sources import BatchSource, SourceRange, filtering_fault
from featurekit_dagster.domain.windows import parse_duration
from featurekit_dagster.errors import DeclarationError
from featurekit_dagster.intervals import as_utc

MODES = ("pandas", "polars", "sql")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
MAX_DURATION = timedelta(days=3_652_500)
_DURATIONS = ("aggregation_interval", "batch_schedule", "ttl", "max_backfill_interval")
_REMEDIES = {
    "max_batch_aggregation_interval": "it is called max_backfill_interval",
    "batch_compute": "compute is local; leave it out",
    "environment": "the process's own environment is used; leave it out",
    "batch_compaction_enabled": "compaction of online tiles is not declared per view here; leave it out",
    "compaction_enabled": "untiled views are not offered by this version; leave it out",
    "aggregation_mode": "aggregates are in whole tiles; leave it out",
    "lifetime_start_time": "lifetime windows are not offered by this version; leave it out",
    "aggregation_secondary_key": "secondary keys are not offered by this version; leave it out",
}


@dataclass(slots=True)
class Draft:
    """What the user gave, with what the rules have resolved so far and the faults they found."""

    given: Mapping[str, Any]
    resolved: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """Return the resolved value, else the given one."""
        return self.resolved.get(name, self.given.get(name))


def resolve(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `FeatureView`.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """
    draft = Draft(given)
    draft.resolved = {"function": function, "name": given["name"] or function.__name__}
    _check_name(draft)
    _check_other(draft)
    _resolve_durations(draft)
    _resolve_times(draft)
    _resolve_inputs(draft, function)
    _resolve_entities(draft)
    resolve_columns(draft)
    check_schedule(draft)
    check_aggregates(draft)
    _resolve_serving_index(draft)
    _resolve_rest(draft, function)
    if draft.faults:
        raise DeclarationError(subject=f"feature view {draft.get('name')!r}", faults=draft.faults)
    return draft.resolved


def _check_name(draft: Draft) -> None:
    name = draft.get("name")
    if not NAME.fullmatch(name):
        draft.faults.append(f"name {name!r} is not an identifier; use letters, digits and underscores")
    if draft.given["mode"] not in MODES:
        draft.faults.append(f"mode {draft.given['mode']!r} is not known; it is one of {', '.join(MODES)}")
    draft.resolved["mode"] = draft.given["mode"]


def _check_other(draft: Draft) -> None:
    for name in draft.given["other"]:
        remedy = _REMEDIES.get(name, "no such argument; leave it out or correct its spelling")
        draft.faults.append(f"{name} is not taken: {remedy}")


def _resolve_durations(draft: Draft) -> None:
    for name in _DURATIONS:
        value = draft.given[name]
        if isinstance(value, str):
            try:
                value = parse_duration(value)
            except ValueError as error:
                draft.faults.append(f"{name}: {error}")
                value = None
        if value is not None and (fault := duration_fault(name, value)):
            draft.faults.append(fault)
            value = None
        draft.resolved[name] = value


def duration_fault(name: str, value: Any) -> str | None:
    """Return why a value is no usable duration, or None."""
    if not isinstance(value, timedelta):
        return f"{name} is a {type(value).__name__}; give a timedelta or text such as '1d12h'"
    if value <= timedelta(0):
        return f"{name} {value} is not positive"
    if value.microseconds:
        return f"{name} {value} is not in whole seconds; round it"
    if value > MAX_DURATION:
        return f"{name} {value} is over 10,000 years; leave it out for no limit"
    return None


def _resolve_times(draft: Draft) -> None:
    for name in ("feature_start_time", "manual_trigger_backfill_end_time"):
        value = draft.given[name]
        draft.resolved[name] = None if value is None else as_utc(value)
    for store in ("online", "offline"):
        draft.resolved[store] = bool(draft.given[store])
    if draft.get("feature_start_time") is None and (draft.get("online") or draft.get("offline")):
        stores = " and ".join(s for s in ("online", "offline") if draft.get(s))
        draft.faults.append(f"{stores}=True without feature_start_time; give the first instant to materialize")


def _resolve_inputs(draft: Draft, function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    marked = [n for n, p in parameters.items() if isinstance(p.default, UnboundContext)]
    named = draft.given["context_parameter_name"]
    if named is not None and named not in parameters:
        draft.faults.append(
            f"context_parameter_name {named!r} is not a parameter of {function.__name__}; "
            f"it has {', '.join(parameters) or 'none'}"
        )
    contexts = list(dict.fromkeys([*marked, *([named] if named in parameters else [])]))
    if len(contexts) > 1:
        draft.faults.append(f"parameters {', '.join(contexts)} all receive the context; keep one")
    names = [n for n in parameters if n not in contexts]
    used = [_as_range(draft, source) for source in _as_tuple(draft.given["sources"])]
    if not used:
        draft.faults.append("sources is empty; a feature view reads at least one BatchSource")
    elif len(names) != len(used):
        draft.faults.append(
            f"{function.__name__} takes {len(names)} parameters besides the context ({', '.join(names) or 'none'}), "
            f"but {len(used)} sources are given; make them equal"
        )
    inputs = {n: s for n, s in zip(names, used, strict=False) if s is not None}
    draft.faults += [fault for s in inputs.values() if (fault := filtering_fault(s))]
    draft.resolved |= {"inputs": inputs, "context_parameter": contexts[0] if contexts else None}


def _as_range(draft: Draft, source: Any) -> SourceRange | None:
    if isinstance(source, BatchSource):
        return source.unfiltered()
    if isinstance(source, SourceRange):
        return source
    draft.faults.append(
        f"a {type(source).__name__} is given as a source; a batch feature view reads BatchSource, FilteredSource(...) "
        "or source.select_range(...)"
    )
    return None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _resolve_entities(draft: Draft) -> None:
    entities = _as_tuple(draft.given["entities"])
    wrong = [e for e in entities if not isinstance(e, Entity)]
    draft.faults += [f"a {type(e).__name__} is given as an entity; give an Entity" for e in wrong]
    if not entities:
        draft.faults.append("entities is empty; name the entity that the features describe")
    draft.resolved["entities"] = tuple(e for e in entities if isinstance(e, Entity))


def _resolve_serving_index(draft: Draft) -> None:
    keys = [key.name for key in draft.get("join_keys")]
    index = draft.given["online_serving_index"]
    draft.resolved["online_serving_index"] = tuple(keys if index is None else index)
    if index is None:
        return
    unknown = [name for name in index if name not in keys]
    if unknown:
        draft.faults.append(f"online_serving_index names {', '.join(unknown)}, but the join keys are {', '.join(keys)}")
    left_out = [name for name in keys if name not in index]
    if not unknown and len(left_out) > 1:
        draft.faults.append(
            f"online_serving_index leaves out {', '.join(left_out)}; at most one join key may be left out"
        )
    if not index:
        draft.faults.append("online_serving_index is empty; name at least one join key")


def _resolve_rest(draft: Draft, function: Callable[..., Any]) -> None:
    given = draft.given
    if not isinstance(given["batch_trigger"], BatchTriggerType):
        draft.faults.append(f"batch_trigger is {given['batch_trigger']!r}; give BatchTriggerType.SCHEDULED or MANUAL")
    store = given["offline_store"] or DeltaConfig()
    if not isinstance(store, DeltaConfig):
        draft.faults.append(f"offline_store is a {type(store).__name__}; give a DeltaConfig")
    elif fault := duration_fault("time_partition_size", store.time_partition_size):
        draft.faults.append(fault)
    draft.resolved |= {
        "batch_trigger": given["batch_trigger"],
        "incremental_backfills": bool(given["incremental_backfills"]),
        "offline_store": store,
        "description": given["description"] or inspect.getdoc(function),
        "owner": given["owner"],
        "tags": dict(given["tags"] or {}),
        "defined_in": inspect.getsourcefile(function),
    }
    aggregates: tuple[AggregateFeature, ...] = draft.get("aggregates")
    if aggregates and draft.resolved["incremental_backfills"]:
        draft.faults.append(
            "incremental_backfills=True with aggregates; tiles need no incremental backfill, leave it out"
        )
