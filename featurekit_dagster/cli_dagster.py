"""What the command line starts in Dagster's own programs and in the example: the UI, the demo."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from featurekit_dagster.errors import TectonValidationError, Unsupported

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEMO = "examples.flights.demo"

_HOST_OPTIONS = ("-h", "--host", "--dagit-host", "--grpc-host")


@dataclass(frozen=True, slots=True, kw_only=True)
class DevCommand:
    """How `dagster dev` is started.

    Args:
        arguments: The whole command line.
        folder: Where it runs.
        dagster_home: Where Dagster keeps its own record.
    """

    arguments: tuple[str, ...]
    folder: Path
    dagster_home: Path

    def become(self) -> NoReturn:
        """Replace this process by it."""
        os.environ["DAGSTER_HOME"] = str(self.dagster_home)
        os.chdir(self.folder)
        sys.stdout.flush()
        os.execv(self.arguments[0], self.arguments)


def dev_command(workspace: Workspace, arguments: Sequence[str]) -> DevCommand:
    """Return the `dagster dev` of the project of the working directory; its settings are put where it looks for them.

    Args:
        workspace: Below its home Dagster keeps its own record, unless `DAGSTER_HOME` says where.
        arguments: Further options of `dagster dev`.

    Raises:
        BadParameter: An option would open the UI, which has no login, to other machines.
        TectonValidationError: There is no workspace.yaml in the working directory or above it.
    """
    refuse_other_hosts(arguments)
    file = find_upwards("workspace.yaml")
    if file is None:
        raise TectonValidationError(
            f"there is no workspace.yaml in {Path.cwd()} or above it; write one that names the file of the definitions"
        )
    from featurekit_dagster.orchestration.run import dagster_home

    # the last --host counts, so nothing that is passed on opens the UI to others
    last = ("--host", LOOPBACK[0])
    command = (sys.executable, "-m", "dagster", "dev", "--workspace", str(file), *arguments, *last)
    return DevCommand(arguments=command, folder=file.parent, dagster_home=dagster_home(workspace).resolve())


def refuse_other_hosts(arguments: Sequence[str]) -> None:
    """Raise BadParameter when an option names a host other than this one."""
    for position, argument in enumerate(arguments):
        option, sign, value = argument.partition("=")
        if option not in _HOST_OPTIONS:
            if not argument.startswith("-h") or argument.startswith("--"):
                continue
            value = argument.removeprefix("-h")
        elif not sign:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        if value not in LOOPBACK:
            raise typer.BadParameter(
                f"{option} {value!r}: the UI has no login and is opened on this machine only ({', '.join(LOOPBACK)}); "
                "put a proxy that asks for one in front of it"
            )


def run_demo() -> int:
    """Run the flights example and return its exit code.

    Raises:
        Unsupported: The example, or a package that it needs, is not there.
    """
    file = find_upwards(f"{DEMO.replace('.', '/')}.py")
    if file is not None and str(file.parents[2]) not in sys.path:
        sys.path.insert(0, str(file.parents[2]))
    try:
        demo = importlib.import_module(DEMO)
    except ModuleNotFoundError as error:
        if error.name and DEMO.startswith(error.name):
            raise Unsupported(
                "the example is not installed with the package: it comes with the repository; "
                "run featurekit demo (or make demo) in a clone of it"
            ) from None
        raise Unsupported(
            f"the example needs {error.name}, which is not installed; install featurekit_dagster[demo]"
        ) from None
    return int(demo.main() or 0)


def find_upwards(name: str) -> Path | None:
    """Return the file of this name in the working directory or the nearest one above it."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / name).is_file():
            return folder / name
    return None
