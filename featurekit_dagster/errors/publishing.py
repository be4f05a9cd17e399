"""What publishing refuses, or fails at."""

from __future__ import annotations

from featurekit_dagster.errors.base import TectonValidationError
from featurekit_dagster.errors.stores import StoreError


class NotPublished(TectonValidationError):
    """A view that is not declared to be published was to be.

    Args:
        view: The feature view.
    """

    def __init__(self, *, view: str) -> None:
        self.view = view
        super().__init__(
            f"{view}: its features are not published; declare it with "
            "offline_store=OfflineStoreConfig(publish_full_features=True)"
        )


class NothingToPublish(TectonValidationError):
    """In a range that was to be published nothing can be.

    Args:
        view: The feature view.
        asked: The range, in words.
        possible: What can be published, in words.
    """

    def __init__(self, *, view: str, asked: str, possible: str) -> None:
        self.view, self.asked, self.possible = view, asked, possible
        super().__init__(
            f"{view}: nothing of {asked} can be published; what is materialized offline, with all that its windows "
            f"look back on, and not before publish_start_time, is {possible}; materialize more, or ask for that"
        )


class WarehouseBusy(StoreError):
    """A warehouse could not be opened for a while.

    Args:
        place: Where it is, without credentials.
    """

    retryable = True

    def __init__(self, *, place: str) -> None:
        self.place = place
        super().__init__(
            f"the warehouse {place} cannot be opened: another process has it open, or it cannot be reached; end that "
            "process or wait, the job is tried again"
        )


class PublishingFailed(StoreError):
    """Full features could not be published to the end.

    Args:
        reason: Of which view, and why.
    """

    retryable = True

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"not everything was published: {reason}; what was done stays, do it again for the rest")
