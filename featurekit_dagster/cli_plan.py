"""What `featurekit plan` says: what is missing, what has changed, what would be replaced or removed, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from featurekit_dagster.cli_output import (
    SHOWN_INTERVALS,
    count_of,
    print_line,
    print_notes,
    print_table,
    short_interval,
    short_intervals,
    to_the_second,
)
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import NotFoundError
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.planning.generations import GenerationRecord
from featurekit_dagster.planning.planner import plan_removed, stores_of
from featurekit_dagster.planning.review import (
    NEW,
    RetiredGeneration,
    ViewReview,
    current_generation,
    removed_record,
    retired_generations,
    review_view,
)
from featurekit_dagster.planning.tasks import (
    OFFLINE,
    ONLINE,
    LedgerSnapshot,
    PartitionLimits,
    RemovedView,
    RunPlan,
    ViewPlan,
)

if TYPE_CHECKING:
    from rich.console import Console

    from featurekit_dagster.sdk import Workspace

DO_IT = "Run featurekit materialize to do it."
NOTHING = "There is nothing to do."


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanReview:
    """A plan with everything that a person may have to decide.

    Args:
        workspace: Name of the workspace.
        now: Time of planning.
        views: The chosen feature views.
        reviews: What there is to say of each of them.
        removed: Views that are declared no more and of which something is stored.
        forgotten: Views that are declared no more and of which nothing is stored.
        retired: Generations that nothing uses any more.
        rows: Name of a view and a generation that would go to its number of rows, where that is known.
        replaced: View to the number of rows that its runs replace, because intervals of its grid are covered in part;
            None where it is not known. Views that replace nothing are left out.
    """

    workspace: str
    now: datetime
    views: tuple[FeatureView, ...]
    reviews: tuple[ViewReview, ...]
    removed: tuple[RemovedView, ...] = ()
    forgotten: tuple[str, ...] = ()
    retired: tuple[RetiredGeneration, ...] = ()
    rows: Mapping[tuple[str, int], int] = field(default_factory=dict)
    replaced: Mapping[str, int | None] = field(default_factory=dict)

    @classmethod
    def of(cls, bound: Workspace, names: Sequence[str] | None) -> PlanReview:
        """Return the plan of a workspace.

        Args:
            bound: The workspace.
            names: Feature views, also such as are declared no more; all of them by default.

        Raises:
            NotFoundError: A name is neither declared nor known to the ledger.
        """
        snapshot, now = bound.snapshot(), bound.now()
        chosen = _chosen(bound, snapshot, names)
        views = [view for view in bound.repo.views if view.name in chosen]
        if names:
            views.sort(key=lambda view: chosen.index(view.name))
        ledger = bound.stores.ledger if bound.stores.has_ledger else None
        records = {view.name: ledger.generations(bound.name, view.name) if ledger else () for view in views}
        seen = _with_current_coverage(bound, snapshot, records)
        reviews = tuple(review_view(view, seen, records[view.name], now) for view in views)
        removed = tuple(each for each in plan_removed(snapshot) if each.view in chosen)
        empty = (each.view for each in snapshot.undeclared.values() if not any(each.covered.values()))
        retired = retired_generations(records)
        return cls(
            workspace=bound.name,
            now=now,
            views=tuple(views),
            reviews=reviews,
            removed=removed,
            forgotten=tuple(name for name in empty if name in chosen),
            retired=retired,
            rows=_row_counts(bound, reviews, removed, retired),
            replaced=dict(_replaced_rows(bound, views, reviews)),
        )

    @property
    def decisions(self) -> tuple[ViewReview, ...]:
        """The views that wait for a person's decision."""
        return tuple(review for review in self.reviews if review.plan.needs_decision)

    @property
    def plans(self) -> tuple[ViewPlan, ...]:
        """What is done without being asked."""
        return tuple(review.plan for review in self.reviews)

    @property
    def is_destructive(self) -> bool:
        """Whether something stored would be replaced, declared to stand, or removed."""
        return bool(self.decisions or self.removed)


def plan_records(review: PlanReview) -> list[dict[str, Any]]:
    """Return the plan as plain dicts, one per view: the declared ones, then those that would be removed."""
    retired: dict[str, list[dict[str, Any]]] = {}
    for each in review.retired:
        rows = review.rows.get((each.view, each.generation))
        facts = {"generation": each.generation, "rows": rows, "removable_at": each.removable_at}
        retired.setdefault(each.view, []).append(facts)
    found = [
        {**plan_record(each.plan), **_review_record(each, review), "retired": retired.get(each.plan.view, [])}
        for each in review.reviews
    ]
    return found + [_removed_record(each, review) for each in review.removed]


def plan_record(plan: ViewPlan) -> dict[str, Any]:
    """Return what is done without being asked; counts first, then every run with its jobs."""
    return {
        "view": plan.view,
        "reason": plan.reason,
        "wanted": plan.wanted,
        "partitions": plan.partitions,
        "jobs": plan.jobs,
        "queries": plan.queries,
        "runs": [_run_record(run) for run in plan.runs],
        "warnings": plan.warnings,
        "partition_limits": plan.limits and _limits_record(plan.limits),
        "generation": plan.generation,
    }


