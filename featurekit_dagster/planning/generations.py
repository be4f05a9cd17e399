"""Generations: whether what is stored of a view still is what its declaration says, and which generation to use.

The record keeps a shape with every generation. A declaration whose shape differs in a way that stored rows cannot
follow is not carried out until a person decides: a new generation beside the old one, or the old one as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from weakref import WeakKeyDictionary

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Array, Field, parse_type
from featurekit_dagster.domain.sources import TimeBound
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.intervals import duration_us, format_time, to_us
from featurekit_dagster.planning.fingerprint import stored_values, transformation_text

Column = tuple[str, str]
"""Name and type of a column, as text."""

_HASH_LENGTH = 16
_shapes: WeakKeyDictionary[FeatureView, StoredShape] = WeakKeyDictionary()


class GenerationState(StrEnum):
    """What a generation is to its view: the one that reads answer from, the one that will be, or one that was."""

    CURRENT = "CURRENT"
    BUILDING = "BUILDING"
    RETIRED = "RETIRED"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredShape:
    """What a declaration stores, as far as stored rows depend on it, and what else the record has to know of it.

    Args:
        code: Hash of the transformation's text.
        keys: The join keys.
        secondary: The secondary key, if there is one.
        time_column: Time column of the offline table.
        tile_us: Tile size in microseconds; 1 where events are stored; None without aggregates.
        batch_schedule_us: Width of a batch interval in microseconds.
        values: Stored columns beside keys and time: partial columns, columns of events, or attributes.
        mode: How the transformation is called.
        inputs: Per source: parameter, name, and from and to where it is read for a job.
        online_index: The online serving index; empty for a view that is not online.
        online_values: Columns of an online record in the order in which they are stored; none where the view is not
            online.
        online_dropped: Names of those that are kept up no more, as the declaration left them out.
        start_us: Materialization start in microseconds since 1970; changes nothing that is stored.
        stores: The stores that the view writes; changes nothing that is stored.
    """

    code: str
    keys: tuple[Column, ...]
    secondary: Column | None = None
    time_column: str
    tile_us: int | None = None
    batch_schedule_us: int
    values: tuple[Column, ...]
    mode: str = ""
    inputs: tuple[tuple[str, ...], ...] = ()
    online_index: tuple[str, ...] = ()
    online_values: tuple[Column, ...] = ()
    online_dropped: tuple[str, ...] = ()
    start_us: int | None = None
    stores: tuple[str, ...] = ()

    @classmethod
    def of(cls, view: FeatureView) -> StoredShape:
        """Return the shape of a declaration."""
        known = _shapes.get(view)
        if known is None:
            known = _shapes[view] = _shape(view)
        return known

    @classmethod
    def from_text(cls, text: str) -> StoredShape:
        """Return the shape that a text holds; what a later version has added to it is left out."""
        found = {name: _tuples(value) for name, value in json.loads(text).items()}
        return cls(**{field.name: found[field.name] for field in fields(cls) if field.name in found})

    def to_text(self) -> str:
        """Return the shape as JSON."""
        return json.dumps({field.name: getattr(self, field.name) for field in fields(self)}, separators=(",", ":"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One way in which a declaration differs from what is stored, so that a person has to decide.

    Args:
        what: Which part: `transformation`, `inputs`, `batch_schedule`, `join keys`, `column amount`, ...
        text: What it was and is now, for people.
        keepable: Whether stored rows can stand as they are, if a person says that their values would be the same.
    """

    what: str
    text: str
    keepable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRecord:
    """What the record knows of one generation of a view.

    Args:
        generation: Its number, from 1.
        state: What it is to the view.
        shape: What it stores; None for one that is older than this knowledge.
        created_at: When it was begun.
        changed_at: When its state or shape last changed.
        is_empty: Whether nothing was ever written to it, as far as the record knows.
    """

    generation: int
    state: GenerationState
    shape: StoredShape | None
    created_at: datetime
    changed_at: datetime
    is_empty: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """Which generations of a view a declaration uses.

    Args:
        write: The one that jobs write; None while a decision is needed.
        read: The one that offline reads answer from.
        read_online: The one that online reads answer from.
        changes: What differs from the newest one, where a decision is needed.
        replaces: The one that reads answer from until the written one covers as much; None where there is none.
        retired: Those that nothing reads or writes any more.
    """

    write: int | None = 1
    read: int = 1
    read_online: int = 1
    changes: tuple[Change, ...] = ()
    replaces: int | None = None
    retired: tuple[int, ...] = ()


