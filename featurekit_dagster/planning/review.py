"""What a person should know before deciding about a plan: what is new, what a rebuild would take, what would go.

Pure, beside `planner`, which says what is done without being asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import IntervalSet, format_time, from_us
from featurekit_dagster.planning.generations import GenerationRecord, GenerationState, StoredShape
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE, LedgerSnapshot, RemovedView, ViewPlan

NEW = "a new feature view"
REMOVED_AFTER = timedelta(hours=1)
"""How long a replaced generation is kept, because reads that began before may still use it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetiredGeneration:
    """A generation of a declared view that nothing uses any more.

    Args:
        view: The feature view.
        generation: Its number.
        removable_at: From when on it may be removed.
    """

    view: str
    generation: int
    removable_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewReview:
    """What there is to say of one view's plan.

    Args:
        plan: What is done without being asked.
        news: What has changed that needs no decision.
        rebuild: What `--rebuild` would do; None where no decision is needed.
        stored: The generation that reads answer from and that would be replaced; None where no decision is needed.
        covered: Store to what is materialized there in that generation.
    """

    plan: ViewPlan
    news: tuple[str, ...] = ()
    rebuild: ViewPlan | None = None
    stored: int | None = None
    covered: Mapping[str, IntervalSet] = field(default_factory=dict)

    @property
    def keepable(self) -> bool:
        """Whether what is stored can stand as it is."""
        return all(change.keepable for change in self.plan.changes)


def review_view(
    view: FeatureView, snapshot: LedgerSnapshot, records: Sequence[GenerationRecord], now: datetime
) -> ViewReview:
    """Return what there is to say of a view's plan.

    Args:
        view: The feature view.
        snapshot: What is known of the workspace; where a decision is needed, of the view what its current generation
            covers.
        records: The generations of the view.
        now: Time of planning.
    """
    plan = plan_view(view, snapshot, now)
    news = _news(view, snapshot, records)
    if not plan.needs_decision:
        return ViewReview(plan=plan, news=news)
    covered = {store: found for store in (OFFLINE, ONLINE) if (found := snapshot.coverage(view.name, store))}
    return ViewReview(
        plan=plan,
        news=news,
        rebuild=plan_view(view, _as_if_rebuilt(view, snapshot, records), now),
        stored=current_generation(records) or snapshot.generation.get(view.name, 1),
        covered=covered,
    )


def current_generation(records: Sequence[GenerationRecord]) -> int | None:
    """Return the generation that reads answer from; None where there is none."""
    return next((each.generation for each in records if each.state is GenerationState.CURRENT), None)


def retired_generations(
    records: Mapping[str, Sequence[GenerationRecord]], kept: timedelta = REMOVED_AFTER
) -> tuple[RetiredGeneration, ...]:
    """Return the generations that nothing uses any more, with the time from which on they may be removed."""
    return tuple(
        RetiredGeneration(view=view, generation=each.generation, removable_at=each.changed_at + kept)
        for view, found in records.items()
        for each in found
        if each.state is GenerationState.RETIRED
    )


def removed_record(removed: RemovedView) -> ViewPlan:
    """Return the plan of a view that is declared no more: nothing is run for it."""
    reason = "it is declared no more; featurekit apply removes what is stored of it"
    return ViewPlan(view=removed.view, runs=(), wanted=None, reason=reason)


def _as_if_rebuilt(view: FeatureView, snapshot: LedgerSnapshot, records: Sequence[GenerationRecord]) -> LedgerSnapshot:
    """Return a snapshot in which a new, empty generation of a view is being built beside what there is."""
    newest = max((record.generation for record in records), default=snapshot.generation.get(view.name, 1))
    others = {place: found for place, found in snapshot.covered.items() if place[0] != view.name}
    own = {place: found for place, found in snapshot.covered.items() if place[0] == view.name}
    return replace(
        snapshot,
        covered=others,
        superseded={**snapshot.superseded, **own},
        running={name: found for name, found in snapshot.running.items() if name != view.name},
        generation={**snapshot.generation, view.name: newest + 1},
        changes={name: found for name, found in snapshot.changes.items() if name != view.name},
    )


def _news(view: FeatureView, snapshot: LedgerSnapshot, records: Sequence[GenerationRecord]) -> tuple[str, ...]:
    """Return what of a declaration is other than when it was last materialized, and needs no decision."""
    generation = snapshot.generation.get(view.name, 1)
    stored = next((record.shape for record in records if record.generation == generation), None)
    if stored is None:
        known = records or any(name == view.name for name, _ in snapshot.covered)
        return () if known else (NEW,)
    declared, found = StoredShape.of(view), []
    if stored.start_us != declared.start_us:
        found.append(f"materialization start {_time(stored.start_us)} -> {_time(declared.start_us)}")
    found += [f"now {store}, too" for store in declared.stores if store not in stored.stores]
    found += [f"no longer {store}" for store in stored.stores if store not in declared.stores]
    names = {name for name, _ in declared.values}
    found += [f"column {name} is no longer declared" for name, _ in stored.values if name not in names]
    return tuple(found)


def _time(us: int | None) -> str:
    return "none" if us is None else format_time(from_us(us))
