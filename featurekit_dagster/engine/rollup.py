"""The roll-up kernel: tiles and probes in, one row of features per probe out.

The one place where windows are combined from tiles in bulk, whoever brings the tiles. Windows are found by two searches
each on packed (key, tile) codes (`rollup_search`), computed once per distinct (key, edge) (`rollup_kernel`) and handed
out to the probes (`rollup_answers`); `rollup_secondary` does the same per secondary key.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.aggregation import AggregateFeature, distinct_spans
from featurekit_dagster.engine.rollup_answers import spread, stack
from featurekit_dagster.engine.rollup_kernel import Kernel
from featurekit_dagster.engine.rollup_search import ANCHOR_TIME, EDGE, ask, place
from featurekit_dagster.engine.rollup_secondary import roll_up_secondary

__all__ = ["ANCHOR_TIME", "EDGE", "roll_up"]


def roll_up(
    tiles: pa.Table,
    probes: pa.Table,
    *,
    keys: tuple[str, ...],
    tile_us: int,
    features: Sequence[AggregateFeature],
    secondary_key: str | None = None,
) -> pa.Table:
    """Return every feature as of every probe's right edge.

    The window of a probe with edge E is the tiles with `E - size + offset <= start < E + offset`, that of a lifetime
    those with `since <= start < E`. A series is one list with an answer per window, oldest window first.

    Sums and means of floats are within 2**-50 of the sum of absolute values (over their number); sums of integers,
    counts, extremes and lists are exact; variances as `rollup_variance` says, sketches as `sketches` does.

    Args:
        tiles: Columns `keys`, `_anchor_time` (tile start, timestamp[us, UTC]) and the features' partial columns, in any
            order. Several rows of one (key, tile) are combined; where order counts, the later row is the later one.
        probes: Columns `keys` and `_edge` (timestamp[us, UTC]). Where the edge is NULL, all features are NULL.
        keys: Join keys; NULL is a key and equals NULL.
        tile_us: Tile size in microseconds; tile starts are multiples of it since the Unix epoch.
        features: What to compute; windows and offsets are multiples of the tile size.
        secondary_key: A further key column of the tiles. Then every answer is a list with an element for each
            secondary key that has a tile in the window, keys ascending, NULL last.

    Returns:
        One row per probe, in the probes' order; one column per feature, with the feature's name and type. With a
        secondary key, before them one list of keys per distinct span, named by `secondary_keys_name`, and each feature
        is a list parallel to the keys of its span.

    Raises:
        AggregationOverflow: A window's sum of integers does not fit the feature's type.
        UnsupportedKeyType: A key column cannot be compared.
    """
    asked = ask(tiles, probes, keys, tile_us, distinct_spans(features))
    if secondary_key is not None:
        return roll_up_secondary(tiles, asked, features, secondary_key)
    kernel = Kernel(place(asked), tiles, features)
    columns, fields = [], []
    for feature in features:
        found, dtype = kernel.answers(feature), arrow_type(feature.dtype)
        width = len(found) if feature.is_series else None
        columns.append(spread(stack(found) if feature.is_series else found[0], asked.target, asked.known, dtype,
                              width=width))  # fmt: skip
        fields.append(pa.field(feature.name, dtype))
    return pa.table(columns, schema=pa.schema(fields))
