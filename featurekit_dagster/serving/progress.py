"""A progress bar for reads that take long, where a person is watching."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

DELAY_SECONDS = 2.0


@contextmanager
def shown_progress(what: str, steps: int) -> Iterator[Callable[[], None]]:
    """Show how far a piece of work is once it takes over two seconds; nothing is left of it when the work is done.

    It is written to stderr, and only where that is a terminal or a notebook.

    Args:
        what: A few words on the work.
        steps: How many times the yielded function will be called; with one step only the time is shown.
    """
    if not is_watched():
        yield lambda: None
        return
    bar = _LateBar(what, steps)
    try:
        yield bar.advance
    finally:
        bar.close()


def is_watched() -> bool:
    """Tell whether stderr is shown to a person: a terminal, or the cell of a notebook."""
    return "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())


class _LateBar:
    """A bar that a timer opens; work that is done earlier never opens it."""

    def __init__(self, what: str, steps: int) -> None:
        self._what, self._steps, self._done = what, steps, 0
        self._lock = threading.Lock()
        self._closed = False
        self._bar: Progress | None = None
        self._timer = threading.Timer(DELAY_SECONDS, self._open)
        self._timer.daemon = True
        self._timer.start()

    def _open(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - most reads never show it
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with self._lock:
            if self._closed:
                return
            # rich's own form for notebooks needs another package; its terminal form is shown there as well
            console = Console(stderr=True, force_terminal=True, force_jupyter=False)
            self._bar = Progress(*columns, console=console, transient=True)
            self._bar.add_task(self._what, total=self._steps if self._steps > 1 else None, completed=self._done)
            self._bar.start()

    def advance(self) -> None:
        """Say that one more step is done."""
        with self._lock:
            self._done += 1
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self._done)

    def close(self) -> None:
        """Take the bar away; it does not open any more."""
        self._timer.cancel()
        with self._lock:
            self._closed = True
            if self._bar is not None:
                self._bar.stop()
