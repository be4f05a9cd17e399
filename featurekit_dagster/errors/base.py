"""What all errors share."""

from __future__ import annotations

from collections.abc import Sequence


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
        super().__init__(f"no {kind} named {name!r}; there is {', '.join(sorted(known)) or 'none'}")


def safe_reason(error: BaseException) -> str:
    """Return what may be logged about an error: a message of ours, else its kind, as others may quote values."""
    if isinstance(error, FeatureKitError):
        return str(error)
    return f"{type(error).__name__} (its text stays with the caller)"
