"""What a feature table does not take."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError


class RowsRefused(TectonValidationError):
    """Rows cannot be ingested into a feature table; none of them was taken.

    Args:
        table: The feature table.
        faults: One clause per fault; never a value.
    """

    def __init__(self, *, table: str, faults: Sequence[str]) -> None:
        self.table, self.faults = table, tuple(faults)
        super().__init__(f"{table}: the rows are refused, none was ingested: " + "; ".join(faults))


class IngestNotRetried(FeatureKitError):
    """An ingest cannot be asked for again by its id, because its rows are not kept with it.

    Args:
        job_id: The job.
        table: The feature table.
    """

    def __init__(self, *, job_id: str, table: str) -> None:
        self.job_id, self.table = job_id, table
        super().__init__(
            f"job {job_id} is an ingest into {table}, whose rows are not kept with it; ingest them again, or run "
            f"`featurekit ingest-table {table}` to finish one that was interrupted"
        )


class NotAFeatureTable(TectonValidationError):
    """A feature view was asked for what only a feature table can do, or the other way round.

    Args:
        name: The feature view or table.
        reason: Why not, and what to do.
    """

    def __init__(self, *, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")
