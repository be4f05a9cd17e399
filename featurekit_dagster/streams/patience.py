"""How long a stream may be out of reach before its reader gives up: a restarted server is nothing to tell."""

from __future__ import annotations

import time

from featurekit_dagster.errors import StreamUnavailable


class Patience:
    """Counts how long a stream has been out of reach.

    Args:
        source: Name of the source.
        seconds: How long is too long.
    """

    def __init__(self, source: str, seconds: float = 60.0) -> None:
        self._source, self._seconds = source, seconds
        self._since: float | None = None

    def reached(self) -> None:
        """Take note that the stream answered."""
        self._since = None

    def failed(self, error: Exception, wait_seconds: float) -> None:
        """Take note that it did not, and wait before it is tried again.

        Raises:
            StreamUnavailable: It has not answered for too long.
        """
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since > self._seconds:
            reason = f"it has not answered for {self._seconds:.0f} s ({type(error).__name__})"
            raise StreamUnavailable(source=self._source, reason=reason) from error
        time.sleep(wait_seconds)
