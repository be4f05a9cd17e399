"""When two answers of a feature count as the same, and what they are where they do not.

The same are: integers, truth values, texts, bytes and times that are equal; lists, maps and records whose members are
the same, lists in their order; floats within a billionth of the larger, and within a million-millionth of the largest
value that the feature has anywhere in the comparison, since sums of large numbers may cancel; NaN and NaN; NULL and
NULL. Estimates are made of the same tiles, whose order does not matter, so they are floats and integers like others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

RELATIVE, OF_LARGEST = 1e-9, 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureDifference:
    """How the answers of two stores for one feature compare; counts only.

    Args:
        feature: Name of the feature.
        compared: Answers that were compared.
        mismatched: Both stores have a value, and they are not the same.
        missing: Only the offline store has a value.
        extra: Only the online store has one.
        unknown: Answers that were not compared, as what they need is not materialized online.
    """

    feature: str
    compared: int
    mismatched: int = 0
    missing: int = 0
    extra: int = 0
    unknown: int = 0

    @property
    def total(self) -> int:
        """How many answers differ."""
        return self.mismatched + self.missing + self.extra


def compare_feature(
    feature: str, online: Sequence[Any], offline: Sequence[Any], default: Any, unknown: int = 0
) -> FeatureDifference:
    """Compare the answers of two stores.

    Args:
        feature: Name of the feature.
        online: Its values online.
        offline: Its values offline, for the same keys.
        default: What the feature is where nothing is known of a key.
        unknown: How many more there are that cannot be compared.
    """
    room = OF_LARGEST * largest([*online, *offline])
    counts = {"mismatched": 0, "missing": 0, "extra": 0}
    for ours, theirs in zip(online, offline, strict=True):
        if is_same(ours, theirs, room):
            continue
        kinds = {(True, False): "missing", (False, True): "extra"}
        counts[kinds.get((_is_nothing(ours, default), _is_nothing(theirs, default)), "mismatched")] += 1
    return FeatureDifference(feature=feature, compared=len(online), unknown=unknown, **counts)


def _is_nothing(value: Any, default: Any) -> bool:
    return value is None or is_same(value, default)


def is_same(one: Any, other: Any, room: float = 0.0) -> bool:
    """Tell whether two values of one type are the same, see above.

    Args:
        one: A value.
        other: Another.
        room: How far apart floats may be in any case.
    """
    if one is None or other is None:
        return one is None and other is None
    if isinstance(one, float) and isinstance(other, float):
        return _is_same_float(one, other, room)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(is_same(a, b, room) for a, b in zip(one, other, strict=True))
    left, right = _members(one), _members(other)
    if left is not None and right is not None:
        return left.keys() == right.keys() and all(is_same(left[name], right[name], room) for name in left)
    return type(one) is type(other) and bool(one == other)


def _members(value: Any) -> Mapping[Any, Any] | None:
    """Return the members of a map or record; Arrow gives a map as a list of pairs. None for anything else."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value):
        return dict(value)
    return None


def _is_same_float(one: float, other: float, room: float) -> bool:
    if one == other or (math.isnan(one) and math.isnan(other)):
        return True
    if not (math.isfinite(one) and math.isfinite(other)):
        return False
    return abs(one - other) <= max(RELATIVE * max(abs(one), abs(other)), room)


def largest(values: Iterable[Any]) -> float:
    """Return the largest magnitude of the finite floats among values and their members."""
    found = 0.0
    for value in values:
        if isinstance(value, float):
            found = max(found, abs(value)) if math.isfinite(value) else found
        elif isinstance(value, list | tuple):
            found = max(found, largest(value))
        elif isinstance(value, Mapping):
            found = max(found, largest(value.values()))
    return found
