"""Reads that leave the wildcard join key out: one list per feature, one element per matching key.

Views of a service that are open in the same column are matched on its values, so that their lists belong together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from featurekit_dagster.serving.vector import MISSING_DATA, PRESENT, UNKNOWN, FeatureVector


@dataclass(frozen=True, slots=True)
class Matches:
    """What one view knows of the keys that match a wildcard read.

    Args:
        names: Its features, as they are called in the answer.
        found: Value of the wildcard key to feature values.
        absent: Feature values of a key that only another view knows.
        known: Per feature, whether everything is covered that could hold a match.
        edge_us: Effective time of the view; None where nothing is materialized.
    """

    names: Sequence[str]
    found: Mapping[Any, Sequence[Any]]
    absent: Sequence[Any]
    known: Sequence[bool]
    edge_us: int | None


def matched(column: str, parts: Sequence[Matches]) -> FeatureVector:
    """Return the lists of all views that are open in one column, after the list of its values, NULL first.

    A feature that may lack a match, because something is not materialized, is UNKNOWN.
    """
    keys = sorted({key for part in parts for key in part.found}, key=lambda key: (key is not None, key))
    status = PRESENT if keys else MISSING_DATA
    names, values, statuses, times = [column], [list(keys)], [status], [parts[0].edge_us]
    for part in parts:
        rows = [part.found.get(key, part.absent) for key in keys]
        names += part.names
        values += [[row[place] for row in rows] for place in range(len(part.names))]
        statuses += [status if is_known else UNKNOWN for is_known in part.known]
        times += [part.edge_us] * len(part.names)
    if UNKNOWN in statuses:
        statuses[0] = UNKNOWN
    edges = [part.edge_us for part in parts if part.edge_us is not None]
    times[0] = min(edges) if len(edges) == len(parts) else None
    return FeatureVector(names, values, statuses, times)
