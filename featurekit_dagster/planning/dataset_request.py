"""What a dataset is made of: which features for which rows, as a value that JSON can hold. Never a key or a value."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from featurekit_dagster.domain.feature_view import FeatureReference, FeatureView
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.planning.fingerprint import fingerprint
from featurekit_dagster.planning.grid import Timing

BUCKET_ROWS = 200_000
"""Spine rows of which features are in memory at a time, and of one commit, unless somebody says otherwise."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_LENGTH = 16


class DatasetKind(StrEnum):
    """Which read the rows of a dataset are the answer of."""

    EVENTS = "events"
    RANGE = "range"
    HISTORY = "history"


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFeatures:
    """Features of one view in a dataset.

    Args:
        view: Name of the feature view.
        label: What stands in front of the features.
        features: Their names.
        join_keys: Names of the view's join keys.
        spine_keys: Columns of the dataset that hold them, in the same order.
        declaration: Hash of everything that is declared and decides their values.
    """

    view: str
    label: str
    features: tuple[str, ...]
    join_keys: tuple[str, ...]
    spine_keys: tuple[str, ...]
    declaration: str

    @classmethod
    def of(cls, reference: FeatureReference) -> DatasetFeatures:
        """Return a reference as a dataset keeps it."""
        return cls(
            view=reference.view.name,
            label=reference.label,
            features=reference.feature_names,
            join_keys=reference.view.key_names,
            spine_keys=reference.spine_keys,
            declaration=declaration_hash(reference.view, reference.feature_names),
        )

    def reference(self, repo: Repository) -> FeatureReference:
        """Return the reference that this was made from, on the view as it is declared now.

        Raises:
            NotFoundError: The view is declared no more.
        """
        view = repo.view(self.view)
        keys = dict(zip(self.join_keys, self.spine_keys, strict=True))
        return FeatureReference(view=view, selected=self.features, namespace=self.label, join_key_map=keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """What one dataset is to hold.

    Args:
        name: Its name, unique in the workspace.
        kind: Which read it is the answer of.
        references: The features; of a single view unless the kind is EVENTS.
        service: The feature service that brought them; None for a single view.
        separator: What stands between label and feature in the names of columns.
        timestamp_key: The column of times: of the spine, or of the answer for a time range.
        from_source: As in the read.
        allow_gaps: As in the read.
        start_us: First microsecond of a time range.
        end_us: First microsecond after it.
        max_lookback_us: As in the read of a time range.
        has_entities: Whether the join keys of a time range were given.
        bucket_rows: Spine rows of one commit.
    """

    name: str
    kind: DatasetKind
    references: tuple[DatasetFeatures, ...]
    service: str | None = None
    separator: str = "__"
    timestamp_key: str | None = None
    from_source: bool | None = None
    allow_gaps: bool = False
    start_us: int | None = None
    end_us: int | None = None
    max_lookback_us: int | None = None
    has_entities: bool = False
    bucket_rows: int = BUCKET_ROWS

    def __post_init__(self) -> None:
        check_dataset_name(self.name)
        if type(self.bucket_rows) is not int or self.bucket_rows < 1:
            raise TectonValidationError(f"bucket_rows is {self.bucket_rows!r}; give a whole number of at least 1")

    @property
    def view(self) -> str:
        """Name of the only feature view, or empty for a feature service."""
        return self.references[0].view if self.service is None else ""

    @property
    def feature_columns(self) -> tuple[str, ...]:
        """The columns of the dataset that are features, in order."""
        if self.kind is not DatasetKind.EVENTS:
            return self.references[0].features
        return tuple(f"{r.label}{self.separator}{name}" for r in self.references for name in r.features)

    def as_record(self) -> dict[str, Any]:
        """Return the request as JSON can hold it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> DatasetRequest:
        """Return the request that `as_record` was made of."""
        references = tuple(
            DatasetFeatures(
                view=each["view"],
                label=each["label"],
                features=tuple(each["features"]),
                join_keys=tuple(each["join_keys"]),
                spine_keys=tuple(each["spine_keys"]),
                declaration=each["declaration"],
            )
            for each in record["references"]
        )
        return cls(**{**record, "kind": DatasetKind(record["kind"]), "references": references})

    def with_timestamp_key(self, timestamp_key: str) -> DatasetRequest:
        """Return the same request with a known time column."""
        return replace(self, timestamp_key=timestamp_key)

    def changed_views(self, repo: Repository) -> tuple[str, ...]:
        """Return the views whose declaration decides otherwise now, or that are declared no more."""
        declared = {view.name: view for view in repo.views}
        changed = (
            each.view
            for each in self.references
            if each.view not in declared or declaration_hash(declared[each.view], each.features) != each.declaration
        )
        return tuple(dict.fromkeys(changed))


def declaration_hash(view: FeatureView, names: Iterable[str]) -> str:
    """Return a text that changes when some features of a view, read from the same rows, may have other values."""
    wanted = set(names)
    features: Sequence[Any] = [f for f in view.aggregates if f.name in wanted or view.secondary_key is not None]
    plain = [(f.name, str(f.dtype)) for f in view.attributes if f.name in wanted]
    facts = (fingerprint(view), repr(Timing.of(view)), str(view.lifetime_start_time), repr(features), plain)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:_LENGTH]


def check_dataset_name(name: Any) -> None:
    """Refuse what cannot be the name of a dataset.

    Raises:
        TectonValidationError: It is no such text.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise TectonValidationError(
            f"{name!r} cannot be the name of a dataset; use up to 128 letters, digits, '_', '-' and '.', and begin "
            "with a letter or a digit"
        )
