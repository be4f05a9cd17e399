"""Every error that the project raises on purpose.

Each class takes its facts as keyword arguments, keeps them as attributes and writes its own message: what was given,
what the rule is, what to do. `retryable` says whether trying the same again can help; only orchestration reads it.
"""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.intervals import Interval, IntervalSet


class FeatureKitError(Exception):
    """Base of all errors of this package."""

    retryable = False


class TectonValidationError(FeatureKitError, ValueError):
    """User input was refused (the seeds' name for it)."""


class DeclarationError(TectonValidationError):
    """A declaration breaks one or more rules; all of them are listed.

    Args:
        subject: The declared object, as `kind 'name'`.
        faults: One sentence per broken rule: the given value, the rule, the remedy. Equal ones are told once.
    """

    def __init__(self, *, subject: str, faults: Sequence[str]) -> None:
        self.subject = subject
        self.faults = tuple(dict.fromkeys(faults))
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__(f"{subject}: {count}\n" + "\n".join(f"  - {fault}" for fault in self.faults))


class NotFoundError(TectonValidationError):
    """A name is not known where it was looked up.

    Args:
        kind: What was looked up (`feature view`, `workspace`, ...).
        name: The name that was asked for.
        known: The names that exist.
    """

    def __init__(self, *, kind: str, name: str, known: Sequence[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"no {kind} named {name!r}; there is {', '.join(sorted(known)) or 'none'}")


class PlanError(TectonValidationError):
    """An interval cannot be planned as asked."""


class MisalignedInterval(PlanError):
    """An interval does not lie on the epoch grid of its view."""

    def __init__(self, *, view: str, what: str, given: str, rule: str, remedy: str) -> None:
        self.view, self.what, self.given, self.rule, self.remedy = view, what, given, rule, remedy
        super().__init__(f"{view}: {what} {given} {rule}; {remedy}")


class OverlappingMaterialization(PlanError):
    """A job would write what another job has written or is writing.

    Args:
        view: The feature view.
        interval: The refused interval.
        store: `online` or `offline`.
        overlap: The part that is taken already.
        running: Whether the other job is still queued or running (else it succeeded).
        job_id: The other job, where it is known.
    """

    def __init__(
        self,
        *,
        view: str,
        interval: Interval,
        store: str,
        overlap: IntervalSet,
        running: bool,
        job_id: str | None = None,
    ) -> None:
        self.view, self.interval, self.store = view, interval, store
        self.overlap, self.running, self.job_id = overlap, running, job_id
        other = f"job {job_id}" if job_id else "an earlier job"
        if running:
            what = f"{other} is queued or running there; wait for it or cancel it first"
        else:
            what = f"{other} succeeded there; pass overwrite=True to replace what it wrote"
        super().__init__(f"{view}: {interval} overlaps {overlap} in the {store} store: {what}")


class BeforeFeatureStart(PlanError):
    """An interval begins before the view's materialization start."""

    def __init__(self, *, view: str, given: str, first: str) -> None:
        self.view, self.given, self.first = view, given, first
        super().__init__(
            f"{view}: start {given} is before the materialization start {first}; begin there, "
            "or move feature_start_time"
        )


class IntervalNotComplete(PlanError):
    """An interval ends after the last complete one."""

    def __init__(self, *, view: str, given: str, last: str) -> None:
        self.view, self.given, self.last = view, given, last
        super().__init__(
            f"{view}: end {given} is after the last complete interval, which ends {last}; end there or wait"
        )


class TransformError(FeatureKitError):
    """A transformation could not be run or returned something unusable."""


class OutputSchemaMismatch(TransformError):
    """A transformation's output does not have the declared columns.

    Args:
        view: The feature view.
        faults: One clause per column: missing, extra, or of another type.
    """

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: the transformation's output differs from the declaration: " + "; ".join(faults))


class StoreError(FeatureKitError):
    """A store refused or failed."""


class Unsupported(StoreError):
    """Something that this store, engine or installation cannot do."""


class NotMaterialized(FeatureKitError):
    """A read needs intervals that were never materialized.

    Args:
        view: The feature view.
        missing: What is not covered.
        rows: Number of spine rows that need it (0 when the read has no spine).
    """

    def __init__(self, *, view: str, missing: IntervalSet, rows: int = 0) -> None:
        self.view, self.missing, self.rows = view, missing, rows
        needs = f"{rows:,} spine rows need" if rows else "the read needs"
        shown = ", ".join(str(i) for i in missing.intervals[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        super().__init__(
            f"{view}: {needs} {shown}{more}, which is not materialized offline; materialize it, "
            f"pass allow_gaps=True to get NULL for the rows concerned, or from_source=True to compute them"
        )


class JoinKeyMismatch(TectonValidationError):
    """A join key cannot be a key of the view; the message never shows the value.

    Args:
        view: The feature view.
        what: What was given, by column and type.
        rule: What the view takes.
    """

    def __init__(self, *, view: str, what: str, rule: str) -> None:
        self.view, self.what, self.rule = view, what, rule
        super().__init__(f"{view}: {what}; the view {rule}")


class KeyTooLong(StoreError):
    """A join key is too long for a view that is read by a part of its keys."""

    def __init__(self, *, view: str, given_bytes: int, max_bytes: int) -> None:
        self.view, self.given_bytes, self.max_bytes = view, given_bytes, max_bytes
        super().__init__(
            f"{view}: a join key of {given_bytes} encoded bytes cannot be stored; views whose online_serving_index "
            f"leaves out a join key take at most {max_bytes}; shorten the key or list all join keys in it"
        )


class OnlineRecordsMismatch(StoreError):
    """Records for the online store do not fit its layout.

    Args:
        view: The feature view.
        faults: One clause per fault; never a value.
    """

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: records do not fit the online layout: " + "; ".join(faults))


class OnlineLayoutMismatch(StoreError):
    """The online store holds records of the view that were written with other columns, keys or tile size."""

    def __init__(self, *, view: str, generation: int) -> None:
        self.view, self.generation = view, generation
        super().__init__(
            f"{view}: the online store holds generation {generation} with other join keys, columns or tile size than "
            f"declared now; clear it and materialize the view online again"
        )


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
    """A job cannot go from the state it is in to the one that was asked for."""

    def __init__(self, *, job_id: str, state: str, wanted: str, reason: str | None = None) -> None:
        self.job_id, self.state, self.wanted, self.reason = job_id, state, wanted, reason
        because = f" ({reason})" if reason else ""
        super().__init__(
            f"job {job_id} is {state}{because} and cannot become {wanted}; only a running job can; start a new job"
        )


class TableMissing(StoreError):
    """A feature view has no offline table yet."""

    def __init__(self, *, view: str, location: str) -> None:
        self.view, self.location = view, location
        super().__init__(f"{view}: there is no offline table at {location}; materialize the view offline first")


class UnusableLakePath(Unsupported):
    """The path of the lake has characters that the table format's library cannot open."""

    def __init__(self, *, path: str, refused: Sequence[str]) -> None:
        self.path, self.refused = path, tuple(refused)
        shown = " ".join(map(repr, refused))
        super().__init__(f"the lake path {path!r} contains {shown}; no Delta table can be kept there; choose another")


class RowsOutsideInterval(StoreError):
    """Rows that a job wants to write are not of its interval.

    Args:
        view: The feature view.
        interval: The interval that the job replaces.
        column: The time column that was looked at.
        outside: Number of rows before or after the interval.
        missing: Number of rows without a time.
    """

    def __init__(self, *, view: str, interval: Interval, column: str, outside: int, missing: int) -> None:
        self.view, self.interval, self.column, self.outside, self.missing = view, interval, column, outside, missing
        super().__init__(
            f"{view}: {outside:,} rows lie outside {interval} and {missing:,} have no {column}; a job writes only "
            f"rows of its interval; cut the output to it and drop rows without a time"
        )


class StoredSchemaMismatch(StoreError):
    """Rows do not fit the columns that a store keeps; `faults` has one clause per column."""

    def __init__(self, *, view: str, faults: Sequence[str]) -> None:
        self.view, self.faults = view, tuple(faults)
        super().__init__(f"{view}: the rows do not fit the offline table: " + "; ".join(self.faults))


class CommitConflict(StoreError):
    """Other writers committed first each time a write was tried."""

    retryable = True

    def __init__(self, *, view: str, interval: Interval, tries: int) -> None:
        self.view, self.interval, self.tries = view, interval, tries
        super().__init__(
            f"{view}: {interval} was not written: other writers changed the table during each of {tries} tries; "
            "run the job again when they are done"
        )


class LeaseHeld(StoreError):
    """Somebody who is alive holds the lease, until `until` unless it is renewed."""

    retryable = True

    def __init__(self, *, name: str, holder: str, until: str) -> None:
        self.name, self.holder, self.until = name, holder, until
        super().__init__(f"{name} is held by {holder} until {until}, and has one holder at a time; wait for it")


class LeaseLost(StoreError):
    """A lease was taken over, so the holder of its former epoch may write no more."""

    def __init__(self, *, name: str, epoch: int, current: int) -> None:
        self.name, self.epoch, self.current = name, epoch, current
        super().__init__(
            f"{name}: the lease of epoch {epoch} is gone, the current epoch is {current}; nothing more may be written "
            "under it; run the job again"
        )


class LedgerOnOtherHost(Unsupported):
    """A SQLite ledger was opened by a second host."""

    def __init__(self, *, location: str) -> None:
        self.location = location
        super().__init__(
            f"the ledger at {location} belongs to another host, and a SQLite ledger serves one; use a home of this "
            "host's own, or keep the ledger that several hosts share in PostgreSQL"
        )


class LedgerVersionMismatch(StoreError):
    """A ledger was written by a version of the package with another schema."""

    def __init__(self, *, location: str, found: str, wanted: str) -> None:
        self.location, self.found, self.wanted = location, found, wanted
        super().__init__(
            f"the ledger at {location} has schema version {found}, this package needs {wanted}; "
            "use the version of the package that wrote it, or another home"
        )


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


def safe_reason(error: BaseException) -> str:
    """Return what may be logged about an error: a message of ours, else its kind, as others may quote values."""
    if isinstance(error, FeatureKitError):
        return str(error)
    return f"{type(error).__name__} (its text stays with the caller)"


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


class SpineError(TectonValidationError):
    """A spine lacks a column, or a column cannot be used as it is."""


class ReadError(TectonValidationError):
    """A read was asked for in a way that has no answer."""


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


class OnlineStoreBusy(StoreError):
    """The online store's memory map must move and a read of the same process holds it."""

    retryable = True

    def __init__(self, *, path: str, readers: int) -> None:
        self.path, self.readers = path, readers
        super().__init__(
            f"online store {path}: {readers} reads of this process are open while its map must move; "
            f"end them before writing or closing"
        )


class ConcurrentOnlineWrite(StoreError):
    """Two writers filled the same online view at once."""

    retryable = True

    def __init__(self, *, view: str) -> None:
        self.view = view
        super().__init__(f"{view}: another writer put online records while this one loaded the empty view; write again")
