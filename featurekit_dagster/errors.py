"""Every error that the project raises on purpose.

Each class takes its facts as keyword arguments, keeps them as attributes and writes its own message: what was given, what the
rule is, what to do. `retryable` says whether trying the same again can help; only orchestration reads it.
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
        faults: One sentence per broken rule: the given value, the rule, the remedy.
    """

    def __init__(self, *, subject: str, faults: Sequence[str]) -> None:
        self.subject = subject
        self.faults = tuple(faults)
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
            f"{view}: start {given} is before the materialization start {first}; begin there, or move feature_start_time"
        )


class IntervalNotComplete(PlanError):
    """An interval ends after the last complete one."""

    def __init__(self, *, view: str, given: str, last: str) -> None:
        self.view, self.given, self.last = view, given, last
        super().__init__(f"{view}: end {given} is after the last complete interval, which ends {last}; end there or wait")


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
            f"{view}: a join key of {given_bytes} encoded bytes cannot be stored; views whose online_serving_index leaves "
            f"out a join key take at most {max_bytes}; shorten the key or list all join keys in online_serving_index"
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
