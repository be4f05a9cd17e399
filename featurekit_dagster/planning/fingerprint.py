"""One short text that changes when what a feature view stores may change, and only then.

It covers the transformation with everything of the project that it calls, and the layout of the stored rows.
"""

from __future__ import annotations

import hashlib

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.planning.called_code import called_code_text

_LENGTH = 16


def fingerprint(view: FeatureView) -> str:
    """Return 16 hexadecimal digits that are equal for equal transformations and equal layouts.

    A window that is added over stored partial columns, a description or an owner changes nothing; the code or its
    absence, the join keys, the secondary key, the tile size, the stored columns and `batch_schedule` do. Where lifetime
    windows begin only extends what has to be there, as `feature_start_time` does.
    """
    facts: tuple[object, ...] = (
        view.mode,
        [(name, str(used.source.name), str(used.start), str(used.end)) for name, used in view.inputs.items()],
        [(key.name, str(key.dtype)) for key in view.join_keys],
        view.stored_time_column,
        str(view.aggregation_interval),
        str(view.batch_schedule),
        list(stored_values(view)),
        transformation_text(view),
    )
    if view.secondary_key is not None:
        # what most views have not is added only where it is, so that their fingerprint stays
        facts += (("secondary_key", view.secondary_key.name, str(view.secondary_key.dtype)),)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_LENGTH]


def stored_values(view: FeatureView) -> tuple[tuple[str, str], ...]:
    """Return names and types of the stored columns beside keys and time, with the precision of sketches."""
    if view.is_aggregate and not view.is_tiled:
        return tuple(dict.fromkeys((f.column.name, str(f.column.dtype)) for f in view.aggregates))
    # lists say their length in their names
    partials = [
        (p.name, f"{p.dtype} of {p.size}" if p.kind.startswith(("hll", "digest")) else str(p.dtype))
        for p in view.partials
    ]
    return tuple(partials or ((f.name, str(f.dtype)) for f in view.attributes))


def transformation_text(view: FeatureView) -> str:
    """Return the code of a view's transformation and of what it calls in the user's project; empty without one.

    `called_code_text` says what belongs to it.
    """
    return "" if view.function is None else called_code_text(view.function)
