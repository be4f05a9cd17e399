"""How long an online store on a server may be out of reach before a call gives up: a restart is nothing to tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

from featurekit_dagster.errors import OnlineStoreUnavailable

_T = TypeVar("_T")

_PATIENCE_SECONDS = 10.0
_LONGEST_WAIT_SECONDS = 1.0


def patiently(call: Callable[[], _T], *, away: tuple[type[Exception], ...], place: str) -> _T:
    """Make a call again, after a growing and random wait, while the server is out of reach.

    Args:
        call: May be made again whatever became of it.
        away: What it raises when the server cannot be reached.
        place: Where the server is, for messages.

    Raises:
        OnlineStoreUnavailable: The server has not answered for too long.
    """
    try:
        return call()  # most calls are answered, and the rest is not for nothing
    except away:
        pass
    retrying = Retrying(
        stop=stop_after_delay(_PATIENCE_SECONDS),
        wait=wait_random_exponential(multiplier=0.05, max=_LONGEST_WAIT_SECONDS),
        retry=retry_if_exception_type(away),
        reraise=True,
    )
    try:
        return retrying(call)
    except away as error:
        raise OnlineStoreUnavailable(place=place, reason=type(error).__name__) from error
