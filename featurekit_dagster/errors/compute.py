"""Sources, transformations and jobs that fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError, safe_reason
from featurekit_dagster.intervals import Interval


class SourceError(FeatureKitError):
    """A source cannot be read.

    Args:
        source: Name of the source.
        reason: What the reader said, without row values.
    """

    retryable = True

    def __init__(self, *, source: str, reason: str) -> None:
        self.source, self.reason = source, reason
        super().__init__(f"source {source!r} cannot be read: {reason}")


class TransformError(FeatureKitError):
    """A transformation could not be run or returned something unusable."""

    retryable = True


class QueryRefused(TransformError):
    """The text of a query cannot be run as it is: it is no SQL, or names what is not there.

    Args:
        view: The feature view.
        reason: What the engine said, without row values.
    """

    retryable = False

    def __init__(self, *, view: str, reason: str) -> None:
        self.view, self.reason = view, reason
        super().__init__(f"{view}: the query is refused: {reason}")


class OutputSchemaMismatch(TransformError):
    """A transformation's output does not have the declared columns.

    Args:
        view: The feature view.
        faults: One clause per column: missing, extra, or of another type.
    """

    retryable = False

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: the transformation's output differs from the declaration: " + "; ".join(faults))


class UnsupportedKeyType(TectonValidationError):
    """A join key column has a type that cannot be a key.

    Args:
        column: Name of the key column.
        given: Its type, or the two types where the sides disagree.
    """

    def __init__(self, *, column: str, given: str) -> None:
        self.column, self.given = column, given
        super().__init__(
            f"join key {column!r} is {given}; keys are strings, integers, bytes, booleans or timestamps, "
            "of the same kind on both sides; convert the column"
        )


class InvalidMemoryBudget(TectonValidationError):
    """The memory that reads may use was given as something that is no size.

    Args:
        variable: The environment variable that gives it.
        given: Its text.
    """

    def __init__(self, *, variable: str, given: str) -> None:
        self.variable, self.given = variable, given
        super().__init__(f"{variable} is {given!r}; give a size above zero such as 2GB, 512MB or 1.5GiB, or unset it")


class TileOverflow(TransformError):
    """The sum of integers of a single tile does not fit 64 bits.

    Args:
        columns: The integer columns that are summed; one of them is too large.
    """

    def __init__(self, *, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        super().__init__(
            f"the sum of one tile of {' or '.join(self.columns)} does not fit 64 bits; return the column as Float64"
        )


class AggregationOverflow(TransformError):
    """A sum of integers does not fit the feature's type.

    Args:
        feature: The feature.
        dtype: Its type.
        count: Number of windows concerned.
    """

    def __init__(self, *, feature: str, dtype: str, count: int) -> None:
        self.feature, self.dtype, self.count = feature, dtype, count
        windows = "1 window" if count == 1 else f"{count:,} windows"
        super().__init__(
            f"{feature}: the sum over {windows} does not fit {dtype}; sums keep the type of their column, "
            "so return the column in a wider type (Int64 or Float64)"
        )


class JobStateError(FeatureKitError):
    """Something was to happen to a job that cannot happen in its state.

    Args:
        job_id: The job.
        state: The state it is in.
        event: What was to happen: `START`, `SUCCEED`, `FAIL`, `GIVE_UP`, `STOP` or `RETRY`.
        reason: Why it is in that state, where that is known.
    """

    _CLAUSES: ClassVar[Mapping[str, str]] = {
        "START": "cannot be started; wait for it, or retry it once it has ended",
        "SUCCEED": "cannot succeed any more, so its range does not count as covered; start a new job",
        "FAIL": "cannot fail any more; start a new job for the range",
        "GIVE_UP": "cannot fail any more; start a new job for the range",
        "STOP": "has nothing under way that could be stopped; leave it as it is",
        "RETRY": "cannot be retried before it has ended; wait for it or cancel it",
    }

    def __init__(self, *, job_id: str, state: str, event: str, reason: str | None = None) -> None:
        self.job_id, self.state, self.event, self.reason = job_id, state, event, reason
        because = f" ({reason})" if reason else ""
        super().__init__(f"job {job_id} is {state}{because} and {self._CLAUSES[event]}")


class DeletionNotRetried(FeatureKitError):
    """A deletion was to be tried again like a materialization.

    Args:
        job_id: The job.
        view: The feature view.
    """

    def __init__(self, *, job_id: str, view: str) -> None:
        self.job_id, self.view = job_id, view
        super().__init__(
            f"job {job_id} deletes what was stored of {view} and is not tried again by itself; run featurekit apply, "
            "which begins a new one for what is left"
        )


class JobNotWaiting(JobStateError):
    """A job that was to begin does not wait any more: it was cancelled, has ended, or somebody else has begun it."""


class JobStopped(FeatureKitError):
    """A running job was told to end: it was cancelled, or drained for newer code."""

    def __init__(self, *, job_id: str) -> None:
        self.job_id = job_id
        super().__init__(f"job {job_id} was told to end; nothing more is written for it")


class JobFailedException(FeatureKitError):
    """A job that is waited for will not succeed by itself.

    Args:
        job_id: The job.
        state: Its state.
        reason: Why, where that is known.
    """

    def __init__(self, *, job_id: str, state: str, reason: str | None = None) -> None:
        self.job_id, self.state, self.reason = job_id, state, reason
        because = f": {reason}" if reason else ""
        waits = "it is on its way again; wait for it once it is RUNNING"
        remedy = waits if state == "MANUAL_RETRY" else "retry_materialization_job starts it again"
        super().__init__(f"job {job_id} is {state}{because}; {remedy}")


class JobTimeoutException(FeatureKitError):
    """A job that is waited for has not ended in time; it goes on."""

    def __init__(self, *, job_id: str, state: str, waited: str) -> None:
        self.job_id, self.state, self.waited = job_id, state, waited
        super().__init__(f"job {job_id} is still {state} after {waited}; wait again, or cancel_materialization_job")


class MaterializationFailed(FeatureKitError):
    """One or more jobs of a run failed; the others are done.

    Args:
        view: The feature view.
        failures: The interval of each failed job, and its error.
    """

    def __init__(self, *, view: str, failures: Sequence[tuple[Interval, Exception]]) -> None:
        self.view, self.failures = view, tuple(failures)
        self.retryable = any(getattr(error, "retryable", True) for _, error in self.failures)
        count = "1 job" if len(self.failures) == 1 else f"{len(self.failures)} jobs"
        lines = [f"  - {interval}: {safe_reason(error)}" for interval, error in self.failures[:10]]
        more = [f"  - and {len(self.failures) - 10} more"] if len(self.failures) > 10 else []
        super().__init__("\n".join([f"{view}: {count} failed", *lines, *more]))
