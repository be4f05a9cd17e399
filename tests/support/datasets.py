"""Making datasets in a test without Dagster, and ending that at a bucket of choice."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyarrow as pa

from featurekit_dagster import Workspace
from featurekit_dagster.dataset_handles import Dataset, DatasetJob
from featurekit_dagster.engine.content_hash import ContentHash
from featurekit_dagster.engine.storable import storable
from featurekit_dagster.execution.dataset import generate_dataset
from featurekit_dagster.orchestration.datasets import dataset_reader


class Ended(Exception):
    """The attempt was to end here."""


def make(workspace: Workspace, job: DatasetJob, buckets: int | None = None) -> dict[str, int]:
    """Carry out one attempt of a job, as its Dagster run does, and return its counts.

    Args:
        workspace: The workspace.
        job: The job.
        buckets: End with `Ended` once so many buckets are stored; None for all of them.
    """
    repo, stores = workspace.repo, workspace.stores

    def check() -> None:
        if buckets is not None and stores.datasets.buckets(job.dataset_name) >= buckets:
            raise Ended

    read = partial(dataset_reader, repo=repo, stores=stores)
    return generate_dataset(job.dataset_name, job.id, repo, stores, read, check=check)


def made(workspace: Workspace, job: DatasetJob) -> Dataset:
    """Carry out a job and return its dataset."""
    make(workspace, job)
    return workspace.get_dataset(job.dataset_name)


def ended_by(job: Callable[[], object]) -> bool:
    """Tell whether a call ended with `Ended`."""
    try:
        job()
    except Ended:
        return True
    return False


def content(table: pa.Table) -> str:
    """Return the hash of what a dataset with the rows of a table holds."""
    kept = storable(table)
    whole = ContentHash(kept.schema)
    whole.add(kept)
    return whole.hexdigest()
