"""Reads that have no answer."""

from __future__ import annotations

from featurekit_dagster.errors.base import FeatureKitError, TectonValidationError
from featurekit_dagster.intervals import IntervalSet


class NotMaterialized(FeatureKitError):
    """A read needs intervals that were never materialized.

    Args:
        view: The feature view.
        missing: What is not covered.
        rows: Number of spine rows that need it (0 when the read has no spine).
        computable: Whether the view can be computed from its source instead.
    """

    def __init__(self, *, view: str, missing: IntervalSet, rows: int = 0, computable: bool = True) -> None:
        self.view, self.missing, self.rows = view, missing, rows
        needs = {0: "the read needs", 1: "1 spine row needs"}.get(rows, f"{rows:,} spine rows need")
        shown = ", ".join(str(i) for i in missing.intervals[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        ways = ["materialize it"]
        ways += ["pass allow_gaps=True to get NULL for the rows concerned"] if rows else []
        ways += ["pass from_source=True to compute it"] if computable else []
        super().__init__(f"{view}: {needs} {shown}{more}, which is not materialized offline; {', or '.join(ways)}")


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


class SpineError(TectonValidationError):
    """A spine lacks a column, or a column cannot be used as it is."""


class ReadError(TectonValidationError):
    """A read was asked for in a way that has no answer."""