def _run_record(run: RunPlan) -> dict[str, Any]:
    jobs = [
        {"interval": task.interval, "online": task.online, "offline": task.offline, "overwrite": task.overwrite}
        for task in run.tasks
    ]
    return {"interval": run.interval, "jobs": jobs}


def _review_record(each: ViewReview, review: PlanReview) -> dict[str, Any]:
    rebuild, stored = each.rebuild, None
    if each.stored is not None:
        rows = review.rows.get((each.plan.view, each.stored))
        stored = {"generation": each.stored, "rows": rows, "covered": each.covered}
    changes = each.plan.changes
    return {
        "news": each.news,
        "changes": [{"what": c.what, "text": c.text, "keepable": c.keepable} for c in changes],
        "needs_decision": each.plan.needs_decision,
        "removed": False,
        "stored": stored,
        "rebuild": rebuild and {**_counts(rebuild), "generation": rebuild.generation},
        "replaces": _replaces_record(each.plan.view, review),
    }


def _replaces_record(view: str, review: PlanReview) -> dict[str, int | None] | None:
    return {"rows": review.replaced[view]} if view in review.replaced else None


def _removed_record(removed: RemovedView, review: PlanReview) -> dict[str, Any]:
    rows = [review.rows[removed.view, g] for g in removed.generations if (removed.view, g) in review.rows]
    stored = {"generations": removed.generations, "rows": sum(rows) if rows else None, "covered": removed.covered}
    nothing = {"news": [], "changes": [], "needs_decision": False, "rebuild": None, "replaces": None, "retired": []}
    return {**plan_record(removed_record(removed)), **nothing, "removed": True, "stored": stored}


def _counts(plan: ViewPlan) -> dict[str, int]:
    return {"partitions": plan.partitions, "jobs": plan.jobs, "queries": plan.queries, "runs": len(plan.runs)}


def _limits_record(limits: PartitionLimits) -> dict[str, Any]:
    reached = [{"partitions": number, "reached_at": at} for number, at in limits.reached_at.items()]
    return {"partitions_by_now": limits.partitions, "limits": reached}


def print_plan(console: Console, review: PlanReview, advice: str = DO_IT) -> None:
    """Print one row per view, totals, the reasons, what needs a decision, the warnings, and what to do."""
    print_line(console, f"Plan of workspace {review.workspace} at {to_the_second(review.now)}", style="bold")
    console.print()
    _print_table(console, review)
    reasons = [(each.view, each.reason + _replaces(each, review)) for each in review.plans if not each.needs_decision]
    print_notes(console, reasons)
    news = [(each.plan.view, "; ".join(each.news)) for each in review.reviews if each.news != (NEW,) and each.news]
    print_notes(console, news, title="Changed, without anything to decide")
    print_decisions(console, review)
    print_notes(console, [(each.view, text) for each in review.plans for text in each.warnings], title="Warnings")
    console.print()
    print_line(console, " ".join(_what_to_do(review, advice)))


def print_decisions(console: Console, review: PlanReview) -> None:
    """Print what `featurekit apply` would do: changed views, removed ones, generations that nothing uses."""
    changed = [(each.plan.view, _changed_text(each, review)) for each in review.decisions]
    print_notes(console, changed, title="Changed, so that you have to decide")
    removed = [(each.view, _removed_text(each, review)) for each in review.removed]
    print_notes(console, removed, title="Declared no more")
    retired = [(each.view, _retired_text(each, review)) for each in review.retired]
    print_notes(console, retired, title="Replaced")


def _print_table(console: Console, review: PlanReview) -> None:
    titles = ("Feature view", "Interval", "Partitions", "Jobs", "Queries", "Runs")
    rows: list[tuple[Any, ...]] = [
        (p.view, _intervals_cell(view, p.runs), p.partitions, p.jobs, p.queries, len(p.runs))
        for view, p in zip(review.views, review.plans, strict=True)
    ]
    sums = [sum(row[column] for row in rows) for column in range(2, len(titles))]
    total = (count_of(len(rows), "feature view"), None, *sums) if len(rows) > 1 else None
    print_table(console, titles, rows, total)


def _intervals_cell(view: FeatureView, runs: Sequence[RunPlan]) -> str:
    """Return one line per run, with the store where it writes only one of two."""
    lines = []
    for run in runs[:SHOWN_INTERVALS]:
        missing = {ONLINE for task in run.tasks if task.online} | {OFFLINE for task in run.tasks if task.offline}
        only = f" {missing.pop()} only" if len(missing) < len(stores_of(view)) else ""
        lines.append(short_interval(run.interval) + only)
    more = len(runs) - SHOWN_INTERVALS
    return "\n".join(lines + ([f"and {more:,} more"] if more > 0 else []))