def changes(stored: StoredShape, declared: StoredShape) -> tuple[Change, ...]:
    """Return what of a declaration stored rows do not follow; nothing where jobs and reads can just go on.

    A column that is declared no more, a window over stored columns, another start or other stores change nothing.
    """
    found = [
        _changed("join keys", _columns(stored.keys), _columns(declared.keys)),
        _changed("secondary key", _column(stored.secondary), _column(declared.secondary)),
        _changed("time column", stored.time_column, declared.time_column),
        _changed("aggregation_interval", _duration(stored.tile_us), _duration(declared.tile_us)),
        *_changed_values(stored, declared),
    ]
    if _is_online_elsewhere(stored, declared):
        old, new = ", ".join(stored.online_index), ", ".join(declared.online_index)
        found.append(_changed("online_serving_index", old, new))
    schedules = _duration(stored.batch_schedule_us), _duration(declared.batch_schedule_us)
    found.append(_changed("batch_schedule", *schedules, keepable=True))
    found.append(_changed("mode", stored.mode, declared.mode, keepable=True))
    if stored.inputs != declared.inputs:
        found.append(_changed("inputs", *_differing(stored.inputs, declared.inputs), keepable=True))
    if stored.code != declared.code:
        found.append(Change(what="transformation", text="the transformation's code", keepable=True))
    return tuple(change for change in found if change is not None)


def resolve(declared: StoredShape, records: Sequence[GenerationRecord]) -> Resolution:
    """Return which generations a declaration writes and reads.

    Where nothing was written yet there is nothing to decide: a changed declaration simply begins anew.

    Args:
        declared: Shape of the declaration.
        records: All generations of the view.
    """
    newest_first = sorted(records, key=lambda record: -record.generation)
    live = [record for record in newest_first if record.state is not GenerationState.RETIRED]
    retired = tuple(sorted(r.generation for r in newest_first if r.state is GenerationState.RETIRED))
    following = newest_first[0].generation + 1 if newest_first else 1
    if not live:
        return Resolution(write=following, read=following, read_online=following, retired=retired)
    written = next((r for r in live if r.shape is None or not changes(r.shape, declared)), None)
    if written is None and all(record.is_empty for record in live):
        return Resolution(write=following, read=following, read_online=following, retired=retired)
    current = next((r.generation for r in live if r.state is GenerationState.CURRENT), None)
    last_resort = following if written is None else written.generation
    is_rebuilt = written is not None and written.state is GenerationState.BUILDING
    return Resolution(
        write=None if written is None else written.generation,
        read=_read(live, declared, last_resort, online=False),
        read_online=_read(live, declared, last_resort, online=True),
        changes=() if written is not None or live[0].shape is None else changes(live[0].shape, declared),
        replaces=current if is_rebuilt else None,
        retired=retired,
    )


def following_shape(stored: StoredShape, declared: StoredShape) -> StoredShape:
    """Return what a generation stores once a declaration that it follows is written into it.

    Columns that are declared no more are no longer kept up, so they count as stored no more. How online records are
    laid out stays as it was begun, also while the view is not online.
    """
    index, laid_out = declared.online_index or stored.online_index, stored.online_values or declared.online_values
    names = {name for name, _ in declared.online_values or laid_out}
    dropped = tuple(name for name, _ in laid_out if name not in names or name in stored.online_dropped)
    return replace(declared, online_index=index, online_values=laid_out, online_dropped=dropped)


def online_fields(view: FeatureView) -> tuple[Field, ...]:
    """Return the columns of an online record as declared: partial columns or features, as lists of a secondary key."""
    declared = tuple(Field(p.name, p.dtype) for p in view.online_partials) or view.attributes
    if view.secondary_key is None:
        return declared
    return tuple(Field(field.name, Array(field.dtype)) for field in (view.secondary_key, *declared))


def laid_out_fields(view: FeatureView, stored: StoredShape | None) -> tuple[Field, ...]:
    """Return the columns of an online record in the order of a generation, with those that are declared no more.

    Args:
        view: The declaration.
        stored: What the generation stores; None where that is not known.
    """
    declared = online_fields(view)
    if stored is None or not stored.online_values:
        return declared
    by_name = {field.name: field for field in declared}
    return tuple(by_name.get(name) or Field(name, parse_type(dtype)) for name, dtype in stored.online_values)


