"""Features of a key from its packed tiles: which way of rolling up serves which feature.

Columns of a fixed width go the fast way (`online_rollup_fixed`), lists, sketches and text the general one
(`online_rollup_any`), and a view with a secondary key its own (`online_rollup_secondary`). All obey
`domain/aggregation.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from featurekit_dagster.domain.aggregation import AggregateFeature, PartialColumn
from featurekit_dagster.domain.schema import Array, Field
from featurekit_dagster.domain.windows import Span
from featurekit_dagster.serving.online_rollup_any import AnyRollup
from featurekit_dagster.serving.online_rollup_fixed import FixedRollup
from featurekit_dagster.serving.online_rollup_secondary import SecondaryRollup
from featurekit_dagster.serving.online_rollup_windows import slots_of
from featurekit_dagster.stores.online import PackedTiles
from featurekit_dagster.stores.packing import ValueCodec, is_fixed


class OnlineRollup(Protocol):
    """Rolls the packed tiles of a view up to its features."""

    def one(self, packed: PackedTiles, edge_us: int) -> Sequence[Any] | None:
        """Return the features of one key, or None if no tile lies in any window.

        A window is the tiles with `edge - size + offset <= start < edge + offset`, or from the beginning of a lifetime
        on.

        Args:
            packed: The key's chunks that may hold such tiles, ascending; others do no harm.
            edge_us: Right edge in microseconds.

        Raises:
            AggregationOverflow: A sum of integers does not fit the feature's type.
        """
        ...

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> Sequence[Sequence[Any] | None]:
        """Return `one` of each key, in order; the last digits of float sums, means and variances may differ."""
        ...


class _SlotRollup:
    """Gathers features from slots that go different ways, and the windows of a series into one list.

    Args:
        features: What to compute.
        columns: Name of a partial column to its place in a tile.
        tile_us: Tile size in microseconds.
        codec: Codec of the stored tiles.
    """

    def __init__(
        self, features: Sequence[AggregateFeature], columns: dict[str, int], tile_us: int, codec: ValueCodec
    ) -> None:
        slots = slots_of(features)
        goes_fast = [all(is_fixed(p.dtype) for p in feature.partials) for feature, _ in slots]
        self._parts: list[tuple[OnlineRollup, list[int]]] = []
        for way, wanted in ((FixedRollup, True), (AnyRollup, False)):
            places = [at for at, fixed in enumerate(goes_fast) if fixed is wanted]
            if places:
                self._parts.append((way([slots[at] for at in places], columns, tile_us, codec), places))
        self._features = [(feature.is_series, len(feature.spans)) for feature in features]
        self._has_series = any(feature.is_series for feature in features)
        self._defaults = [feature.value_default for feature, _ in slots]

    def one(self, packed: PackedTiles, edge_us: int) -> Sequence[Any] | None:
        """Return the features of one key (see `OnlineRollup.one`)."""
        return self._gathered([rollup.one(packed, edge_us) for rollup, _ in self._parts])

    def many(self, packed: Sequence[PackedTiles], edge_us: int) -> Sequence[Sequence[Any] | None]:
        """Return `one` of each key, in order."""
        answers = [rollup.many(packed, edge_us) for rollup, _ in self._parts]
        return [self._gathered(parts) for parts in zip(*answers, strict=True)]

    def _gathered(self, parts: Sequence[Sequence[Any] | None]) -> Sequence[Any] | None:
        """Return the features of one key, given the slots that each part has found."""
        if all(part is None for part in parts):
            return None
        found = [[] if isinstance(default, list) else default for default in self._defaults]
        for part, (_, places) in zip(parts, self._parts, strict=True):
            if part is not None:
                for place, value in zip(places, part, strict=True):
                    found[place] = value
        if not self._has_series:
            return found
        slots = iter(found)
        return [[next(slots) for _ in range(count)] if series else next(slots) for series, count in self._features]


def compile_rollup(
    features: Sequence[AggregateFeature], partials: Sequence[PartialColumn | Field], tile_us: int
) -> OnlineRollup:
    """Return the roll-up of a view's features from its stored tiles.

    Args:
        features: What to compute.
        partials: Columns of the stored tiles, in stored order; all that the features need.
        tile_us: Tile size in microseconds.
    """
    codec = ValueCodec([Field(p.name, p.dtype) for p in partials], is_tiled=True)
    columns = {partial.name: at for at, partial in enumerate(partials)}
    is_simple = not any(feature.is_series for feature in features)
    if is_simple and all(is_fixed(partial.dtype) for feature in features for partial in feature.partials):
        return FixedRollup(slots_of(features), columns, tile_us, codec)
    return _SlotRollup(features, columns, tile_us, codec)


def compile_secondary_rollup(
    wanted: Sequence[Span | AggregateFeature],
    partials: Sequence[PartialColumn | Field],
    tile_us: int,
    secondary_key: Field,
) -> OnlineRollup:
    """Return the roll-up of a view with a secondary key; every answer is a list.

    Args:
        wanted: What to answer: a window, whose secondary keys are listed, or a feature.
        partials: Columns of a tile beside the secondary key, in stored order.
        tile_us: Tile size in microseconds.
        secondary_key: The column that features are broken down by.
    """
    nested = [Field(secondary_key.name, Array(secondary_key.dtype))]
    nested += [Field(partial.name, Array(partial.dtype)) for partial in partials]
    columns = {partial.name: at for at, partial in enumerate(partials)}
    return SecondaryRollup(wanted, columns, tile_us, ValueCodec(nested, is_tiled=True))
