"""What a feature table does not take."""

from __future__ import annotations

from collections.abc import Sequence

from featurekit_dagster.errors.base import TectonValidationError


class RowsRefused(TectonValidationError):
    """Rows cannot be ingested into a feature table; none of them was taken.

    Args:
        table: The feature table.
        faults: One clause per fault; never a value.
    """

    def __init__(self, *, table: str, faults: Sequence[str]) -> None:
        self.table, self.faults = table, tuple(faults)
        super().__init__(f"{table}: the rows are refused, none was ingested: " + "; ".join(faults))


class NotAFeatureTable(TectonValidationError):
    """A feature view was asked for what only a feature table can do, or the other way round.

    Args:
        name: The feature view or table.
        reason: Why not, and what to do.
    """

    def __init__(self, *, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")
