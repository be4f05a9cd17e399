"""Training frames: the features of one or several views beside every row of a spine."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureReference, FeatureView
from featurekit_dagster.domain.schema import DataType
from featurekit_dagster.errors import SpineError
from featurekit_dagster.serving.frame import FeatureFrame, column_names
from featurekit_dagster.serving.point_in_time import Answer, Questions, features_at
from featurekit_dagster.serving.progress import shown_progress
from featurekit_dagster.serving.spine import Spine, as_key, read_spine, select_columns
from featurekit_dagster.serving.stored import StoredRows
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

_log = logging.getLogger(__name__)


def features_for_spine(
    references: Sequence[FeatureReference],
    stores: WorkspaceStores,
    frame: Any,
    timestamp_key: str | None,
    *,
    from_source: bool | None,
    separator: str,
    allow_gaps: bool,
    mocks: Mapping[str, Any] | None = None,
    is_part: bool = False,
) -> FeatureFrame:
    """Return a spine with the features of every reference, one row per spine row, in order.

    Each view is read once, however many references there are to it. A read of over two seconds shows its progress where
    a person is watching.

    Args:
        references: Which features of which views, and how they are called.
        stores: The workspace's stores.
        frame: The spine.
        timestamp_key: Its time column; may be left out when there is only one.
        from_source: As in `StoredRows.choose`.
        separator: What stands between namespace and feature.
        allow_gaps: Whether unmaterialized intervals give NULL instead of an error.
        mocks: Parameter to a frame that is used instead of its source, in every view.
        is_part: Whether it is a part of a larger spine, so that no row of it need have a time.

    Raises:
        SpineError: A column is missing, of the wrong type, or has the name of a feature.
        ReadError: A view cannot be read from there.
        NotMaterialized: Something needed is not materialized, and gaps are not allowed.
    """
    spine = checked_spine(references, frame, timestamp_key, separator, is_part=is_part)
    ordered = _columns(references, separator)
    by_view: dict[str, list[FeatureReference]] = {}
    for reference in references:
        by_view.setdefault(reference.view.name, []).append(reference)
    columns: dict[str, pa.ChunkedArray] = {}
    with shown_progress("reading features", len(by_view)) as advance:
        for view_references in by_view.values():
            stored = StoredRows.choose(view_references[0].view, stores, from_source, mocks)
            columns |= _of_one_view(stored, view_references, spine, separator, allow_gaps)
            advance()
    return spine.with_features(pa.table({name: columns[name] for name in ordered}))


def checked_spine(
    references: Sequence[FeatureReference],
    frame: Any,
    timestamp_key: str | None,
    separator: str,
    *,
    is_part: bool = False,
) -> Spine:
    """Return a frame as a spine for some features; arguments are those of `features_for_spine`.

    Raises:
        SpineError: A column is missing, of the wrong type, or has the name of a feature.
    """
    spine = read_spine(frame, _key_types(references), timestamp_key, is_part=is_part)
    given = column_names(spine.original)
    taken = [name for name in _columns(references, separator) if name in given]
    if taken:
        raise SpineError(f"the spine has columns with the names of features: {', '.join(taken)}; rename them")
    return spine


def _columns(references: Sequence[FeatureReference], separator: str) -> list[str]:
    """Return the columns of features, in order."""
    return [f"{r.label}{separator}{name}" for r in references for name in r.feature_names]


def _of_one_view(
    stored: StoredRows, references: Sequence[FeatureReference], spine: Spine, separator: str, allow_gaps: bool
) -> dict[str, pa.ChunkedArray]:
    """Return the columns of all references to one view, whose tiles or rows are read once."""
    view, copies = stored.view, len(references)
    names = tuple(dict.fromkeys(name for reference in references for name in reference.feature_names))
    keys = pa.concat_tables(
        pa.table([spine.keys[name] for name in reference.spine_keys], names=list(view.key_names))
        for reference in references
    )
    times, no_time = spine.times_us(), spine.is_null()
    questions = Questions(keys, np.tile(times, copies), np.tile(no_time, copies), copies)
    answer = features_at(stored, questions, names, allow_gaps=allow_gaps)
    _warn_of_gaps(view, answer, questions, len(spine))
    return {
        f"{reference.label}{separator}{name}": answer.features[name].slice(place * len(spine), len(spine))
        for place, reference in enumerate(references)
        for name in reference.feature_names
    }


def _warn_of_gaps(view: FeatureView, answer: Answer, questions: Questions, rows: int) -> None:
    gaps = questions.spine_rows(answer.gaps)
    if gaps:
        _log.warning("%s: %d of %d rows are NULL, because what they need is not materialized", view.name, gaps, rows)


def entity_keys(view: FeatureView, entities: Any) -> pa.Table | None:
    """Return a frame of join keys in the declared types; None stays None.

    Raises:
        SpineError: Its columns are not exactly the view's join keys, or a value is of another type.
    """
    if entities is None:
        return None
    names = column_names(entities)
    if set(names) != set(view.key_names):
        raise SpineError(f"entities has columns {', '.join(names)}; it must have exactly {', '.join(view.key_names)}")
    table = select_columns(entities, view.key_names)
    return pa.table({key.name: as_key(table[key.name], key.dtype, key.name) for key in view.join_keys})


def _key_types(references: Sequence[FeatureReference]) -> dict[str, DataType]:
    """Return the spine columns that hold join keys, with their types."""
    types: dict[str, DataType] = {}
    for reference in references:
        for column, key in zip(reference.spine_keys, reference.view.join_keys, strict=True):
            if types.setdefault(column, key.dtype) != key.dtype:
                raise SpineError(
                    f"spine column {column!r} is a {types[column]} key of one view and a {key.dtype} key of "
                    f"{reference.view.name}; map one of them with .with_join_key_map(...)"
                )
    return types