def _read(live: Sequence[GenerationRecord], declared: StoredShape, last_resort: int, *, online: bool) -> int:
    """Return the generation to read: the current one if it has what is declared, else the newest that does."""
    current_first = sorted(live, key=lambda record: record.state is not GenerationState.CURRENT)
    serving = (r.generation for r in current_first if r.shape is None or _serves(r.shape, declared, online=online))
    return next(serving, last_resort)


def _serves(stored: StoredShape, declared: StoredShape, *, online: bool) -> bool:
    """Tell whether stored rows have the keys, times and columns that reads of a declaration need."""
    names = ("keys", "secondary", "time_column", "tile_us")
    if any(getattr(stored, name) != getattr(declared, name) for name in names):
        return False
    if online and _are_online(stored, declared):
        has_all = set(declared.online_values) <= set(_kept_online(stored).items())
        if not has_all or _is_online_elsewhere(stored, declared):
            return False
    return set(declared.values) <= set(stored.values)


def _is_online_elsewhere(stored: StoredShape, declared: StoredShape) -> bool:
    return _are_online(stored, declared) and stored.online_index != declared.online_index


def _are_online(stored: StoredShape, declared: StoredShape) -> bool:
    return bool(stored.online_index and declared.online_index)


def _kept_online(stored: StoredShape) -> dict[str, str]:
    """Return names and types of the online columns that are kept up."""
    return {name: dtype for name, dtype in stored.online_values if name not in stored.online_dropped}


def _changed(what: str, old: str, new: str, *, keepable: bool = False) -> Change | None:
    return None if old == new else Change(what=what, text=f"{what} {old} -> {new}", keepable=keepable)


def _changed_values(stored: StoredShape, declared: StoredShape) -> Iterable[Change]:
    known, wanted = dict(stored.values), dict(declared.values)
    if _are_online(stored, declared):
        known = _kept_online(stored) | known
        wanted = dict(declared.online_values) | wanted
    for name, dtype in wanted.items():
        if name not in known:
            yield Change(what=f"column {name}", text=f"new column {name}: {dtype}", keepable=False)
        elif known[name] != dtype:
            text = f"column {name} {known[name]} -> {dtype}"
            yield Change(what=f"column {name}", text=text, keepable=False)


def _differing(old: tuple[tuple[str, ...], ...], new: tuple[tuple[str, ...], ...]) -> tuple[str, str]:
    """Return the inputs that only one of the two has, as texts; all of them where only their order differs."""
    if set(old) == set(new):
        return _inputs(old), _inputs(new)
    return _inputs([one for one in old if one not in new]), _inputs([one for one in new if one not in old])


def _inputs(inputs: Iterable[tuple[str, ...]]) -> str:
    shown = (f"{name}={source} [{start}, {end})" for name, source, start, end in inputs)
    return ", ".join(shown) or "none"


def _column(column: Column | None) -> str:
    return "none" if column is None else f"{column[0]}: {column[1]}"


def _columns(columns: tuple[Column, ...]) -> str:
    return ", ".join(map(_column, columns))


def _duration(us: int | None) -> str:
    if us is None:
        return "none"
    return "none (events)" if us == 1 else format_duration(timedelta(microseconds=us))


def _shape(view: FeatureView) -> StoredShape:
    used = [(name, str(each.source.name), _bound(each.start), _bound(each.end)) for name, each in view.inputs.items()]
    start = view.materialization_start
    code = hashlib.sha256(transformation_text(view).encode()).hexdigest()[:_HASH_LENGTH]
    secondary = view.secondary_key
    return StoredShape(
        code=code,
        keys=tuple((key.name, str(key.dtype)) for key in view.join_keys),
        secondary=None if secondary is None else (secondary.name, str(secondary.dtype)),
        time_column=view.stored_time_column,
        tile_us=view.tile_us,
        batch_schedule_us=duration_us(view.batch_schedule),
        values=stored_values(view),
        mode=view.mode,
        inputs=tuple(used),
        online_index=view.online_serving_index if view.online else (),
        online_values=tuple((field.name, str(field.dtype)) for field in online_fields(view)) if view.online else (),
        start_us=None if start is None else to_us(start),
        stores=("offline",) * view.offline + ("online",) * view.online,
    )


def _bound(bound: datetime | TimeBound) -> str:
    if isinstance(bound, datetime):
        return format_time(bound)
    sign = "-" if bound.offset < timedelta(0) else "+"
    return bound.constant.value + (f"{sign}{format_duration(bound.offset)}" if bound.offset else "")


def _tuples(value: Any) -> Any:
    """Return a value of JSON with tuples for its lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
