"""What a stream cannot give, and what an event is refused for."""

from __future__ import annotations

from featurekit_dagster.errors.base import FeatureKitError


class StreamError(FeatureKitError):
    """A stream refused or failed."""


class StreamUnavailable(StreamError):
    """A stream cannot be reached, or does not have what was asked for.

    Args:
        source: Name of the stream source.
        reason: What is wrong, without addresses that may hold a password.
    """

    retryable = True

    def __init__(self, *, source: str, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"stream source {source!r} cannot be read: {reason}")


class StreamPositionLost(StreamError):
    """A stream dropped events before they were read.

    Args:
        source: Name of the stream source.
        partition: The source partition.
        position: The position that was to be read from.
        oldest: The oldest position that there is, where the stream tells it.
    """

    def __init__(self, *, source: str, partition: str, position: str, oldest: str | None = None) -> None:
        self.source, self.partition, self.position, self.oldest = source, partition, position, oldest
        begins = f", it begins at {oldest} now" if oldest is not None else ""
        super().__init__(
            f"stream source {source!r} no longer keeps what comes after position {position} of partition "
            f"{partition}{begins}; the events between are in the batch source only, so cover them with an online batch "
            "job, and let the stream keep its events longer"
        )


class StreamExtraMissing(StreamError):
    """The library that a kind of stream needs is not installed."""

    def __init__(self, *, source: str, kind: str, extra: str) -> None:
        self.source, self.kind, self.extra = source, kind, extra
        super().__init__(
            f"stream source {source!r} is read from {kind}, whose library is not installed; "
            f"run: pip install 'featurekit_dagster[{extra}]'"
        )


class DuplicateEvents(StreamError):
    """Events of a commit were counted by another loop since they were looked for."""

    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "events of this commit have been counted by another loop meanwhile; nothing was written, look for "
            "duplicates again"
        )
