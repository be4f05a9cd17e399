"""The rows of a dataset as a read answers them, for one bucket of its spine at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureReference, FeatureView
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.engine.storable import storable
from featurekit_dagster.errors import SpineError
from featurekit_dagster.planning.dataset_request import DatasetKind, DatasetRequest
from featurekit_dagster.serving.frame import column_names
from featurekit_dagster.serving.historical import checked_spine, entity_keys, features_for_spine
from featurekit_dagster.serving.history import history
from featurekit_dagster.serving.ranges import features_in_range
from featurekit_dagster.serving.spine import Spine
from featurekit_dagster.serving.stored import StoredRows
from featurekit_dagster.stores.datasets import ROW
from featurekit_dagster.stores.workspace_stores import WorkspaceStores


class DatasetRows:
    """What a dataset holds.

    Args:
        request: What it is made of.
        repo: The declarations of its feature views.
        stores: Where the views are read, at the versions that are to be seen.

    Raises:
        NotFoundError: A view is declared no more.
    """

    def __init__(self, request: DatasetRequest, repo: Repository, stores: WorkspaceStores) -> None:
        self._request, self._stores = request, stores
        self._references = references_of(request, repo)

    def of_bucket(self, spine: pa.Table | None) -> pa.Table:
        """Return the rows for a part of the spine, in its order, in types that a Delta table has.

        Args:
            spine: Some rows of the spine; of a dataset of a time range its join keys, None for all there are.

        Raises:
            SpineError: A column of the spine cannot be used.
            NotMaterialized: Something needed is not materialized, and gaps are not allowed.
            UnstorableColumns: A column of the spine cannot be kept.
        """
        request = self._request
        if request.kind is DatasetKind.EVENTS:
            frame = features_for_spine(
                self._references,
                self._stores,
                spine,
                request.timestamp_key,
                from_source=request.from_source,
                separator=request.separator,
                allow_gaps=request.allow_gaps,
                is_part=True,
            )
            return storable(frame.to_arrow())
        view = self._references[0].view
        stored, keys = StoredRows.choose(view, self._stores, request.from_source), entity_keys(view, spine)
        if request.kind is DatasetKind.HISTORY:
            return storable(history(stored, request.start_us, request.end_us, keys))
        assert request.start_us is not None  # a range has both
        assert request.end_us is not None
        return storable(features_in_range(stored, request.start_us, request.end_us, keys, request.max_lookback_us))


def references_of(request: DatasetRequest, repo: Repository) -> tuple[FeatureReference, ...]:
    """Return the features of a dataset on the views as they are declared now.

    Raises:
        NotFoundError: A view is declared no more.
    """
    return tuple(each.reference(repo) for each in request.references)


def stored_views(request: DatasetRequest, repo: Repository, stores: WorkspaceStores) -> list[FeatureView]:
    """Return the views of a dataset that are read from the offline store, each once.

    Raises:
        NotFoundError: A view is declared no more.
        ReadError: A view cannot be read as was asked for.
    """
    views = {reference.view.name: reference.view for reference in references_of(request, repo)}
    return [v for v in views.values() if not StoredRows.choose(v, stores, request.from_source).from_source]


def checked_dataset_spine(references: Sequence[FeatureReference], frame: Any, request: DatasetRequest) -> Spine:
    """Return a frame as the spine of a dataset.

    Args:
        references: The features of the dataset.
        frame: The spine, or its first rows.
        request: What is asked for; its time column may be left out when there is only one.

    Raises:
        SpineError: A column is missing, of the wrong type, or has a name that it cannot have in a dataset.
    """
    spine = checked_spine(references, frame, request.timestamp_key, request.separator)
    names = [*column_names(spine.original), *request.feature_columns, ROW]
    met: dict[str, list[str]] = {}
    for name in names:
        met.setdefault(name.lower(), []).append(name)
    alike = next((same for same in met.values() if len(same) > 1), None)
    if alike is not None:
        raise SpineError(f"columns {' and '.join(alike)} would be one in a Delta table, which ignores case; rename one")
    return spine
