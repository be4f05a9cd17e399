"""What all errors share."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

_NAMES_SHOWN, _ALIKE = 20, 0.75


class FeatureKitError(Exception):
    """Base of all errors of this package."""

    retryable = False


class TectonValidationError(FeatureKitError, ValueError):
    """User input was refused (the seeds' name for it)."""


class NotFoundError(TectonValidationError):
    """A name is not known where it was looked up.

    Args:
        kind: What was looked up (`feature view`, `workspace`, ...).
        name: The name that was asked for.
        known: The names that exist.
    """

    def __init__(self, *, kind: str, name: str, known: Sequence[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        like = difflib.get_close_matches(name, self.known, n=1, cutoff=_ALIKE)
        shown = sorted(self.known)[:_NAMES_SHOWN]
        more = len(self.known) - len(shown)
        names = ", ".join(shown) + (f" and {more:,} more" if more else "")
        there = f"there {'is' if len(self.known) < 2 else 'are'} {names or 'none'}"  # noqa: PLR2004 - grammar
        super().__init__(f"no {kind} named {name!r}; {there}" + (f"; did you mean {like[0]!r}?" if like else ""))


def safe_reason(error: BaseException) -> str:
    """Return what may be logged about an error: a message of ours, else its kind, as others may quote values."""
    if isinstance(error, FeatureKitError):
        return str(error)
    return f"{type(error).__name__} (its text stays with the caller)"
