"""What of a view's history is to be published, and what has to be published again after its rows have changed.

A window is one batch interval. What is published of `[p, p + schedule)` are the changes at all right edges in
`(p, p + schedule]`, so it needs nothing that is later than the window itself.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.intervals import Interval, IntervalSet, duration_us, from_us, to_us
from featurekit_dagster.planning.grid import Timing, ceil_us, floor_us

_LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Publishing:
    """The clock rules of what is published of a view; times are UTC microseconds.

    Args:
        schedule_us: Width of a window.
        timing: The view's clock rules.
        start_us: Start of the first window.
        base_us: Where the history begins: nothing before it is ever needed.
        lookback_us: How far before a window what it needs begins; None is all from the beginning.
        reach_us: How long after written rows what is published may change by them; None is for ever.
        has_carried_rows: Whether the first window of a run repeats older rows, however old they are.
        digest: Changes when what is published changes its meaning.
    """

    schedule_us: int
    timing: Timing
    start_us: int
    base_us: int
    lookback_us: int | None
    reach_us: int | None
    has_carried_rows: bool
    digest: str

    @classmethod
    def of(cls, view: FeatureView) -> Publishing:
        """Return the rules of a view that is published.

        Raises:
            ValueError: It is not published.
        """
        timing, base = Timing.of(view), view.materialization_start
        if view.publish is None or base is None:
            raise ValueError(f"{view.name} is not published")
        schedule_us = duration_us(view.batch_schedule)
        if view.is_aggregate:
            first_us = ceil_us(timing.first_edge_us, timing.grid_us) - 1
            reach_us = None if view.has_lifetime else duration_us(view.reach)
            lookback_us = None if reach_us is None else max(reach_us - timing.grid_us, 0)
        else:
            ttl_us = timing.ttl_us
            first_us = timing.start_us
            reach_us = 0 if ttl_us is None else ttl_us + 1
            lookback_us = None if ttl_us is None else ceil_us(ttl_us, timing.grid_us)
        begin = view.publish.publish_start_time
        if begin is not None:
            first_us = max(first_us, timing.edge(to_us(begin)) - 1)
        return cls(
            schedule_us=schedule_us,
            timing=timing,
            start_us=floor_us(first_us, schedule_us),
            base_us=to_us(base),
            lookback_us=lookback_us,
            reach_us=reach_us,
            has_carried_rows=not view.is_aggregate,
            digest=_digest(view),
        )

    def publishable(self, covered: IntervalSet) -> IntervalSet:
        """Return the windows for which everything needed is covered offline."""
        found = []
        for run in covered:
            first = self.start_us
            if run.start_us > self.base_us:
                if self.lookback_us is None:
                    continue
                first = max(first, ceil_us(run.start_us + self.lookback_us, self.schedule_us))
            last = floor_us(run.end_us, self.schedule_us)
            if first < last:
                found.append(Interval(from_us(first), from_us(last)))
        return IntervalSet(found)

    def outdated(self, published: IntervalSet, written: Interval) -> IntervalSet:
        """Return what of the published windows is no longer true when the rows of an interval were written again."""
        start_us = floor_us(written.start_us, self.schedule_us)
        if self.reach_us is None:
            later = (run for run in published if run.end_us > start_us)
            return IntervalSet(Interval(from_us(max(run.start_us, start_us)), run.end) for run in later)
        end = from_us(ceil_us(written.end_us + self.reach_us, self.schedule_us))
        changed = [Interval(from_us(start_us), end)]
        if self.has_carried_rows:
            width = timedelta(microseconds=self.schedule_us)
            changed += [Interval(run.start, run.start + width) for run in published if run.start >= written.end]
        return published.intersect(IntervalSet(changed))

    def shown(self, windows: Interval) -> Interval:
        """Return the times for which windows say what a reader sees: from their first edge to the next one's."""
        after = timedelta(microseconds=self.shown_after_us)
        return Interval(windows.start + after, windows.end + after)

    @property
    def shown_after_us(self) -> int:
        """How long after its start a window says what a reader sees."""
        return int(self.timing.visible(self.timing.grid_us))


def ledger_name(digest: str, place: str) -> str:
    """Return under which name the ledger keeps what is published in a warehouse."""
    return f"published:{digest}:{hashlib.sha256(place.encode()).hexdigest()[:_LENGTH]}"


def _digest(view: FeatureView) -> str:
    """Return what changes with the meaning of published rows; code and stored columns are a generation's matter."""
    facts = (
        [str(key) for key in view.join_keys],
        [str(feature) for feature in view.features],
        repr(view.aggregates),
        view.publish,
        view.ttl,
        view.data_delay,
        view.feature_start_time,
        view.batch_schedule,
        view.stream_processing_mode,
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_LENGTH]
