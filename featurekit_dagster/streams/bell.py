"""How threads of one process learn at once that a push log has grown; other processes look again and again."""

from __future__ import annotations

import os
import threading
from pathlib import Path


class Bell:
    """Rings for whoever waits; each ring is heard once by every listener that counts them."""

    def __init__(self) -> None:
        self._rung = threading.Condition()
        self.count = 0

    def ring(self) -> None:
        """Wake those who wait."""
        with self._rung:
            self.count += 1
            self._rung.notify_all()

    def wait(self, heard: int, seconds: float) -> bool:
        """Wait until there were more rings than `heard`, but no longer than so many seconds; tell whether there were.

        Args:
            heard: What `count` was before the look that found nothing.
            seconds: How long to wait.
        """
        with self._rung:
            return self._rung.wait_for(lambda: self.count > heard, seconds)


_bells: dict[tuple[int, str], Bell] = {}


def bell_of(path: Path) -> Bell:
    """Return the bell of a file in this process; a forked one has its own, as a lock may be held while it forks."""
    return _bells.setdefault((os.getpid(), os.path.realpath(path)), Bell())
