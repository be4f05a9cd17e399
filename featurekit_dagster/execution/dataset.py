"""Making a dataset: bucket by bucket of its spine, each in one commit, from versions that stay the same throughout.

Attempts go on where the last one ended. The manifest is written last, and with it the dataset is there. Making it again
from the manifest reads the same versions and compares contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.engine.columns import to_column
from featurekit_dagster.engine.content_hash import ContentHash
from featurekit_dagster.errors import (
    DatasetBusy,
    DatasetChanged,
    DatasetExists,
    DatasetTaken,
    NotFoundError,
    TableMissing,
    VersionGone,
)
from featurekit_dagster.execution.dataset_spine import SpineFacts, spine_bucket
from featurekit_dagster.execution.dataset_statistics import column_records
from featurekit_dagster.intervals import format_time
from featurekit_dagster.planning.dataset_request import DatasetKind, DatasetRequest
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.datasets import ROW, Datasets
from featurekit_dagster.stores.delta_record import format_intervals, parse_intervals
from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.workspace_stores import OfflineVersion, WorkspaceStores

FORMAT = 1
"""Of the manifest; grows when its fields change their meaning."""

PATIENCE = timedelta(minutes=1)
RowsOfBucket = Callable[[pa.Table | None], pa.Table]


def _ignore(*_: object) -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReader:
    """How the rows of a dataset are read.

    Args:
        views: The feature views that are read from the offline store.
        rows: Given stores, returns what makes the rows of a bucket from its part of the spine.
    """

    views: Sequence[FeatureView]
    rows: Callable[[WorkspaceStores], RowsOfBucket]


Read = Callable[[DatasetRequest], DatasetReader]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """What came of making a dataset again.

    Args:
        recorded: Hash of the contents that the manifest has.
        stored: Hash of the rows that are stored now.
        reproduced: Hash of the rows as they are made from the same versions now.
    """

    recorded: str
    stored: str
    reproduced: str

    @property
    def is_equal(self) -> bool:
        """Whether all three are the same."""
        return self.recorded == self.stored == self.reproduced


def dataset_lease(workspace: str, name: str) -> str:
    """Return the name of the lease under which a dataset is made, changed and removed."""
    return f"dataset:{workspace}/{name}"


def open_request(datasets: Datasets, name: str) -> tuple[str, DatasetRequest, SpineFacts | None] | None:
    """Return job, request and spine of a dataset that was asked for; None where none was."""
    record = datasets.request(name)
    if record is None:
        return None
    spine = None if record["spine"] is None else SpineFacts(**record["spine"])
    return record["job_id"], DatasetRequest.from_record(record["request"]), spine


def check_free(stores: WorkspaceStores, name: str) -> None:
    """Refuse a name under which a dataset is there or on its way; what a failed job left under it is removed.

    The dataset's lease must be held.

    Raises:
        DatasetExists: The name is taken.
    """
    found = open_request(stores.datasets, name)
    if found is not None:
        job_id = found[0]
        if name in stores.datasets.names() or _is_active(stores, job_id):
            raise DatasetExists(name=name, job_id=job_id)
    stores.datasets.remove(name)


def remove_dataset(stores: WorkspaceStores, name: str) -> None:
    """Remove a dataset, or what a job that ended without success has left of one.

    Raises:
        DatasetBusy: A job makes it.
        NotFoundError: There is none.
    """
    with stores.ledger.lease(dataset_lease(stores.workspace, name), holder="deletion", wait=PATIENCE):
        found = open_request(stores.datasets, name)
        if found is None:
            raise NotFoundError(kind="dataset", name=name, known=stores.datasets.names())
        if name not in stores.datasets.names() and _is_active(stores, found[0]):
            raise DatasetBusy(name=name, job_id=found[0])
        stores.datasets.remove(name)


def _is_active(stores: WorkspaceStores, job_id: str) -> bool:
    try:
        return not JobState(stores.ledger.job(job_id).state).is_final
    except NotFoundError:
        return False  # of a ledger that was lost


def generate_dataset(
    name: str,
    job_id: str,
    repo: Repository,
    stores: WorkspaceStores,
    read: Read,
    *,
    check: Callable[[], None] = _ignore,
    log: Callable[[str], None] = _ignore,
    report: Callable[[dict[str, int]], object] = _ignore,
) -> dict[str, int]:
    """Make a dataset, or go on making it, and return counts of what was done.

    Args:
        name: The dataset.
        job_id: The job that makes it.
        repo: The declarations.
        stores: Where rows and record are kept.
        read: Says how its rows are read.
        check: Called before each commit; raises when the job is to end.
        log: Takes a line on progress after each bucket.
        report: Takes counts of what is stored after each bucket.

    Raises:
        DatasetTaken: The name is another job's by now, or what was begun was deleted.
        DatasetChanged: A view was declared otherwise when the dataset was begun.
        VersionGone: A version that the first buckets were made of cannot be read any more.
        NotMaterialized: Something needed is not materialized, and gaps are not allowed.
        LeaseHeld: Another process makes it.
        LeaseLost: Another process has begun to make it; nothing more was written.
    """
    with stores.ledger.lease(dataset_lease(stores.workspace, name), holder=job_id, wait=PATIENCE) as lease:
        found = open_request(stores.datasets, name)
        if found is None or found[0] != job_id:
            raise DatasetTaken(name=name, job_id=job_id)
        if changed := found[1].changed_views(repo):
            raise DatasetChanged(name=name, views=changed)
        making = _Making(name, job_id, found[1], found[2], stores, read(found[1]), lease)
        if name not in stores.datasets.names():
            making.append_buckets(check, log, report)
            check()
            making.finish()
        return making.counts()


@dataclass(slots=True)
class _Making:
    """One attempt to make a dataset."""

    name: str
    job_id: str
    request: DatasetRequest
    spine: SpineFacts | None
    stores: WorkspaceStores
    reader: DatasetReader
    lease: Lease
    done_before: int = 0

    def append_buckets(
        self, check: Callable[[], None], log: Callable[[str], None], report: Callable[[dict[str, int]], object]
    ) -> None:
        """Store the buckets that are not stored yet."""
        datasets, total = self.stores.datasets, bucket_count(self.request, self.spine)
        self.done_before = done = datasets.buckets(self.name)
        rows_of = self.reader.rows(self.stores.at_versions(self._versions()))
        for bucket in range(done, total):
            check()
            rows = rows_of(bucket_input(self.request, datasets, bucket))
            first = bucket * self.request.bucket_rows
            numbers = to_column(np.arange(first, first + rows.num_rows), None, pa.int64())
            check()
            datasets.append(
                self.name, bucket, rows.add_column(0, ROW, numbers), epoch=self.lease.epoch, job_id=self.job_id
            )
            log(f"dataset {self.name}: bucket {bucket + 1:,} of {total:,}, {first + rows.num_rows:,} rows")
            report({"rows": first + rows.num_rows, "buckets": bucket + 1, "buckets_in_all": total})

    def _versions(self) -> dict[str, OfflineVersion]:
        """Return the versions that all buckets are made of: those of the first attempt."""
        datasets = self.stores.datasets
        pins = datasets.pins(self.name)
        if pins is None:
            now = {view.name: self.stores.offline_version(view) for view in self.reader.views}
            datasets.write_pins(self.name, {view: version_record(each) for view, each in now.items()})
            return now
        versions = versions_of(pins)
        check_versions(self.stores, versions)
        return versions

    def finish(self) -> None:
        """Write the manifest."""
        datasets, request = self.stores.datasets, self.request
        rows = datasets.row_count(self.name)
        spine = None
        if self.spine is not None and request.kind is DatasetKind.EVENTS:
            spine = {"rows": self.spine.rows, "sha256": self.spine.sha256}
        manifest = {
            "format": FORMAT,
            "name": self.name,
            "workspace": self.stores.workspace,
            "job_id": self.job_id,
            "created_at": format_time(self.stores.clock()),
            "request": request.as_record(),
            "versions": datasets.pins(self.name) or {},
            "spine": spine,
            "rows": rows,
            "buckets": bucket_count(request, self.spine),
            "content_sha256": content_hash(datasets, self.name, request.bucket_rows, rows),
            "columns": column_records(datasets, self.name, request.feature_columns, rows),
        }
        datasets.write_manifest(self.name, manifest)

    def counts(self) -> dict[str, int]:
        """Return counts of what is there."""
        manifest = self.stores.datasets.manifest(self.name)
        return {
            "rows": manifest["rows"],
            "features": sum(column["is_feature"] for column in manifest["columns"]),
            "buckets": manifest["buckets"],
            "buckets_before": self.done_before,
        }


def bucket_count(request: DatasetRequest, spine: SpineFacts | None) -> int:
    """Return the number of buckets of a dataset; a time range, and an empty spine, has one."""
    if request.kind is not DatasetKind.EVENTS or spine is None:
        return 1
    return max(1, -(-spine.rows // request.bucket_rows))


def bucket_input(request: DatasetRequest, datasets: Datasets, bucket: int) -> pa.Table | None:
    """Return the part of the spine that a bucket is made of; None where there is no spine."""
    has_spine = request.kind is DatasetKind.EVENTS or request.has_entities
    return spine_bucket(datasets, request.name, bucket) if has_spine else None


def content_hash(datasets: Datasets, name: str, piece_rows: int, rows: int) -> str:
    """Return the hash of the rows that are stored of a dataset, in their order."""
    content = ContentHash(datasets.schema(name))
    for piece in datasets.pieces(name, piece_rows, rows):
        content.add(piece)
    return content.hexdigest()


def reproduce_dataset(
    name: str, repo: Repository, stores: WorkspaceStores, read: Read, *, log: Callable[[str], None] = _ignore
) -> Reproduction:
    """Make the rows of a dataset again from the same versions, storing nothing, and compare contents.

    Views that were computed from their sources are computed again from what the sources hold now.

    Args:
        name: The dataset.
        repo: The declarations.
        stores: Where rows and record are kept.
        read: Says how its rows are read.
        log: Takes a line on progress after each bucket.

    Raises:
        DatasetChanged: A view was declared otherwise when the dataset was made.
        VersionGone: A version that it was made of cannot be read any more.
        NotFoundError: There is no such dataset.
    """
    datasets = stores.datasets
    manifest = datasets.manifest(name)
    request = DatasetRequest.from_record(manifest["request"])
    if changed := request.changed_views(repo):
        raise DatasetChanged(name=name, views=changed)
    versions = versions_of(manifest["versions"])
    check_versions(stores, versions)
    rows_of, content = read(request).rows(stores.at_versions(versions)), None
    for bucket, rows in enumerate(_buckets(request, datasets, rows_of, manifest["buckets"])):
        content = content or ContentHash(rows.schema)
        content.add(rows)
        log(f"dataset {name}: bucket {bucket + 1:,} of {manifest['buckets']:,}")
    return Reproduction(
        recorded=manifest["content_sha256"],
        stored=content_hash(datasets, name, request.bucket_rows, manifest["rows"]),
        reproduced="" if content is None else content.hexdigest(),
    )


def _buckets(request: DatasetRequest, datasets: Datasets, rows_of: RowsOfBucket, count: int) -> Iterator[pa.Table]:
    for bucket in range(count):
        yield rows_of(bucket_input(request, datasets, bucket))


def version_record(version: OfflineVersion) -> dict[str, Any]:
    """Return a version as a manifest holds it."""
    return {
        "generation": version.generation,
        "version": version.version,
        "coverage": format_intervals(version.coverage),
    }


def versions_of(pins: Mapping[str, Any]) -> dict[str, OfflineVersion]:
    """Return the versions that a manifest holds, by view."""
    return {
        view: OfflineVersion(
            generation=pin["generation"], version=pin["version"], coverage=parse_intervals(pin["coverage"])
        )
        for view, pin in pins.items()
    }


def check_versions(stores: WorkspaceStores, versions: Mapping[str, OfflineVersion]) -> None:
    """Refuse versions that cannot be read any more.

    Raises:
        VersionGone: There is one.
    """
    for view, pin in versions.items():
        if pin.version is None:
            continue
        try:
            stores.offline.check_version(view, pin.generation, pin.version)
        except TableMissing as error:
            raise VersionGone(view=view, generation=pin.generation, version=pin.version) from error
