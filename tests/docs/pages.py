"""The fenced blocks of a Markdown page, and running them as a reader would."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from featurekit_dagster.cli_apply import NEEDS_DECISION
from tests.conftest import ROOT

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.\w+)\n")
COMMAND = re.compile(r"^\$ (.+)$", re.MULTILINE)
JOB_ID = re.compile(r"\b[0-9a-f]{8,32}\b")
SEPARATOR = "\x1e"
_FEATUREKIT = "from featurekit_dagster.cli import app; app()"


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Args:
        kind: What stands after the fence.
        text: What stands inside.
    """

    kind: str
    text: str

    @property
    def file_name(self) -> str | None:
        """The file that the block is, if its first line says so."""
        named = FILE.match(self.text)
        return named.group(1) if named else None

    @property
    def commands(self) -> list[tuple[str, str]]:
        """The commands of a console block, each with the output that is shown under it."""
        parts = COMMAND.split(self.text)[1:]
        return [(command, output.removeprefix("\n")) for command, output in zip(parts[::2], parts[1::2], strict=True)]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def run_python(code: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Return what a script prints, run in a folder."""
    return run_program(Path(sys.executable), ["-c", code], folder, environment)


def run_featurekit(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> str:
    """Return what a command of ours prints on a page of 80 columns, without spaces at the ends of lines."""
    narrow = {"COLUMNS": "80", **environment}
    output = run_program(
        Path(sys.executable), ["-c", _FEATUREKIT, *arguments], folder, narrow, codes=(0, NEEDS_DECISION)
    )
    return "".join(f"{line.rstrip()}\n" for line in output.splitlines())


def run_shown(command: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Return what a command of a page prints: one of ours, a script that Python runs, or files removed or edited."""
    program, *arguments = shlex.split(command)
    if program == "rm":
        found = [file for pattern in arguments for file in folder.glob(pattern)]
        assert found, command
        for file in found:
            file.unlink()
        return ""
    if program == "sed":
        path = shutil.which(program)
        assert path is not None
        return run_program(Path(path), arguments, folder, {})
    if program == "python":
        return run_program(Path(sys.executable), arguments, folder, environment)
    assert program == "featurekit", command
    return run_featurekit(arguments, folder, environment)


class JobIds:
    """The ids of jobs on a page, and what they are called where its commands are run."""

    def __init__(self) -> None:
        self._actual: dict[str, str] = {}

    def learn(self, shown: str, printed: str) -> None:
        """Take the ids of an output in the order in which they stand."""
        for ours, actual in zip(JOB_ID.findall(shown), JOB_ID.findall(printed), strict=False):
            self._actual.setdefault(ours[:8], actual[:8])
            self._actual.setdefault(ours, actual)

    def replaced(self, text: str) -> str:
        """Return a text of the page with the actual ids."""
        return JOB_ID.sub(lambda found: self._actual.get(found.group(), found.group()), text)


def run_program(
    program: Path, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], codes: Sequence[int] = (0,)
) -> str:
    """Return what a program prints, run in a folder with nothing of a user's settings; ending with one of the codes."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "DAGSTER_DISABLE_TELEMETRY") if name in os.environ}
    done = subprocess.run(
        [program, *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), **kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in codes, done.stderr
    return done.stdout
