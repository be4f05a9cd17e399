"""Whether the online store answers what the offline store does: vectors of a sample of keys, compared as of one time.

Keys are drawn from both stores, so that what one of them lacks is found as well. Both are read as of the end of what is
covered, where the online store has its newest state and the offline store can answer too. Nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema, arrow_type
from featurekit_dagster.domain.feature_view import AggregationLeadingEdge, FeatureReference, FeatureView
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.engine.sameness import FeatureDifference, compare_feature
from featurekit_dagster.errors import NotMaterialized, ReadError, UnsettledView
from featurekit_dagster.intervals import Interval, format_time, from_us, to_us
from featurekit_dagster.planning.grid import Timing, floor_us, last_ready_end
from featurekit_dagster.planning.online_tiles import newest_end
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.serving.historical import features_for_spine
from featurekit_dagster.serving.online import OnlineReader
from featurekit_dagster.serving.stored import FIRST_US, StoredRows
from featurekit_dagster.serving.vector import UNKNOWN, FeatureVector
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.ledger_records import STREAM
from featurekit_dagster.stores.online import Key, OnlineLayout
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

SAMPLE = 1_000
_LAST_US = 1 << 62
_MICROSECOND = timedelta(microseconds=1)
_LOOKS, _NAP_SECONDS = 3, 1.0
_TIME = "_featurekit_time"
Mocks = Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyReport:
    """What a comparison of the two stores of a view found; names, times and counts, never keys or values.

    Args:
        view: Name of the feature view.
        time: The time as of which both were read; None where nothing can be compared.
        keys: Join keys that were compared.
        keys_online: How many of them were drawn from the online store.
        keys_offline: How many of them were drawn from the offline store, or from the source.
        keys_newer: Keys left out because a row that is newer than the time has replaced theirs online.
        from_source: Whether the offline answers were computed from the source.
        features: What was found, per feature.
        note: Why nothing was compared, if so.
    """

    view: str
    time: datetime | None = None
    keys: int = 0
    keys_online: int = 0
    keys_offline: int = 0
    keys_newer: int = 0
    from_source: bool = False
    features: tuple[FeatureDifference, ...] = ()
    note: str | None = None

    @property
    def is_consistent(self) -> bool:
        """Whether no answer differs."""
        return not any(feature.total for feature in self.features)

    @property
    def description(self) -> str:
        """What was found, in one sentence."""
        if self.time is None:
            return self.note or "Nothing was compared."
        wrong = [f"{each.feature} ({each.total:,})" for each in self.features if each.total]
        what = f"{self.keys:,} keys as of {format_time(self.time)}"
        if not wrong:
            return f"Online and offline answers are the same: {what}."
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        return f"Online answers differ from offline ones: {', '.join(wrong[:5])}{more} of {what}."

    def stats(self) -> dict[str, int]:
        """Return the counts as a whole, as the ledger keeps them."""
        names = ("compared", "mismatched", "missing", "extra", "unknown")
        totals = {name: sum(getattr(each, name) for each in self.features) for name in names}
        return {"keys": self.keys, "keys_newer": self.keys_newer, **totals}

    def record(self) -> dict[str, Any]:
        """Return everything as plain values."""
        names = ("feature", "compared", "mismatched", "missing", "extra", "unknown")
        own = ("view", "time", "keys", "keys_online", "keys_offline", "keys_newer", "from_source", "note")
        return {
            **{name: getattr(self, name) for name in own},
            "consistent": self.is_consistent,
            "features": [{name: getattr(each, name) for name in names} for each in self.features],
        }


def check_consistency(
    view: FeatureView,
    stores: WorkspaceStores,
    *,
    sample: int = SAMPLE,
    seed: int = 0,
    mocks: Mocks = None,
    history: FeatureView | None = None,
) -> ConsistencyReport:
    """Compare the online answers of a view with its offline answers.

    A batch view is read as of the end of its newest interval online, plus the data delay; a stream view as of the end
    of its newest interval offline, which its windows online can still answer; a feature table as of now. Where the
    offline store lacks what is needed, or the view writes none, the answers are computed from the source.

    Args:
        view: A feature view that is written online.
        stores: Where it is stored.
        sample: How many keys are drawn from each store; chosen as if by chance, the same ones again for the same keys.
        seed: Another one makes another choice.
        mocks: Parameter to a frame that is used instead of its source; then the answers are computed from it.
        history: The same view with a batch side, where it has none of its own.

    Raises:
        ReadError: The view is not written online, or its features cannot be computed and are not stored.
        UnsettledView: Jobs kept writing the view, so that differences mean nothing.

    Source: issue 6, online = offline consistency; what is the same is in `sameness`.
    """
    if not view.online:
        raise ReadError(f"{view.name} is not materialized online (online=False), so there is nothing to compare")
    for look in range(_LOOKS):
        before = _state(view, stores)
        report = _compared(view, history or view, stores, sample, seed, mocks)
        if report.is_consistent or (before == _state(view, stores) and not _is_written(view, stores)):
            return report
        time.sleep(_NAP_SECONDS * (look + 1))
    raise UnsettledView(view=view.name)


def _state(view: FeatureView, stores: WorkspaceStores) -> tuple[Any, ...]:
    """Return what changes with every job that has ended."""
    with stores.online.snapshot(stores.online_layout(view)) as snapshot:
        return snapshot.epoch, snapshot.coverage_us, stores.generation(view)


def _is_written(view: FeatureView, stores: WorkspaceStores) -> bool:
    """Tell whether a job that writes the view is under way; a stream, which never ends, is no such job."""
    if not stores.has_ledger:
        return False
    active = stores.ledger.jobs(stores.workspace, view.name, ["RUNNING", "MANUAL_CANCELLATION_REQUESTED"])
    writes = [job for job in active if job.kind != STREAM and (job.online or job.offline)]
    return any(attempt.state in ("PENDING", "RUNNING") for job in writes for attempt in job.attempts[-1:])


@dataclass(frozen=True, slots=True)
class _Moment:
    """As of when both stores are read: a time, and the edge that it has."""

    time_us: int
    edge_us: int


def _moment(view: FeatureView, stores: WorkspaceStores, mocks: Mocks) -> _Moment | None:
    """Return the moment at which both stores can answer; None before anything is covered."""
    timing, now_us = Timing.of(view), to_us(stores.clock())
    if view.is_table:
        return _Moment(now_us, timing.edge(now_us))
    if not view.is_stream:
        with stores.online.snapshot(stores.online_layout(view)) as snapshot:
            end = newest_end(snapshot.coverage_us, _LAST_US, timing.grid_us)
    elif view.offline and not mocks:
        ends = [interval.end_us for interval in stores.coverage(view, OFFLINE)]
        end = max(ends, default=None)
    else:
        end = to_us(last_ready_end(view, stores.clock()))
    # a row of a continuous view at the very end belongs to the next interval, which is not offline yet
    return None if end is None else _Moment(timing.visible(end), end)


def _compared(
    view: FeatureView, history: FeatureView, stores: WorkspaceStores, sample: int, seed: int, mocks: Mocks
) -> ConsistencyReport:
    if not (history.inputs or view.is_table):
        note = "The stream has no batch side, so there is no history to compare with."
        return ConsistencyReport(view=view.name, note=note)
    moment = _moment(view, stores, mocks)
    if moment is None:
        return ConsistencyReport(view=view.name, note="Nothing is materialized that could be compared yet.")
    if view.aggregation_leading_edge is AggregationLeadingEdge.LATEST_EVENT_TIME:
        view = replace(view, aggregation_leading_edge=AggregationLeadingEdge.WALL_CLOCK_TIME)
    return _Comparison(view, history, stores.standing_at(from_us(moment.time_us)), moment, mocks).report(sample, seed)


class _Comparison:
    """One comparison of the two stores of a view."""

    def __init__(
        self, view: FeatureView, history: FeatureView, stores: WorkspaceStores, moment: _Moment, mocks: Mocks
    ) -> None:
        self._view, self._history, self._stores, self._moment, self._mocks = view, history, stores, moment, mocks
        self._layout: OnlineLayout = stores.online_layout(view)
        self._names = [field.name for field in self._layout.key_fields]
        self._from_source: bool | None = None

    def report(self, sample: int, seed: int) -> ConsistencyReport:
        """Draw keys, read both stores, and compare."""
        span = self._span()
        online = self._stores.online.sample_keys(self._layout, sample, seed, span)
        offline = self._offline_keys(sample, seed, span)
        keys = list(dict.fromkeys([*online, *offline]))
        kept = self._not_newer(keys)
        vectors = self._vectors(kept)
        return ConsistencyReport(
            view=self._view.name,
            time=from_us(self._moment.time_us),
            keys=len(kept),
            keys_online=len(online),
            keys_offline=len(offline),
            keys_newer=len(keys) - len(kept),
            features=self._differences(kept, vectors),
            from_source=bool(self._from_source),
        )

    def _span(self) -> Interval:
        """Return the interval whose rows the answers are made of."""
        view, edge = self._view, self._moment.edge_us
        since = FIRST_US
        if view.is_aggregate and not view.has_lifetime:
            since = edge - view.reach // _MICROSECOND
        elif not view.is_aggregate and view.ttl is not None:
            timing = Timing.of(view)
            since = floor_us(edge - view.ttl // _MICROSECOND, timing.grid_us)
        return Interval(from_us(max(since, FIRST_US)), from_us(edge))

    def _offline_keys(self, sample: int, seed: int, span: Interval) -> list[Key]:
        """Draw keys from the offline store, or from the source."""
        stored = StoredRows.choose(self._history, self._stores, None, self._mocks)
        names = list(self._view.key_names)
        with connect() as con:
            relation: str | None = "found"
            if stored.from_source:
                found = stored.rows(span.start_us, span.end_us, names)
                con.register("found", found)
            else:
                relation = self._stores.offline_relation(con, self._view, stored_schema(self._view), span, names)
            if relation is None:
                return []
            keys, chosen = ", ".join(map(quoted, names)), ", ".join(map(quoted, self._names))
            query = (
                f"SELECT {chosen} FROM (SELECT DISTINCT {keys} FROM {relation}) ORDER BY hash({keys}, {seed}::BIGINT)"
            )
            rows = con.sql(f"{query} LIMIT {sample}").to_arrow_table()
        schema = arrow_schema(self._layout.key_fields)
        return [tuple(row.values()) for row in rows.cast(schema).to_pylist()]

    def _not_newer(self, keys: Sequence[Key]) -> list[Key]:
        """Leave out keys of a view without aggregates whose row online is newer than the moment."""
        if self._view.is_aggregate:
            return list(keys)
        rows = self._stores.online.read(self._layout, keys)
        return [key for key, found in zip(keys, rows, strict=True) if not found or found[0][0] < self._moment.edge_us]

    def _vectors(self, keys: Sequence[Key]) -> list[FeatureVector]:
        reference = FeatureReference(view=self._view)
        reader = OnlineReader(self._view.name, (reference,), self._stores, qualified=False)
        return reader.many([dict(zip(self._names, key, strict=True)) for key in keys])

    def _differences(self, keys: Sequence[Key], vectors: Sequence[FeatureVector]) -> tuple[FeatureDifference, ...]:
        known = [[status is not UNKNOWN for status in vector.statuses.values()] for vector in vectors]
        rows = [place for place, each in enumerate(known) if any(each)]
        answered = [any(each[at] for each in known) for at in range(len(self._view.feature_names))]
        names = [name for name, is_answered in zip(self._view.feature_names, answered, strict=True) if is_answered]
        offline = self._offline([keys[place] for place in rows], names)
        values = [list(vectors[place].to_dict().values()) for place in rows]
        found = []
        for at, name in enumerate(self._view.feature_names):
            mine = [place for place, row in enumerate(rows) if known[row][at]]
            theirs = offline.get(name, [])
            found.append(
                compare_feature(
                    name,
                    [values[place][at] for place in mine],
                    [theirs[place] for place in mine],
                    self._view.defaults[at],
                    unknown=len(keys) - len(mine),
                )
            )
        return tuple(found)

    def _offline(self, keys: Sequence[Key], names: Sequence[str]) -> dict[str, list[Any]]:
        """Return the offline answers for keys, by feature."""
        if not keys or not names:
            return {}
        columns = list(zip(*keys, strict=True))
        typed = zip(self._layout.key_fields, columns, strict=True)
        arrays = {field.name: pa.array(column, arrow_type(field.dtype)) for field, column in typed}
        spine = pa.table({**arrays, _TIME: pa.array([from_us(self._moment.time_us)] * len(keys))})
        try:
            table = self._answers(spine, names, self._from_source)
        except NotMaterialized:
            if self._history.incremental_backfills or not self._history.inputs:
                raise
            self._from_source = True
            table = self._answers(spine, names, from_source=True)
        return {name: table[f"{self._view.name}__{name}"].to_pylist() for name in names}

    def _answers(self, spine: pa.Table, names: Sequence[str], from_source: bool | None) -> pa.Table:
        chosen = StoredRows.choose(self._history, self._stores, None if self._mocks else from_source, self._mocks)
        self._from_source = chosen.from_source
        reference = FeatureReference(view=self._history, selected=tuple(names))
        frame = features_for_spine(
            (reference,),
            self._stores,
            spine,
            _TIME,
            from_source=None if self._mocks else from_source,
            separator="__",
            allow_gaps=False,
            mocks=self._mocks,
        )
        return frame.to_arrow()
