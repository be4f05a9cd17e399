"""Feature tables of a workspace, as people use them: `ingest`, and every read of a feature view."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from featurekit_dagster.execution.table_ingest import PATIENCE, finish_ingests, ingest_rows, refill_table
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.materialization_data import MaterializationJobData


class FeatureTableHandle(FeatureViewHandle):
    """A feature table of a workspace; see `FeatureViewHandle` for the reads and jobs."""

    def __repr__(self) -> str:
        return f"<feature table {self.name!r} of workspace {self.workspace!r}>"

    def ingest(self, df: Any, *, wait: timedelta = PATIENCE) -> MaterializationJobData:
        """Put rows into the table, all of them or none, and return the job of the kind INGEST, which has succeeded.

        Offline a row takes the place of the one with the same join keys and time. Online it takes the place of one that
        is not newer. The same rows may be ingested again; of rows with equal keys and time the last one counts.

        Args:
            df: pandas, polars or Arrow frame with exactly the declared columns: join keys, timestamp and features, in
                any order. Values are not converted but where nothing is lost; times without a zone are UTC.
            wait: How long to wait for another process that ingests.

        Raises:
            RowsRefused: The rows do not fit; all faults are listed.
            NotAFeatureTable: It keeps no rows (`online` and `offline` are both False).
            KeyTooLong: A join key is longer than the online store takes.
            ChangedDeclaration: The table was changed since rows were ingested, so that a person has to decide.
            LeaseHeld: Another process ingests, or maintains the table, for longer than `wait`.
        """
        return self._shown(ingest_rows(self.declaration, df, self._workspace.stores, wait=wait))

    def finish_ingests(self) -> list[MaterializationJobData]:
        """Bring online what interrupted ingests have left offline only, and return their jobs.

        The next ingest does it too. An ingest that was interrupted before its rows were offline is a FAILURE; its
        caller ingests them again.

        Raises:
            ChangedDeclaration: As for `ingest`.
            LeaseHeld: As for `ingest`.
        """
        return [self._shown(job) for job in finish_ingests(self.declaration, self._workspace.stores)]

    def refill_online(self) -> list[MaterializationJobData]:
        """Bring online what is offline only, as after the online store was emptied; return the jobs, which have ended.

        The next ingest does it, too.

        Raises:
            NothingToRefillFrom: The table does not write both stores.
            ChangedDeclaration: As for `ingest`.
            LeaseHeld: As for `ingest`.
        """
        return [self._shown(job) for job in refill_table(self.declaration, self._workspace.stores)]
