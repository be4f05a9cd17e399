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
from featurekit_dagster.domain.argument_rules import checked_arguments
from featurekit_dagster.domain.column_rules import resolve_columns
from featurekit_dagster.domain.context import UnboundContext
from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_view import INGESTED, PASS_THROUGH, BatchTriggerType
from featurekit_dagster.domain.offline_config import layout_of, publishing_of
from featurekit_dagster.domain.schedule_rules import check_aggregates, check_schedule, wants_aggregates
from featurekit_dagster.domain.sources import BatchSource, SourceRange, filtering_fault
from featurekit_dagster.domain.stream_rules import (
    batch_side_advice,
    check_freshness,
    check_watermark,
    resolve_processing,
    resolve_source,
)
from featurekit_dagster.domain.wording import described
from featurekit_dagster.errors import DeclarationError

TABLE_GRID = timedelta(days=1)
"""Grid of the ranges that the record and Dagster show of what was ingested into a feature table."""

MODES = ("pandas", "polars", "python", "sql")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_IDENTIFIER = "is not an identifier; use letters, digits and underscores"


@dataclass(slots=True)
class Draft:
    """What the user gave, with what the rules have resolved so far and the faults they found.

    Args:
        given: The arguments, each of its kind, or None where it was not given or is of a wrong kind.
        wrong: The arguments of a wrong kind; whatever needs them is not judged.
        resolved: Fields of the view to be.
        faults: One sentence per broken rule.
    """

    given: Mapping[str, Any]
    wrong: frozenset[str] = frozenset()
    resolved: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def get(self, name: str) -> Any:
        """Return the resolved value, else the given one."""
        return self.resolved.get(name, self.given.get(name))

    @property
    def is_pass_through(self) -> bool:
        """Whether there is no transformation, as a stream view may declare."""
        return self.given["is_stream"] and self.given["mode"] is None

    def is_missing(self, name: str) -> bool:
        """Tell whether an argument was left out; one of a wrong kind was not."""
        return self.given[name] is None and name not in self.wrong


