"""Sketches of one key merged at once, as an online read does. Next to `sketches`, which merges those of many keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurekit_dagster.engine.columns import FloatArray, Values
from featurekit_dagster.engine.sketches import between_two, estimate, rank_limit


def count_distinct_of(places: Values, ranks: Values, precision: int) -> int:
    """Return the estimated number of distinct values of some tiles, as `sketches.count_distinct` does.

    Args:
        places: Registers above zero of all tiles, in any order.
        ranks: Their ranks, parallel to them.
        precision: That of the sketches.
    """
    best = np.zeros(1 << precision, np.int8)
    np.maximum.at(best, places, ranks.astype(np.int8, copy=False))
    limit = rank_limit(precision)
    # registers by rank: their number, and what each of them is short of `2**limit`
    counts = np.bincount(best, minlength=1).tolist()
    lost = sum(count * ((1 << limit) - (1 << (limit - rank))) for rank, count in enumerate(counts) if rank and count)
    return round(estimate((1 << precision) - counts[0], lost, precision))


@dataclass(frozen=True, slots=True)
class Digest:
    """The centroids of some tiles, in order.

    Args:
        means: Ascending, NaN last.
        middles: Weight of the values up to the middle of each.
        weight: That of all.
    """

    means: FloatArray
    middles: FloatArray
    weight: float

    @classmethod
    def of(cls, means: FloatArray, weights: FloatArray) -> Digest:
        """Return the digest of centroids in any order."""
        order = np.lexsort((weights, means))
        weights = weights[order]
        ends = np.cumsum(weights)
        return cls(means[order], ends - weights / 2, float(ends[-1]) if len(ends) else 0.0)

    def percentile(self, percentile: float) -> float | None:
        """Return the percentile as `sketches.percentiles` does; None without any value."""
        if not len(self.means):
            return None
        target = percentile * self.weight
        at = int(np.searchsorted(self.middles, target, "right"))
        if at in (0, len(self.means)):
            return float(self.means[min(at, len(self.means) - 1)])
        low, high = self.means[at - 1 : at + 1].tolist()
        before, after = self.middles[at - 1 : at + 1].tolist()
        return between_two(low, high, target - before, after - target)
