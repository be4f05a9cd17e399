"""Online reads: the newest features of an entity, from the online store alone.

A reader is compiled once per view or service; a read is then one store transaction per view, a roll-up and a vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureReference
from featurekit_dagster.errors import ReadError
from featurekit_dagster.intervals import to_us
from featurekit_dagster.planning.grid import Timing
from featurekit_dagster.serving.join_key_values import key_converter
from featurekit_dagster.serving.online_edges import Edge, Edges, Spans, covers, edges_of
from featurekit_dagster.serving.online_rollup import OnlineRollup
from featurekit_dagster.serving.online_windows import WindowedFeatures
from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN, FeatureStatus, FeatureVector
from featurekit_dagster.serving.wildcard import Matches, matched
from featurekit_dagster.stores.online import OnlineLayout, OnlineSnapshot
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

Found = tuple[Sequence[Any], Sequence[FeatureStatus]]


class OnlineReader:
    """Reads vectors of one view or of the views of a service.

    Args:
        name: The view or service, for messages.
        references: The features to read.
        stores: The workspace's stores.
        qualified: Whether feature names carry their namespace.

    Raises:
        ReadError: A view is not online.
    """

    def __init__(
        self, name: str, references: Sequence[FeatureReference], stores: WorkspaceStores, *, qualified: bool
    ) -> None:
        for reference in references:
            if not reference.view.online:
                raise ReadError(f"{name}: {reference.view.name} is not materialized online (online=False)")
        self._name = name
        self._stores = stores
        self._parts = tuple(_ViewReader(reference, stores, qualified) for reference in references)
        self._converters = {
            column: key_converter(name, column, key.dtype)
            for reference in references
            for column, key in zip(reference.spine_keys, reference.view.join_keys, strict=True)
        }
        needed = {column for part in self._parts for column in part.needed_columns}
        self._optional = {part.wildcard_column for part in self._parts} - {None} - needed
        # a view whose keys are all given is read straight away: no join, no second mapping of its keys
        self._only = self._parts[0] if len(self._parts) == 1 and not self._optional else None
        self._plan = tuple((column, self._converters[column]) for column in self._parts[0].columns)

    def one(self, join_keys: Mapping[str, Any], include_join_keys: bool = False) -> FeatureVector:
        """Return the vector of one entity."""
        if self._only is None or include_join_keys:
            return self._vector(self._checked(join_keys), to_us(self._stores.clock()), include_join_keys)
        return self._only.read(self._key(join_keys), to_us(self._stores.clock()))

    def many(self, join_keys: Sequence[Mapping[str, Any]], include_join_keys: bool = False) -> list[FeatureVector]:
        """Return the vectors of many entities, in order, all as of one moment of the clock."""
        now_us = to_us(self._stores.clock())
        if self._only is None or include_join_keys:
            checked = [self._checked(keys) for keys in join_keys]
            return [self._vector(keys, now_us, include_join_keys) for keys in checked]
        return self._only.read_many([self._key(keys) for keys in join_keys], now_us)

    def _key(self, join_keys: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the stored key of the only view: serving index first."""
        if not isinstance(join_keys, Mapping) or len(join_keys) != len(self._plan):
            raise self._key_error(join_keys)
        try:
            return tuple([convert(join_keys[column]) for column, convert in self._plan])
        except KeyError:
            raise self._key_error(join_keys) from None

    def _checked(self, join_keys: Mapping[str, Any]) -> dict[str, Any]:
        """Return the join keys in the types they are stored in."""
        converters = self._converters
        try:
            checked = {name: converters[name](value) for name, value in join_keys.items()}
        except (KeyError, AttributeError):
            raise self._key_error(join_keys) from None
        if len(checked) < len(converters) and not set(converters) - set(checked) <= self._optional:
            raise self._key_error(join_keys)
        return checked

    def _key_error(self, join_keys: Any) -> ReadError:
        wanted = ", ".join(self._converters)
        if not isinstance(join_keys, Mapping):
            return ReadError(f"{self._name}: join_keys is a {type(join_keys).__name__}; give a mapping of {wanted}")
        missing = [name for name in self._converters if name not in join_keys and name not in self._optional]
        unknown = [str(name) for name in join_keys if name not in self._converters]
        what = [f"{', '.join(missing)} missing"] if missing else []
        what += [f"{', '.join(unknown)} unknown"] if unknown else []
        return ReadError(f"{self._name}: join keys {' and '.join(what)}; give {wanted}")

    def _vector(self, join_keys: dict[str, Any], now_us: int, include_join_keys: bool) -> FeatureVector:
        if self._optional and not self._optional <= join_keys.keys():
            vector = self._open_vector(join_keys, now_us)
        elif len(self._parts) == 1:
            vector = self._parts[0].read(self._parts[0].key_of(join_keys), now_us)
        else:
            vector = FeatureVector.joined([part.read(part.key_of(join_keys), now_us) for part in self._parts])
        return _with_keys(join_keys, vector) if include_join_keys else vector

    def _open_vector(self, join_keys: dict[str, Any], now_us: int) -> FeatureVector:
        """Return the vector of a read that leaves a wildcard join key out."""
        vectors, done = [], set()
        for part in self._parts:
            column = part.wildcard_column
            if column is None or column in join_keys:
                vectors.append(part.read(part.key_of(join_keys), now_us))
            elif column not in done:
                done.add(column)
                alike = [other for other in self._parts if other.wildcard_column == column]
                vectors.append(matched(column, [other.matches(join_keys, now_us) for other in alike]))
        return FeatureVector.joined(vectors)