def _changed_text(each: ViewReview, review: PlanReview) -> str:
    """Return what has changed, what is stored, and what either decision means."""
    refused = [change.text for change in each.plan.changes if not change.keepable]
    keep = "--keep lets them stand, if no stored value would differ"
    if refused:
        keep = f"--keep is not possible ({'; '.join(refused)})"
    rebuild = "--rebuild makes them anew beside those"
    if each.rebuild is not None:
        counts = _counts(each.rebuild)
        parts = [count_of(counts[name], noun) for name, noun in (("partitions", "partition"), ("jobs", "job"))]
        parts.append(count_of(counts["queries"], "query", "queries"))
        rebuild += f" as generation {each.rebuild.generation}, in {', '.join(parts)}"
    stored = f"Stored are {_rows(review, each.plan.view, [each.stored or 1])} for {_covered(each.covered)}"
    return f"{'; '.join(change.text for change in each.plan.changes)}. {stored}. {rebuild}; {keep}."


def _removed_text(each: RemovedView, review: PlanReview) -> str:
    rows = _rows(review, each.view, each.generations)
    return f"featurekit apply removes what is stored of it: {rows} for {_covered(each.covered)}"


def _retired_text(each: RetiredGeneration, review: PlanReview) -> str:
    rows = _rows(review, each.view, [each.generation])
    when = "" if each.removable_at <= review.now else f" from {to_the_second(each.removable_at)} on"
    return f"generation {each.generation} ({rows}) is not read any more; featurekit apply removes it{when}"


def _replaces(plan: ViewPlan, review: PlanReview) -> str:
    """Return what is replaced where intervals are covered in part, as the end of a sentence."""
    if plan.view not in review.replaced:
        return ""
    rows = review.replaced[plan.view]
    known = "some offline rows" if rows is None else count_of(rows, "offline row")
    return f"; replaces {known} of intervals that are covered in part"


def _rows(review: PlanReview, view: str, generations: Iterable[int]) -> str:
    """Return the number of offline rows of generations, in words."""
    known = [review.rows[view, each] for each in generations if (view, each) in review.rows]
    return count_of(sum(known), "offline row") if known else "no offline rows"


def _covered(covered: Mapping[str, IntervalSet]) -> str:
    """Return what is covered, by store where they differ."""
    shown = {store: short_intervals(found) for store, found in covered.items() if found}
    if len(set(shown.values())) == 1:
        return f"{next(iter(shown.values()))} ({' and '.join(shown)})"
    return ", ".join(f"{text} ({store})" for store, text in shown.items()) or "nothing"


def _what_to_do(review: PlanReview, advice: str) -> list[str]:
    """Return what a person does next, in sentences."""
    found = [advice] if any(plan.runs for plan in review.plans) else []
    if review.decisions:
        keep = " or --keep" if any(each.keepable for each in review.decisions) else ""
        found.append(f"Decide about what has changed with featurekit apply --rebuild{keep}.")
    elif review.removed or any(each.removable_at <= review.now for each in review.retired):
        found.append("Run featurekit apply to remove what is not used.")
    return found or [NOTHING]


def _row_counts(
    bound: Workspace,
    reviews: Sequence[ViewReview],
    removed: Sequence[RemovedView],
    retired: Sequence[RetiredGeneration],
) -> dict[tuple[str, int], int]:
    """Count the rows of what would go; the offline store is opened for that alone."""
    going = [(each.plan.view, each.stored) for each in reviews if each.stored is not None]
    going += [(each.view, generation) for each in removed for generation in each.generations]
    going += [(each.view, each.generation) for each in retired]
    counts = {(view, number): bound.stores.offline.row_count(view, number) for view, number in going}
    return {place: count for place, count in counts.items() if count is not None}


def _replaced_rows(
    bound: Workspace, views: Sequence[FeatureView], reviews: Sequence[ViewReview]
) -> Iterator[tuple[str, int | None]]:
    """Yield the views that replace rows without being asked, with the number of rows."""
    for view, each in zip(views, reviews, strict=True):
        spans = [task.interval for task in each.plan.tasks if task.overwrite and task.offline]
        if spans:
            count, column = bound.stores.offline.row_count, view.stored_time_column
            counts = [count(view.name, each.plan.generation, interval=span, time_column=column) for span in spans]
            yield view.name, None if None in counts else sum(n for n in counts if n is not None)


def _with_current_coverage(
    bound: Workspace, snapshot: LedgerSnapshot, records: Mapping[str, Sequence[GenerationRecord]]
) -> LedgerSnapshot:
    """Return a snapshot that says of changed views what the generation covers that reads answer from."""
    covered = dict(snapshot.covered)
    for view in snapshot.changes.keys() & records.keys():
        current = current_generation(records[view])
        if current is not None and current != snapshot.generation.get(view):
            for store in (OFFLINE, ONLINE):
                covered[view, store] = bound.stores.ledger.coverage(bound.name, view, store, current)
    return replace(snapshot, covered=covered)


def _chosen(bound: Workspace, snapshot: LedgerSnapshot, names: Sequence[str] | None) -> list[str]:
    known = [*(view.name for view in bound.repo.views), *snapshot.undeclared]
    for name in names or ():
        if name not in known:
            raise NotFoundError(kind="feature view", name=name, known=known)
    return list(dict.fromkeys(names or known))
