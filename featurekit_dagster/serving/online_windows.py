"""The windowed features that an online read asks for: how they are rolled up, and what must be covered for each."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from featurekit_dagster.domain.aggregation import AggregateFeature, distinct_spans
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.planning.online_tiles import is_whole
from featurekit_dagster.serving.online_rollup import OnlineRollup, compile_rollup, compile_secondary_rollup


class WindowedFeatures:
    """Some features of an aggregate view with tiles.

    Args:
        view: The feature view.
        positions: Which of `view.features`, in the order of the answer.
        tile_us: Size of the stored tiles in microseconds; the view's own if it is not given.
    """

    def __init__(self, view: FeatureView, positions: Sequence[int], tile_us: int | None = None) -> None:
        self._view, self._tile_us = view, tile_us or view.tile_us
        listed = () if view.secondary_key is None else distinct_spans(view.aggregates)
        answers: list[Span | AggregateFeature] = [*listed, *view.aggregates]
        self._wanted = [answers[at] for at in positions]
        self._spans: list[tuple[Span, ...]] = [
            each.spans if isinstance(each, AggregateFeature) else (each,) for each in self._wanted
        ]
        self.are_whole = tuple(all(is_whole(span, self._tile_us or 1) for span in spans) for spans in self._spans)
        """Per feature whether its windows consist of whole stored tiles; one that was declared later may have none."""
        self._defaults = tuple(view.defaults[at] for at in positions)
        self._has_lists = any(isinstance(default, list) for default in self._defaults)

    def rollup(self, stored: Sequence[Field]) -> OnlineRollup:
        """Return what rolls a key's tiles up to the features.

        Args:
            stored: The columns of an online record, in stored order; a secondary key and its lists come as lists.
        """
        view, tile_us = self._view, self._tile_us
        if tile_us is None:
            raise ValueError(f"{view.name} has no aggregates")
        if view.secondary_key is not None:
            partials = [Field(field.name, field.dtype.children[0]) for field in stored[1:]]
            return compile_secondary_rollup(self._wanted, partials, tile_us, view.secondary_key)
        features = [each for each in self._wanted if isinstance(each, AggregateFeature)]
        return compile_rollup(features, stored, tile_us)

    @property
    def defaults(self) -> tuple[Any, ...]:
        """What the features are of a key without tiles; lists are the caller's own."""
        return deepcopy(self._defaults) if self._has_lists else self._defaults

    def since_us(self, edge_us: int) -> int:
        """Return where the earliest window begins that ends at an edge, in microseconds."""
        return min(start for needs in self.needs(edge_us) for start, _ in needs)

    def needs(self, edge_us: int) -> list[list[tuple[int, int]]]:
        """Return per feature the spans `[start, end)` of its windows, in microseconds; an empty one needs nothing."""
        return [[_bounds(span, edge_us) for span in spans] for spans in self._spans]


def _bounds(span: Span, edge_us: int) -> tuple[int, int]:
    end = edge_us + span.end_us
    begin = span.since_us if span.begin_us is None else edge_us + span.begin_us
    return min(end if begin is None else begin, end), end
