"""Declarations and intervals that are refused before anything is done."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import TectonValidationError
from featurekit_dagster.intervals import Interval, IntervalSet


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
            what = f"{other} succeeded there; pass overwrite=True (--overwrite) to replace what it wrote"
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


class TooManyPartitions(PlanError):
    """A view would have more partitions in Dagster than that can take.

    Args:
        view: The feature view.
        schedule: Its `batch_schedule`.
        partitions: How many it has by now.
        many: Above how many Dagster gets slow.
        most: How many a new view may have.
    """

    def __init__(self, *, view: str, schedule: str, partitions: int, many: int, most: int) -> None:
        self.view, self.schedule, self.partitions, self.many, self.most = view, schedule, partitions, many, most
        super().__init__(
            f"{view}: batch_schedule {schedule} makes {partitions:,} partitions; Dagster gets slow above {many:,} and "
            f"takes at most {most:,}; give a longer batch_schedule (aggregation_interval may stay short), or a later "
            "feature_start_time"
        )


class ChangedDeclaration(PlanError):
    """A view is declared otherwise than what is stored of it was made, and nobody has decided what to do.

    Args:
        view: The feature view.
        changes: What has changed, one text per part.
        keepable: Whether what is stored can stand as it is.
    """

    def __init__(self, *, view: str, changes: Sequence[str], keepable: bool) -> None:
        self.view, self.changes, self.keepable = view, tuple(changes), keepable
        keep = f", or, if no stored value would differ, `featurekit apply {view} --keep`" if keepable else ""
        super().__init__(
            f"{view}: it was changed since it was materialized ({'; '.join(changes)}); decide what becomes of what is "
            f"stored: `featurekit apply {view} --rebuild`{keep}"
        )


class ChangeNotKeepable(PlanError):
    """What is stored of a view cannot stand as it is, as the changed declaration needs other rows.

    Args:
        view: The feature view.
        changes: What has changed that stored rows cannot follow, one text per part.
    """

    def __init__(self, *, view: str, changes: Sequence[str]) -> None:
        self.view, self.changes = view, tuple(changes)
        super().__init__(
            f"{view}: stored rows cannot follow what was changed ({'; '.join(changes)}), whatever their values; "
            f"`featurekit apply {view} --rebuild` builds them anew beside the old ones"
        )


class RetiredGeneration(PlanError):
    """A job was to be done again whose generation of the view has been replaced.

    Args:
        job_id: The job.
        view: The feature view.
        generation: The generation that the job wrote.
    """

    def __init__(self, *, job_id: str, view: str, generation: int) -> None:
        self.job_id, self.view, self.generation = job_id, view, generation
        super().__init__(
            f"{view}: job {job_id} wrote generation {generation}, which nothing reads or writes any more; "
            "trigger a new job for its range"
        )


class WrongJobArgument(PlanError, TypeError):
    """A job was asked for with an argument of another type than it has.

    Args:
        view: The feature view.
        argument: Name of the argument.
        given: What was given.
        rule: What is wanted, with an example.
    """

    def __init__(self, *, view: str, argument: str, given: object, rule: str) -> None:
        self.view, self.argument, self.given, self.rule = view, argument, given, rule
        shown = "None" if given is None else f"{given!r:.60}, a {type(given).__name__}"
        super().__init__(f"{view}: {argument} is {shown}; {rule}")


class WrongJobKind(TectonValidationError, TypeError):
    """A job of another kind was asked for as a materialization job.

    Args:
        view: The feature view.
        job_id: The job.
        kind: Its kind.
    """

    def __init__(self, *, view: str, job_id: str, kind: str) -> None:
        self.view, self.job_id, self.kind = view, job_id, kind
        super().__init__(
            f"{view}: job {job_id} is a {kind} job, and this is for materialization jobs; get_job and list_jobs show it"
        )
