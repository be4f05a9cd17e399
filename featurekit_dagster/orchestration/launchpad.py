"""What Dagster's launchpad says beside a configuration: names that can be given, for people who do not know them."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

_MOST_NAMES = 20


def some_of(names: Iterable[str]) -> str:
    """Return names in order, of very many the first ones; `none` where there are none."""
    ordered = sorted(names)
    shown, left = ordered[:_MOST_NAMES], len(ordered) - _MOST_NAMES
    return ", ".join(shown) + (f" and {left:,} more" if left > 0 else "") or "none"


def with_names(field: dg.Field, names: Iterable[str]) -> dg.Field:
    """Return a field of a configuration whose description ends with what can be given there."""
    default = {"default_value": field.default_value} if field.default_provided else {}
    told = f"{field.description} There are: {some_of(names)}."
    return dg.Field(field.config_type, is_required=field.is_required, description=told, **default)
