"""Making datasets in a test without Dagster, and ending that at a bucket of choice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from featurekit_dagster import Workspace
from featurekit_dagster.dataset_handles import Dataset, DatasetJob
from featurekit_dagster.engine.content_hash import ContentHash
from featurekit_dagster.engine.storable import storable
from featurekit_dagster.execution.dataset import generate_dataset
from featurekit_dagster.orchestration.datasets import dataset_reader
from featurekit_dagster.stores.datasets import Datasets


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


@contextmanager
def after_buckets(number: int, act: Callable[[], object]) -> Iterator[None]:
    """Do something in whatever thread makes a dataset, right after so many of its buckets are stored."""
    append = Datasets.append

    def append_and_act(datasets: Datasets, name: str, bucket: int, *rows: Any, **more: Any) -> None:
        append(datasets, name, bucket, *rows, **more)
        if bucket + 1 == number:
            act()

    Datasets.append = append_and_act  # type: ignore[method-assign]
    try:
        yield
    finally:
        Datasets.append = append  # type: ignore[method-assign]


def content(table: pa.Table) -> str:
    """Return the hash of what a dataset with the rows of a table holds."""
    kept = storable(table)
    whole = ContentHash(kept.schema)
    whole.add(kept)
    return whole.hexdigest()
