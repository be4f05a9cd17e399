"""What a stream cannot give, and what an event is refused for."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError

_REFUSALS_SHOWN = 10


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


class StreamFollowed(StreamError):
    """Somebody follows the stream of a view already.

    Args:
        view: The feature view.
        job_id: The job that does it.
    """

    def __init__(self, *, view: str, job_id: str) -> None:
        self.view, self.job_id = view, job_id
        super().__init__(
            f"{view}: its stream is followed by job {job_id} already; one run at a time does it, so let that one go "
            "on, or cancel it first"
        )


class EndlessJob(StreamError, TectonValidationError):
    """Somebody would wait for the end of a job that follows a stream.

    Args:
        view: The feature view.
        job_id: The job.
    """

    def __init__(self, *, view: str, job_id: str) -> None:
        self.view, self.job_id = view, job_id
        super().__init__(
            f"{view}: job {job_id} follows a stream and goes on until it is told to end, so it is not waited for; "
            "get_job shows its stats, and featurekit stream status how far it is"
        )


class NoSuchShare(StreamError, TectonValidationError):
    """A run was told to follow a part of a stream that is not divided so.

    Args:
        view: The feature view.
        given: What the run was told.
        parallelism: Into how many parts its stream is divided.
    """

    def __init__(self, *, view: str, given: str, parallelism: int) -> None:
        self.view, self.given, self.parallelism = view, given, parallelism
        super().__init__(
            f"{view}: the run is tagged as share {given!r} of the stream, which {parallelism} "
            f"{'run follows' if parallelism == 1 else 'runs follow'}; leave the start of runs to the stream's sensor"
        )


class NotAStream(StreamError, TectonValidationError):
    """Something about a stream was asked of a view that follows none.

    Args:
        view: The feature view.
        is_stream: Whether it is a stream feature view.
    """

    def __init__(self, *, view: str, is_stream: bool) -> None:
        self.view, self.is_stream = view, is_stream
        why = "is not written online, so its stream is not followed" if is_stream else "is no stream feature view"
        super().__init__(f"{view} {why}; name a stream_feature_view with online=True")


class DuplicateEvents(StreamError):
    """Events of a commit were counted by another loop since they were looked for."""

    retryable = True

    def __init__(self) -> None:
        super().__init__(
            "events of this commit have been counted by another loop meanwhile; nothing was written, look for "
            "duplicates again"
        )


class StreamStateLost(StreamError):
    """The online store was emptied while a view's stream was followed.

    Args:
        view: The feature view.
    """

    retryable = True

    def __init__(self, *, view: str) -> None:
        self.view = view
        super().__init__(
            f"{view}: its online store was emptied while its stream was followed; the stream is read anew from where "
            f"it begins, and what was before is filled by batch jobs, or at once by: featurekit refill-online {view}"
        )


class IngestError(FeatureKitError):
    """Events cannot be taken."""


class EventsRefused(IngestError, TectonValidationError):
    """Some of the events that were sent do not fit their source, so none of them was taken.

    Args:
        source: Name of the push source.
        refused: Place of the event among those sent, field concerned (empty: the whole event), and the rule it breaks.
    """

    def __init__(self, *, source: str, refused: Sequence[tuple[int, str, str]]) -> None:
        self.source, self.refused = source, tuple(refused)
        lines = [f"  - event {index}: {f'{field} {rule}'.strip()}" for index, field, rule in refused[:_REFUSALS_SHOWN]]
        more = [f"  - and {len(refused) - _REFUSALS_SHOWN} more faults"] if len(refused) > _REFUSALS_SHOWN else []
        count = len({index for index, _, _ in refused})
        events = "1 event does" if count == 1 else f"{count:,} events do"
        head = f"push source {source!r}: {events} not fit it, so nothing was logged; correct them:"
        super().__init__("\n".join([head, *lines, *more]))


class NotAPushSource(IngestError, TectonValidationError):
    """Events were sent to a source that takes none, or cannot be checked."""

    def __init__(self, *, source: str, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"events cannot be sent to source {source!r}: {reason}")