def _with_keys(join_keys: Mapping[str, Any], vector: FeatureVector) -> FeatureVector:
    names, values = list(join_keys), list(join_keys.values())
    keys = FeatureVector(names, values, [PRESENT] * len(names), [None] * len(names))
    return FeatureVector.joined([keys, vector])


@dataclass(frozen=True, slots=True)
class _Stored:
    """What of a reader depends on the generation that is read.

    Args:
        layout: How its records are laid out.
        edges: Finds the edge of a read.
        rollup: Rolls tiles up to the features; None without aggregates.
        places: Of a record without aggregates, where the features stand.
    """

    layout: OnlineLayout
    edges: Edges
    rollup: OnlineRollup | None
    places: tuple[int, ...]


class _ViewReader:
    """Reads the features of one reference, for one entity or many."""

    def __init__(self, reference: FeatureReference, stores: WorkspaceStores, qualified: bool) -> None:
        view = self.view = reference.view
        self._stores = stores
        self._timing = Timing.of(view)
        layout = stores.online_layout(view)
        columns = dict(zip(view.key_names, reference.spine_keys, strict=True))
        self.columns = tuple(columns[key.name] for key in layout.key_fields)
        wildcard = view.wildcard_join_key
        self.wildcard_column = None if wildcard is None else columns[wildcard]
        self.needed_columns = self.columns if wildcard is None else self.columns[:-1]
        prefix = f"{reference.label}." if qualified else ""
        self._names = tuple(f"{prefix}{name}" for name in reference.feature_names)
        self._positions = tuple(view.feature_names.index(name) for name in reference.feature_names)
        count = len(self._positions)
        self._nulls = (None,) * count
        self._present, self._missing = (PRESENT,) * count, (MISSING_DATA,) * count
        self._windows = WindowedFeatures(view, self._positions) if view.is_aggregate else None
        self._stored = self._of(layout)

    def key_of(self, join_keys: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the stored key: serving index first."""
        return tuple([join_keys[column] for column in self.columns])

    def _now(self) -> _Stored:
        """Return what is read now; made anew when another generation is."""
        layout, stored = self._stores.online_layout(self.view), self._stored
        if stored.layout is not layout:
            stored = self._stored = self._of(layout)
        return stored

    def _of(self, layout: OnlineLayout) -> _Stored:
        names, view = [field.name for field in layout.value_fields], self.view
        if self._windows is not None:
            windows = WindowedFeatures(view, self._positions, layout.tile_us)
            edges = edges_of(view, windows, len(self._positions))
            return _Stored(layout, edges, windows.rollup(layout.value_fields), ())
        places = tuple(names.index(view.feature_names[at]) for at in self._positions)
        return _Stored(layout, edges_of(view, None, len(places)), None, places)

    def read(self, key: tuple[Any, ...], now_us: int) -> FeatureVector:
        """Return the vector of one entity."""
        stored = self._now()
        with self._stores.online.snapshot(stored.layout) as snapshot:
            edge = stored.edges.at(snapshot, now_us)
            values, statuses = self._answer(stored, snapshot, key, edge, now_us)
        return FeatureVector(self._names, values, statuses, edge.times)

    def read_many(self, keys: Sequence[tuple[Any, ...]], now_us: int) -> list[FeatureVector]:
        """Return the vectors of many entities, from one snapshot."""
        names, stored = self._names, self._now()
        with self._stores.online.snapshot(stored.layout) as snapshot:
            edge = stored.edges.at(snapshot, now_us)
            times = edge.times
            rollup, edge_us = stored.rollup, edge.served_us
            if rollup is None or edge_us is None:
                answers = [self._answer(stored, snapshot, key, edge, now_us) for key in keys]
            else:
                packed = snapshot.packed_tiles_many(keys, edge.since_us, edge_us)
                answers = [self._finished(answer, edge) for answer in rollup.many(packed, edge_us)]
        return [FeatureVector(names, values, statuses, times) for values, statuses in answers]

    def _answer(
        self, stored: _Stored, snapshot: OnlineSnapshot, key: tuple[Any, ...], edge: Edge, now_us: int
    ) -> Found:
        edge_us = edge.served_us
        if edge_us is None:
            status = UNKNOWN if edge.us is None else MISSING_DATA
            return self._nulls, (status,) * len(self._nulls)
        if stored.rollup is not None:
            packed = snapshot.packed_tiles(key, edge.since_us, edge_us)
            return self._finished(stored.rollup.one(packed, edge_us), edge)
        return self._newest(stored, snapshot.read([key])[0], edge.spans, edge_us, now_us)

    def _finished(self, answer: Sequence[Any] | None, edge: Edge) -> Found:
        """Return rolled-up values with their statuses; None is the answer of a key without tiles."""
        assert self._windows is not None
        values, statuses = (self._windows.defaults, self._missing) if answer is None else (answer, self._present)
        if edge.complete:
            return values, statuses
        shown = [v if k else None for v, k in zip(values, edge.known, strict=True)]
        return shown, [s if k else UNKNOWN for s, k in zip(statuses, edge.known, strict=True)]

    def _newest(
        self, stored: _Stored, rows: Sequence[tuple[Any, ...]], spans: Spans, edge_us: int, now_us: int
    ) -> Found:
        """Answer with the stored row, if it is alive and no newer one can be missing between it and the edge.

        A row at or after the edge was written by a job that has not recorded its coverage yet: the state after the job.
        """
        since = self._since(now_us)
        row = rows[0] if rows else None
        if row is not None and (since is None or row[0] >= since):
            if row[0] >= edge_us or covers(spans, row[0], edge_us):
                values = row[1:]
                return [values[p] for p in stored.places], (PRESENT,) * len(self._positions)
            return self._nulls, (UNKNOWN,) * len(self._nulls)
        status = MISSING_DATA if self._is_complete(spans, edge_us, now_us) else UNKNOWN
        return self._nulls, (status,) * len(self._nulls)

    def _since(self, now_us: int) -> int | None:
        """Return the first timestamp that a row may have to be served; None is any."""
        timing = self._timing
        oldest = None if timing.ttl_us is None else timing.edge(now_us) - timing.ttl_us
        return max((t for t in (oldest, timing.start_us) if t is not None), default=None)

    def _is_complete(self, spans: Spans, edge_us: int, now_us: int) -> bool:
        """Tell whether no row that may be served can be missing."""
        since = self._since(now_us)
        return since is None or since >= edge_us or covers(spans, since, edge_us)

    def matches(self, join_keys: Mapping[str, Any], now_us: int) -> Matches:
        """Return what is known of the keys that match, where the wildcard join key is left out."""
        prefix = tuple([join_keys[column] for column in self.needed_columns])
        stored = self._now()
        with self._stores.online.snapshot(stored.layout) as snapshot:
            edge = stored.edges.at(snapshot, now_us)
            edge_us = edge.served_us
            if edge_us is None:
                known: Sequence[bool] = [edge.us is not None] * len(self._names)
                return Matches(self._names, {}, self._nulls, known, edge.effective_us)
            if stored.rollup is None:
                rows = snapshot.read_prefix(prefix).items()
                answers = {k[-1]: self._newest(stored, r, edge.spans, edge_us, now_us) for k, r in rows}
                found = {k: values for k, (values, statuses) in answers.items() if statuses[0] is not MISSING_DATA}
                known = [self._is_complete(edge.spans, edge_us, now_us)] * len(self._names)
                return Matches(self._names, found, self._nulls, known, edge.effective_us)
            tiles = snapshot.packed_tiles_prefix(prefix, edge.since_us, edge_us)
            rolled = zip(tiles, stored.rollup.many(list(tiles.values()), edge_us), strict=True)
            found = {key[-1]: self._finished(answer, edge)[0] for key, answer in rolled if answer is not None}
        return Matches(self._names, found, self._finished(None, edge)[0], edge.known, edge.effective_us)
