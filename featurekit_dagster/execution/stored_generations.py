"""Which stored generations of a view have its join keys as they are declared, so that keys can be found in them."""

from __future__ import annotations

from collections.abc import Iterator

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


def generations_of(view: FeatureView, stores: WorkspaceStores) -> list[int]:
    """Return the generations of a view in which its keys can be found, the one that reads use first."""
    known = [record.generation for record in stores.ledger.generations(stores.workspace, view.name)]
    every = dict.fromkeys([stores.generation(view, ONLINE), stores.generation(view, OFFLINE), *known])
    others = {generation for generation, _ in generations_of_other_keys(view, stores)}
    return [generation for generation in every if generation not in others]


def generations_of_other_keys(view: FeatureView, stores: WorkspaceStores) -> Iterator[tuple[int, str]]:
    """Yield the generations that were written with other join keys, each with the names of these.

    Reads of the declaration use none of them; a rebuild takes their place, and maintenance removes them as a whole.
    """
    declared = set(StoredShape.of(view).keys)
    for record in stores.ledger.generations(stores.workspace, view.name):
        if record.shape is not None and set(record.shape.keys) != declared:
            yield record.generation, ", ".join(name for name, _ in record.shape.keys)
