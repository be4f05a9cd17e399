"""What every feature answers over every window of placed tiles. Used by `rollup`.

The windows are position ranges by now; they are combined by prefix sums (`rollup_sums`, `rollup_variance`), sparse
tables and positions (`rollup_extremes`), slices (`rollup_lists`) and merges of sketches (`sketches`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.aggregation import (
    LIST_FUNCTIONS,
    AggregateFeature,
    PartialColumn,
    canonical_function,
)
from featurekit_dagster.domain.schema import Int32
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.engine.columns import BoolArray, Int64Array, Values, numbers, present
from featurekit_dagster.engine.keys import first_of_each
from featurekit_dagster.engine.rollup_answers import Answers, Numbers, Places
from featurekit_dagster.engine.rollup_extremes import last_positions, neutral, range_extremes
from featurekit_dagster.engine.rollup_lists import Lists, newest, newest_distinct, oldest, oldest_distinct
from featurekit_dagster.engine.rollup_search import Placed
from featurekit_dagster.engine.rollup_sums import Ranges, count_ranges, float_sums, integer_sums
from featurekit_dagster.engine.rollup_variance import Moments, merge_moments
from featurekit_dagster.engine.sketches import count_distinct, percentiles
from featurekit_dagster.errors import AggregationOverflow


class Kernel:
    """Computes features; whatever two of them share is computed once.

    Args:
        placed: The tiles in (key, time) order and the windows in them.
        tiles: The tiles, with the features' partial columns.
        features: All features that will be asked for.
    """

    def __init__(self, placed: Placed, tiles: pa.Table, features: Sequence[AggregateFeature]) -> None:
        self._placed = placed
        self._tiles = tiles
        self._features = features
        self._spans: dict[str, dict[Span, None]] = {}
        for feature in features:
            for partial in feature.partials:
                self._spans.setdefault(partial.name, {}).update(dict.fromkeys(feature.spans))
        self._done: dict[tuple[str, Span], Any] = {}

    def answers(self, feature: AggregateFeature) -> list[Answers]:
        """Return one feature over each of its spans, an answer per range.

        Raises:
            AggregationOverflow: A window's sum of integers does not fit the feature's type.
        """
        function = canonical_function(feature.function)
        if function == "mean":
            return [self._mean(feature, span) for span in feature.spans]
        if function.startswith(("var", "stddev")):
            return [self._variance(feature, function, span) for span in feature.spans]
        if function == "approx_percentile":
            return [self._percentile(feature, span) for span in feature.spans]
        return [self._plain(feature, feature.partials[0], span) for span in feature.spans]

    def _plain(self, feature: AggregateFeature, partial: PartialColumn, span: Span) -> Answers:
        """Return what comes from one partial column alone."""
        answer: Answers = self._range(partial, span, feature)
        if partial.kind == "sum" and feature.value_dtype.is_integer and isinstance(answer, Numbers):
            _check_fits(feature, answer.values, self._done["overflow " + partial.name, span])
        return answer

    def _mean(self, feature: AggregateFeature, span: Span) -> Numbers:
        total, count = (self._range(partial, span, feature) for partial in feature.partials)
        if feature.column.dtype.is_integer:
            overflow = self._done["overflow " + feature.partials[0].name, span]
            if overflow is not None:
                _check_fits(feature, total.values, overflow)
        return Numbers(total.values / np.maximum(count.values, 1), count.values > 0)

    def _variance(self, feature: AggregateFeature, function: str, span: Span) -> Numbers:
        name = "moments " + feature.column.name
        if (name, span) not in self._done:
            spans = self._spans[feature.partials[2].name]
            count, mean, m2 = (self._load(partial)[0] for partial in feature.partials)
            moments = Moments(count, mean, m2, np.flatnonzero(first_of_each(self._placed.codes)))
            self._keep(name, spans, merge_moments(moments, self._ranges(spans)))
        count, m2 = self._done[name, span]
        fewest = 2 if function.endswith("samp") else 1
        variance = m2 / np.maximum(count - (fewest - 1), 1)
        return Numbers(np.sqrt(variance) if function.startswith("stddev") else variance, count >= fewest)

    def _percentile(self, feature: AggregateFeature, span: Span) -> Numbers:
        name = f"{feature.percentile} {feature.partials[0].name}"
        if (name, span) not in self._done:
            self._fill_percentiles(feature.partials)
        answer: Numbers = self._done[name, span]
        return answer

    def _fill_percentiles(self, partials: tuple[PartialColumn, ...]) -> None:
        """Compute all percentiles of one column over all their spans."""
        like = [feature for feature in self._features if feature.partials == partials]
        asked = list(dict.fromkeys((feature.percentile, span) for feature in like for span in feature.spans))
        means, weights = (self._lists(partial).array() for partial in partials)
        ranges = self._ranges([span for _, span in asked])
        found = percentiles(means, weights, ranges, [percentile for percentile, _ in asked])
        for (percentile, span), (values, valid) in zip(asked, found, strict=True):
            self._done[f"{percentile} {partials[0].name}", span] = Numbers(values, valid)

    def _range(self, partial: PartialColumn, span: Span, feature: AggregateFeature) -> Any:  # noqa: ANN401 - any answer
        """Return a partial column over a span; all spans that any feature needs are computed at once."""
        if (partial.name, span) not in self._done:
            spans = self._spans[partial.name]
            if partial.kind == "hll_indices":
                found: Sequence[Answers] = self._distinct_counts(feature, spans)
            elif partial.kind in LIST_FUNCTIONS:
                found = self._listed(partial, spans)
            elif partial.kind == "last":
                found = self._last(partial, spans)
            else:
                found = self._numbers(partial, spans)
            self._keep(partial.name, spans, found)
        return self._done[partial.name, span]

    def _distinct_counts(self, feature: AggregateFeature, spans: dict[Span, None]) -> list[Answers]:
        indices, registers = (self._lists(partial).array() for partial in feature.partials)
        found = count_distinct(indices, registers, self._ranges(spans), feature.precision)
        return [Numbers(values, None) for values in found]

    def _listed(self, partial: PartialColumn, spans: dict[Span, None]) -> Sequence[Answers]:
        lists, ranges = self._lists(partial), self._ranges(spans)
        if partial.kind == "last_distinct":
            return newest_distinct(lists, ranges, partial.size)
        if partial.kind == "first_distinct":
            return oldest_distinct(lists, ranges, partial.size)
        cut = newest if partial.kind == "last_n" else oldest
        return [cut(lists, part, partial.size) for part in ranges]

    def _last(self, partial: PartialColumn, spans: dict[Span, None]) -> list[Answers]:
        column, rows = self._tiles.column(partial.name), self._placed.rows
        flags = present(column)
        values = column.combine_chunks()
        answers: list[Answers] = []
        for found in last_positions(None if flags is None else self._sorted(flags), self._ranges(spans)):
            mapped = found if rows is None or not len(rows) else np.where(found < 0, -1, rows[found])
            answers.append(Places(values, mapped))
        return answers

    def _numbers(self, partial: PartialColumn, spans: dict[Span, None]) -> list[Answers]:
        """Return count, sum, min or max of a partial column over the spans."""
        ranges = self._ranges(spans)
        if partial.kind == "count" and _all_one(self._tiles.column(partial.name)):
            return [Numbers(part.lengths, None) for part in ranges]
        values, valid = self._load(partial)
        overflow: list[BoolArray | None] = [None] * len(ranges)
        found: Sequence[Values]
        if partial.kind in ("min", "max"):
            found = range_extremes(values, ranges, largest=partial.kind == "max")
        elif partial.dtype.is_integer:
            found, overflow = integer_sums(values, ranges)
        else:
            found = float_sums(values, ranges)
        self._keep("overflow " + partial.name, spans, overflow)
        if partial.kind == "count":
            return [Numbers(count, None) for count in found]
        if valid is None:
            there = [part.high > part.low for part in ranges]
        else:
            there = [count > 0 for count in count_ranges(valid, ranges)]
        return [Numbers(answer, flags) for answer, flags in zip(found, there, strict=True)]

    def _keep(self, name: str, spans: dict[Span, None], found: Sequence[Any]) -> None:
        self._done.update({(name, span): answer for span, answer in zip(spans, found, strict=True)})

    def _ranges(self, spans: dict[Span, None] | Sequence[Span]) -> list[Ranges]:
        return [self._placed.ranges[span] for span in spans]

    def _load(self, partial: PartialColumn) -> tuple[Values, BoolArray | None]:
        """Return a partial column of the sorted tiles, NULL as what changes nothing, and where it is not NULL."""
        column = self._tiles.column(partial.name).cast(arrow_type(partial.dtype))
        values, flags = numbers(column), present(column)
        if flags is None:
            return self._sorted(values), None
        extreme = partial.kind in ("min", "max")
        nothing = neutral(values.dtype, largest=partial.kind == "max") if extreme else 0
        return self._sorted(np.where(flags, values, values.dtype.type(nothing))), self._sorted(flags)

    def _lists(self, partial: PartialColumn) -> Lists:
        column = self._tiles.column(partial.name).cast(arrow_type(partial.dtype))
        return Lists.of(column, self._placed.rows)

    def _sorted(self, values: Values) -> Values:
        return values if self._placed.rows is None else values[self._placed.rows]


def _check_fits(feature: AggregateFeature, sums: Int64Array, overflow: BoolArray | None) -> None:
    """Refuse sums that wrapped or that the feature's type cannot hold."""
    count = 0 if overflow is None else int(overflow.sum())
    if feature.value_dtype == Int32:
        limits = np.iinfo(np.int32)
        count += int(((sums < limits.min) | (sums > limits.max)).sum())
    if count:
        raise AggregationOverflow(feature=feature.name, dtype=str(feature.column.dtype), count=count)


def _all_one(column: pa.ChunkedArray) -> bool:
    """Tell whether every tile counts one event, as tiles of single rows do; then windows are as long as they count."""
    if column.null_count:
        return False
    return all(bool((numbers(pa.chunked_array([chunk])) == 1).all()) for chunk in column.chunks)
