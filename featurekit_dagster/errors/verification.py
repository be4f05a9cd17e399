"""Checks of stored features and integration tests: what they found, or why they could not be made."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError


class UnsettledView(FeatureKitError):
    """The stores of a view could not be compared, because it was being written all the time.

    Args:
        view: The feature view.
    """

    retryable = True

    def __init__(self, *, view: str) -> None:
        self.view = view
        super().__init__(
            f"{view}: jobs went on writing it while its stores were compared, so differences mean nothing; "
            "do it again when they have ended"
        )


class StoresDiffer(FeatureKitError):
    """The online store of a view answers something else than its offline store.

    Args:
        view: The feature view.
        found: What was found, in one sentence; no keys and no values.
    """

    def __init__(self, *, view: str, found: str) -> None:
        self.view, self.found = view, found
        super().__init__(
            f"{view}: {found} See featurekit check-consistency {view}; an overwrite of the interval concerned makes "
            "the stores equal again"
        )


class IntegrationTestFailed(FeatureKitError):
    """Steps of an integration test did not hold.

    Args:
        view: The feature view.
        failed: Names of the steps.
    """

    def __init__(self, *, view: str, failed: Sequence[str]) -> None:
        self.view, self.failed = view, tuple(failed)
        super().__init__(f"{view}: the integration test failed at {', '.join(failed)}; its report says why")


class EventsNotUsable(TectonValidationError):
    """Events for an integration test cannot be used.

    Args:
        view: The feature view.
        source: The source that they are of.
        reason: What is wrong with them; never a value.
    """

    def __init__(self, *, view: str, source: str, reason: str) -> None:
        self.view, self.source, self.reason = view, source, reason
        super().__init__(f"{view}: events of {source!r} cannot be used: {reason}")
