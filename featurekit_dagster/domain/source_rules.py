"""Rules that the configurations of sources share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from featurekit_dagster.domain.windows import size_fault
from featurekit_dagster.domain.wording import described, text_fault
from featurekit_dagster.errors import DeclarationError


def required_text_faults(name: str, value: object, what: str) -> list[str]:
    """Return the fault of a text that must say `what`, if it has one."""
    if not isinstance(value, str):
        return [f"{name} is {described(value)}; give {what} as text"]
    return [] if value.strip() else [f"{name} is empty; give {what}"]


def time_faults(timestamp_field: object, data_delay: object) -> list[str]:
    """Return the faults of a source's event time column and of its delay."""
    fault = None if timestamp_field is None else text_fault("timestamp_field", timestamp_field)
    return [*([fault] if fault else []), *delay_faults(data_delay)]


def delay_faults(delay: object) -> list[str]:
    """Return the faults of a data delay: negative, too fine, too long, or no duration."""
    if not isinstance(delay, timedelta):
        return [f"data_delay is {described(delay)}; give a timedelta"]
    if delay < timedelta(0):
        return [f"data_delay {delay} is negative; data cannot be complete before its interval ends, give zero or more"]
    fault = size_fault("data_delay", delay)
    return [fault] if fault else []


def raise_faults(subject: str, faults: Sequence[str]) -> None:
    """Raise all faults of one object together, if there are any.

    Raises:
        DeclarationError: There are faults.
    """
    if faults:
        raise DeclarationError(subject=subject, faults=faults)