def resolve(function: Callable[..., Any] | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `FeatureView`.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """
    checked, faults, wrong = checked_arguments(given)
    draft = Draft(checked, wrong, {"function": function, "is_stream": checked["is_stream"]}, faults)
    _resolve_name(draft, function)
    _resolve_times(draft)
    _resolve_inputs(draft, function)
    resolve_processing(draft)
    _resolve_entities(draft)
    resolve_columns(draft)
    check_watermark(draft)
    check_schedule(draft)
    check_aggregates(draft)
    _resolve_serving_index(draft)
    check_freshness(draft)
    _resolve_rest(draft, function)
    if draft.faults:
        raise DeclarationError(subject=f"feature view {draft.get('name')!r}", faults=draft.faults)
    return draft.resolved


def resolve_table(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `FeatureView` that is a feature table.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """
    checked, faults, wrong = checked_arguments(given)
    fixed: dict[str, Any] = {"function": None, "mode": INGESTED, "is_stream": False, "is_table": True, "inputs": {}}
    fixed |= {"context_parameter": None, "aggregation_interval": None, "incremental_backfills": False}
    fixed |= {"batch_schedule": TABLE_GRID, "batch_trigger": BatchTriggerType.NO_BATCH_MATERIALIZATION}
    draft = Draft(checked, wrong, fixed, faults)
    draft.resolved |= {name: draft.given[name] for name in ("name", "ttl")}
    draft.resolved |= {name: bool(draft.given[name]) for name in ("online", "offline")}
    if draft.is_missing("name"):
        draft.faults.append("name is not given; give one")
    elif "name" not in wrong and not NAME.fullmatch(draft.given["name"]):
        draft.faults.append(f"name {draft.given['name']!r} {_NO_IDENTIFIER}")
    _resolve_entities(draft)
    resolve_columns(draft)
    if wants_aggregates(draft) and "features" not in wrong:
        draft.faults.append(
            "features has Aggregates, which are made of events; a feature table keeps what it is given, so give "
            "Attributes, or declare a batch_feature_view"
        )
    _resolve_serving_index(draft)
    _resolve_rest(draft, None)
    if draft.faults:
        raise DeclarationError(subject=f"feature table {draft.get('name')!r}", faults=draft.faults)
    return draft.resolved


def _resolve_name(draft: Draft, function: Callable[..., Any] | None) -> None:
    name, mode = draft.given["name"], draft.given["mode"]
    if draft.is_pass_through:
        draft.resolved |= {"name": name, "mode": PASS_THROUGH}
        if draft.is_missing("name"):
            draft.faults.append("name is not given; give it where there is no function, or the mode of the function")
            return
    else:
        name = name or _name_of(function)
        draft.resolved |= {"name": name, "mode": mode}
    if "name" not in draft.wrong and not NAME.fullmatch(name):
        draft.faults.append(f"name {name!r} {_NO_IDENTIFIER}")
    if not draft.is_pass_through and (not isinstance(mode, str) or mode not in MODES):
        draft.faults.append(f"mode {mode!r} is not known; it is one of {', '.join(MODES)}")


def _name_of(function: Callable[..., Any] | None) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _resolve_times(draft: Draft) -> None:
    for name in (
        "feature_start_time",
        "lifetime_start_time",
        "manual_trigger_backfill_end_time",
        "ttl",
        "max_backfill_interval",
    ):
        draft.resolved[name] = draft.given[name]
    for name in ("online", "offline", "incremental_backfills"):
        draft.resolved[name] = bool(draft.given[name])
    stores = [f"{store}=True" for store in ("online", "offline") if draft.get(store)]
    if stores and draft.is_missing("feature_start_time"):
        draft.faults.append(f"{' and '.join(stores)} without feature_start_time; give the first instant to materialize")


def _resolve_inputs(draft: Draft, function: Callable[..., Any] | None) -> None:
    if draft.get("is_stream"):
        used: list[SourceRange | None] = [resolve_source(draft)]
    else:
        used = [_as_range(draft, source) for source in _as_tuple(draft.given["sources"])]
    draft.faults += [fault for s in used if s is not None and (fault := filtering_fault(s))]
    if not used:
        draft.faults.append("sources is empty; a feature view reads at least one BatchSource")
    draft.resolved |= {"inputs": {}, "context_parameter": None}
    if draft.is_pass_through:
        draft.resolved["inputs"] = {_input_name(s.source): s for s in used if s is not None}
        return
    parameters = _parameters(draft, function)
    if parameters is None:
        return
    context = _context_parameter(draft, function, parameters)
    names = [n for n in parameters if n not in context]
    if used and len(names) != len(used):
        draft.faults.append(
            f"{_name_of(function)} takes {_count(len(names), 'parameter')} besides the context "
            f"({', '.join(names) or 'none'}), but {_count(len(used), 'source')} given; make them equal"
        )
    if draft.given["mode"] == "python" and len(used) > 1:
        draft.faults.append(
            f"mode 'python' takes one row of one source at a time, not of {len(used)}; use another mode"
        )
    inputs = {n: s for n, s in zip(names, used, strict=False) if s is not None}
    draft.resolved |= {"inputs": inputs, "context_parameter": context[0] if context else None}


def _input_name(source: BatchSource) -> str:
    """Return what the rows that pass through are called where a function's parameter would name them."""
    return source.name if source.name.isidentifier() else "rows"


def _parameters(draft: Draft, function: Callable[..., Any] | None) -> Mapping[str, inspect.Parameter] | None:
    """Return the parameters of the transformation, or None where it has none that could be called by name."""
    if not inspect.isfunction(function):  # of other callables neither code nor file is to be seen
        draft.faults.append(f"{described(function)} is decorated; decorate the function that is the transformation")
        return None
    parameters = inspect.signature(function).parameters
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    wrong = [str(p).split(":")[0].split("=")[0] for p in parameters.values() if p.kind not in by_name]
    if wrong:
        draft.faults.append(
            f"parameters {', '.join(wrong)} of {_name_of(function)} cannot be given by name; "
            "write one ordinary parameter for each source"
        )
        return None
    return parameters


def _context_parameter(
    draft: Draft, function: Callable[..., Any] | None, parameters: Mapping[str, inspect.Parameter]
) -> list[str]:
    """Return the parameters that receive the context; more than one is a fault."""
    marked = [n for n, p in parameters.items() if isinstance(p.default, UnboundContext)]
    named = draft.given["context_parameter_name"]
    if named is not None and named not in parameters:
        draft.faults.append(
            f"context_parameter_name {named!r} is not a parameter of {_name_of(function)}; "
            f"it has {', '.join(parameters) or 'none'}"
        )
    contexts = list(dict.fromkeys([*marked, *([named] if named in parameters else [])]))
    if len(contexts) > 1:
        draft.faults.append(f"parameters {', '.join(contexts)} all receive the context; keep one")
    return contexts


def _count(number: int, what: str) -> str:
    """Return `1 parameter`, `2 parameters`; of sources with their verb, `1 source is`."""
    verb = (" is" if number == 1 else " are") if what == "source" else ""
    return f"{number} {what}{'' if number == 1 else 's'}{verb}"


def _as_range(draft: Draft, source: Any) -> SourceRange | None:
    if isinstance(source, BatchSource):
        return source.unfiltered()
    if isinstance(source, SourceRange):
        return source
    if advice := batch_side_advice(source):
        draft.faults.append(advice)
        return None
    draft.faults.append(
        f"{described(source)} is given as a source; a batch feature view reads BatchSource, FilteredSource(...) "
        "or source.select_range(...)"
    )
    return None


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _resolve_entities(draft: Draft) -> None:
    entities = _as_tuple(draft.given["entities"])
    wrong = [e for e in entities if not isinstance(e, Entity)]
    draft.faults += [f"{described(e)} is given as an entity; give an Entity" for e in wrong]
    if not entities:
        draft.faults.append("entities is empty; name the entity that the features describe")
    draft.resolved["entities"] = tuple(e for e in entities if isinstance(e, Entity))


def _resolve_serving_index(draft: Draft) -> None:
    keys = [key.name for key in draft.get("join_keys")]
    index = draft.given["online_serving_index"]
    draft.resolved["online_serving_index"] = tuple(keys if index is None else index)
    if index is None:
        return
    if not index:
        draft.faults.append("online_serving_index is empty; name at least one join key")
        return
    unknown = [str(name) for name in index if name not in keys]
    if unknown:
        draft.faults.append(
            f"online_serving_index names {', '.join(unknown)}, but the join keys are {', '.join(keys) or 'none'}"
        )
    draft.faults += [
        f"online_serving_index names {name!r} {index.count(name)} times; once is enough"
        for name in keys
        if index.count(name) > 1
    ]
    left_out = [name for name in keys if name not in index]
    if not unknown and len(left_out) > 1:
        draft.faults.append(
            f"online_serving_index leaves out {', '.join(left_out)}; at most one join key may be left out"
        )


def _resolve_rest(draft: Draft, function: Callable[..., Any] | None) -> None:
    given, has_history = draft.given, bool(draft.get("inputs"))
    publish, faults = publishing_of(given, offline=draft.get("offline"), has_history=has_history)
    draft.faults += faults
    draft.resolved |= {
        "batch_trigger": draft.get("batch_trigger") or BatchTriggerType.SCHEDULED,
        "offline_store": layout_of(given["offline_store"]),
        "online_store": given["online_store"],
        "publish": publish,
        "description": given["description"] or (inspect.getdoc(function) if function else None),
        "owner": given["owner"],
        "tags": dict(given["tags"] or {}),
        "defined_in": inspect.getsourcefile(function) if inspect.isfunction(function) else None,
    }
    aggregates: tuple[AggregateFeature, ...] = draft.get("aggregates")
    if aggregates and draft.resolved["incremental_backfills"]:
        draft.faults.append(
            "incremental_backfills=True with aggregates; tiles need no incremental backfill, leave it out"
        )
