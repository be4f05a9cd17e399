"""Processes that a test starts to be killed: each is forked from a server that has imported what they need.

To start an interpreter and to import takes longer than what most of them do before they die.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

CONTEXT = get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        f"tests.support.{name}"
        for name in ("killed_consumer", "killed_deletion", "killed_run", "maintained_table", "random_writers")
    ]
)
PATIENCE_SECONDS = 600


class Ended(NamedTuple):
    """How a process ended: its exit code, negative for a signal, and all that it printed."""

    code: int | None
    said: str


def run_forked(folder: Path, target: Callable[..., object], *arguments: object) -> Ended:
    """Call a function of a module in a process of its own, and wait until it has ended.

    Args:
        folder: What it prints is kept there, in the file `said`.
        target: The function.
        arguments: For the function.
    """
    process = CONTEXT.Process(target=_call, args=(folder / "said", target, arguments))
    process.start()
    process.join(PATIENCE_SECONDS)
    if process.exitcode is None:
        process.kill()
        process.join()
    return Ended(process.exitcode, (folder / "said").read_text())


def _call(said: Path, target: Callable[..., object], arguments: tuple[object, ...]) -> None:
    with said.open("wb") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    target(*arguments)
