"""Asset checks: is what is stored what was declared, and is it all there?

They run at the end of each materialization, on its range, and whenever a person asks, on the whole view. Results carry
counts only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.windows import format_duration
from featurekit_dagster.engine.duck import connect, naive_literal
from featurekit_dagster.engine.local import stored_schema
from featurekit_dagster.errors import TableMissing
from featurekit_dagster.intervals import Interval, IntervalSet, floor_time, format_time, from_us
from featurekit_dagster.planning.planner import stores_of, wanted_interval
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.sql_text import quoted
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

SCHEMA, INSIDE_COVERAGE, UNIQUE_ROWS, UP_TO_DATE = "schema", "inside_coverage", "unique_rows", "up_to_date"
FRESH = "fresh"

_OFFLINE_CHECKS = {
    SCHEMA: "The offline table has the declared columns, with the declared types.",
    INSIDE_COVERAGE: "No row of the offline table lies outside the intervals that the ledger knows to be materialized.",
    UNIQUE_ROWS: "No two rows of the offline table have the same join keys and time.",
}
_FRESH = "The newest event of the stream is no older than the view's expected_feature_freshness."
_UP_TO_DATE = "Every interval whose sources are complete is materialized in every store that the view writes."


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckOutcome:
    """What one check found.

    Args:
        name: Which check.
        passed: Whether all is well.
        description: One sentence.
        counts: Numbers and intervals, never values.
        warns: Whether a failure is only a warning.
    """

    name: str
    passed: bool
    description: str
    counts: dict[str, int | str] = field(default_factory=dict)
    warns: bool = False

    def result(self, key: dg.AssetKey) -> dg.AssetCheckResult:
        """Return what a step that carries the check yields."""
        return dg.AssetCheckResult(asset_key=key, check_name=self.name, **self._facts())

    def evaluation(self, key: dg.AssetKey) -> dg.AssetCheckEvaluation:
        """Return what any other step logs."""
        return dg.AssetCheckEvaluation(asset_key=key, check_name=self.name, **self._facts())

    def _facts(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "description": self.description,
            "severity": dg.AssetCheckSeverity.WARN if self.warns else dg.AssetCheckSeverity.ERROR,
            "metadata": {f"featurekit/{name}": value for name, value in self.counts.items()},
        }


def check_specs(view: FeatureView, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """Return the checks of a view, in the order in which they are made."""
    described = {**(_OFFLINE_CHECKS if view.offline else {}), UP_TO_DATE: _UP_TO_DATE}
    described |= {FRESH: _FRESH} if view.expected_feature_freshness is not None else {}
    return [dg.AssetCheckSpec(name, asset=key, description=text) for name, text in described.items()]


def check_view(
    view: FeatureView, stores: WorkspaceStores, now: datetime, interval: Interval | None = None
) -> Iterator[CheckOutcome]:
    """Yield what each check of a view finds.

    Args:
        view: The feature view.
        stores: Where rows and record are kept.
        now: Time by which complete intervals are told.
        interval: Rows are compared with each other only in this range; everywhere by default.
    """
    if view.offline:
        yield from _check_offline(view, stores, interval)
    yield _check_up_to_date(view, stores, now)
    if view.expected_feature_freshness is not None:
        yield check_fresh(view, newest_event(view, stores), now)


def _check_offline(view: FeatureView, stores: WorkspaceStores, interval: Interval | None) -> Iterator[CheckOutcome]:
    covered = stores.coverage(view, OFFLINE)
    try:
        faults = stores.offline.schema_faults(view.name, stored_schema(view), stores.generation(view))
    except TableMissing:
        faults = ["there is no offline table, although the ledger says that intervals are materialized"]
        faults = faults if covered else []
        for name in _OFFLINE_CHECKS:
            yield CheckOutcome(name=name, passed=not faults, description="; ".join(faults) or "Nothing is stored yet.")
        return
    said = "; ".join(faults) or "All declared columns are stored."
    yield CheckOutcome(name=SCHEMA, passed=not faults, description=said, counts={"faults": len(faults)})
    if faults:
        for name in (INSIDE_COVERAGE, UNIQUE_ROWS):
            yield CheckOutcome(name=name, passed=False, description="Not looked at: the columns are not as declared.")
        return
    outside = _rows_outside(view, stores, covered)
    yield CheckOutcome(
        name=INSIDE_COVERAGE,
        passed=outside == 0,
        description=f"{outside:,} rows lie outside the materialized intervals.",
        counts={"rows_outside": outside, "intervals": len(covered)},
    )
    repeated = _repeated(view, stores, interval)
    yield CheckOutcome(
        name=UNIQUE_ROWS,
        passed=repeated == 0,
        # rows of a view without aggregates may repeat in its source; reads then take the later one
        warns=not view.is_aggregate,
        description=f"{repeated:,} pairs of join keys and time occur more than once.",
        counts={"repeated": repeated} | ({} if interval is None else {"looked_at": str(interval)}),
    )


def _rows_outside(view: FeatureView, stores: WorkspaceStores, covered: IntervalSet) -> int:
    time = quoted(view.stored_time_column)
    spans = [
        f"({time} >= {naive_literal(i.start)}::TIMESTAMPTZ AND {time} < {naive_literal(i.end)}::TIMESTAMPTZ)"
        for i in covered
    ]
    inside = " OR ".join(spans) or "false"
    return _count(view, stores, None, [view.stored_time_column], "count(*) FROM {rows} WHERE NOT (" + inside + ")")


def _repeated(view: FeatureView, stores: WorkspaceStores, interval: Interval | None) -> int:
    columns = [*view.key_names, view.stored_time_column]
    names = ", ".join(map(quoted, columns))
    query = f"count(*) FROM (SELECT 1 FROM {{rows}} GROUP BY {names} HAVING count(*) > 1)"
    return _count(view, stores, interval, columns, query)


def _count(
    view: FeatureView, stores: WorkspaceStores, interval: Interval | None, columns: Sequence[str], query: str
) -> int:
    with connect() as con:
        rows = stores.offline.relation(
            con,
            view.name,
            schema=stored_schema(view),
            time_column=view.stored_time_column,
            interval=interval,
            columns=columns,
            generation=stores.generation(view),
        )
        found = con.execute("SELECT " + query.replace("{rows}", rows)).fetchone()
    return int(found[0]) if found else 0


def _check_up_to_date(view: FeatureView, stores: WorkspaceStores, now: datetime) -> CheckOutcome:
    """Compare what should be materialized with the ledger alone: Dagster goes on showing what the ledger has lost."""
    wanted = wanted_interval(view, now)
    if wanted is None:
        return CheckOutcome(name=UP_TO_DATE, passed=True, description="Nothing has to be materialized by itself yet.")
    newest = Interval(max(wanted.start, wanted.end - view.batch_schedule), wanted.end)
    lacking = [store for store in stores_of(view) if not stores.provided(view, store).covers(newest)]
    gaps = [gap for store in stores_of(view) for gap in IntervalSet([wanted]).subtract(stores.provided(view, store))]
    said = f"{wanted} is materialized."
    if lacking:
        said = f"{newest} is not materialized {' and '.join(lacking)}."
    elif gaps:
        said = f"{newest} is materialized, but not all before it: {min(gaps)} is the first gap."
    return CheckOutcome(
        name=UP_TO_DATE,
        passed=not gaps,
        warns=True,
        description=said,
        counts={"newest_interval": str(newest), "gaps": len(gaps)},
    )


def newest_event(view: FeatureView, stores: WorkspaceStores) -> datetime | None:
    """Return the time of the newest event that a stream view has online; None before the first."""
    with stores.online.snapshot(stores.online_layout(view)) as snapshot:
        newest_us = snapshot.stream.newest_us
    return None if newest_us is None else from_us(newest_us)


def check_fresh(view: FeatureView, newest: datetime | None, now: datetime) -> CheckOutcome:
    """Return whether the newest event of a view, in tiles the end of its tile, is as new as was expected.

    Args:
        view: A stream view that says how fresh it should be.
        newest: Time of the newest event; None before the first.
        now: The time.
    """
    expected, tile = view.expected_feature_freshness, view.aggregation_interval
    if expected is None or newest is None:
        return CheckOutcome(name=FRESH, passed=expected is None, warns=True, description="No event has come yet.")
    age = now - (floor_time(newest, tile) + tile if view.is_tiled and tile is not None else newest)
    counts: dict[str, int | str] = {"age_seconds": round(age.total_seconds()), "newest_event": format_time(newest)}
    said = f"The newest event is of {format_time(newest)}; {format_duration(expected)} are expected."
    return CheckOutcome(name=FRESH, passed=age <= expected, warns=True, description=said, counts=counts)
