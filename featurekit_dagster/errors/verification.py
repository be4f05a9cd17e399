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
    """The online stores of views answer something else than their offline stores.

    Args:
        views: The feature views.
    """

    def __init__(self, *, views: Sequence[str]) -> None:
        self.views = tuple(views)
        super().__init__(
            f"online answers of {', '.join(views)} differ from offline ones; an overwrite of what is materialized "
            "makes the stores equal again"
        )


class ComparisonFailed(FeatureKitError):
    """The stores of feature views could not be compared.

    Args:
        reason: Which, and why.
    """

    retryable = True

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the comparison was not made: {reason}")


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
