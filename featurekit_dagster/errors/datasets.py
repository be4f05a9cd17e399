"""What datasets refuse, or fail at."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError
from featurekit_dagster.errors.stores import StoreError


class VersionGone(StoreError):
    """A version of an offline table cannot be read any more.

    Args:
        view: The feature view.
        generation: Generation of its stored layout.
        version: The version.
    """

    def __init__(self, *, view: str, generation: int, version: int) -> None:
        self.view, self.generation, self.version = view, generation, version
        super().__init__(
            f"{view}: version {version} of the offline table of generation {generation} is gone, because maintenance "
            "deleted what newer versions had replaced longer ago than its retention; make the dataset again from the "
            "present version, and maintain with a longer retention where datasets have to be reproducible for longer"
        )


class DatasetExists(TectonValidationError):
    """A dataset was to be made under a name that is taken.

    Args:
        name: The name.
        job_id: The job that makes or made the dataset of that name.
    """

    def __init__(self, *, name: str, job_id: str) -> None:
        self.name, self.job_id = name, job_id
        super().__init__(
            f"there is a dataset {name!r} in this workspace, of job {job_id}; take another name, or delete that dataset"
        )


class DatasetBusy(StoreError):
    """A dataset was to be deleted or archived while a job makes it.

    Args:
        name: The dataset.
        job_id: The job.
    """

    retryable = True

    def __init__(self, *, name: str, job_id: str) -> None:
        self.name, self.job_id = name, job_id
        super().__init__(f"dataset {name!r} is being made by job {job_id}; cancel the job first, or wait for it")


class DatasetTaken(StoreError):
    """A job was to go on with a dataset that another job has made or makes under the same name.

    Args:
        name: The dataset.
        job_id: The job that was to go on.
    """

    def __init__(self, *, name: str, job_id: str) -> None:
        self.name, self.job_id = name, job_id
        super().__init__(
            f"job {job_id} cannot make dataset {name!r} any more: what it had begun was deleted, or the name belongs "
            "to another job; start a new job under a free name"
        )


class DatasetChanged(FeatureKitError):
    """A dataset cannot be gone on with or made again, because declarations have changed since it was begun.

    Args:
        name: The dataset.
        views: The feature views, or the service, that are declared otherwise now.
    """

    def __init__(self, *, name: str, views: Sequence[str]) -> None:
        self.name, self.views = name, tuple(views)
        super().__init__(
            f"dataset {name!r} was begun with other declarations of {', '.join(views)}; rows of two declarations do "
            "not go into one dataset; make another dataset, or check out the code it was made with"
        )


class NoSpine(TectonValidationError):
    """The spine of a dataset was asked for that was made without one.

    Args:
        name: The dataset.
    """

    def __init__(self, *, name: str) -> None:
        self.name = name
        super().__init__(f"dataset {name!r} was made from a time range, without a spine; there is none to return")


class UnstorableColumns(TectonValidationError):
    """Columns of a spine are of types that a Delta table does not have.

    Args:
        faults: One clause per column: its name and type.
    """

    def __init__(self, *, faults: Sequence[str]) -> None:
        self.faults = tuple(faults)
        super().__init__(
            f"the spine has columns that a dataset cannot keep: {', '.join(faults)}; convert them, or leave them out"
        )


class NotADatasetFrame(TectonValidationError):
    """A dataset was to be made of a frame that no later read can make again.

    Args:
        why: Where the frame comes from.
    """

    def __init__(self, *, why: str) -> None:
        self.why = why
        super().__init__(
            f"{why}; start_dataset_job is for frames of get_features_for_events and get_features_in_range, without "
            "mock_inputs"
        )
