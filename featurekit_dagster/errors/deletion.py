"""What deleting join keys refuses."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError


class KeysRefused(TectonValidationError):
    """Keys cannot be deleted, or allowed again; nothing was changed.

    Args:
        view: The feature view.
        faults: One clause per fault; never a value.
    """

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: the keys are refused, nothing was changed: " + "; ".join(faults))


class KeysGone(FeatureKitError):
    """A job that deletes keys cannot be done again, because the file that they waited in is gone.

    Args:
        view: The feature view.
        job_id: The job.
        folder: Where the file was.
    """

    retryable = False

    def __init__(self, *, view: str, job_id: str, folder: str) -> None:
        self.view, self.job_id, self.folder = view, job_id, folder
        super().__init__(
            f"{view}: the keys of job {job_id} are not in {folder} any more, where they wait until they are deleted; "
            "call delete_keys again with them"
        )
