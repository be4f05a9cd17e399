"""What import-linter (make check) cannot say: private names, the standard library, and what loads when."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.python_files import (
    ROOT,
    PythonFile,
    own_files,
    package_files,
)

PURE = (
    "featurekit_dagster.domain",
    "featurekit_dagster.planning",
    "featurekit_dagster.intervals",
    "featurekit_dagster.errors",
)
DAGSTER = {"dagster", "dagster_shared", "dagster_graphql", "dagster_webserver", "dagster_dg_core", "dagster_dg_cli"}


def _is_private(name: str) -> bool:
    return any(part.startswith("_") and not part.startswith("__") for part in name.split("."))


def _is_pure(file: PythonFile) -> bool:
    return any(file.module == name or file.module.startswith(f"{name}.") for name in PURE)


def test_nothing_private_of_dagster_is_imported() -> None:
    private = [
        f"{file.name}:{each.line}: {each.name}"
        for file in own_files()
        for each in file.imports
        if each.name.split(".")[0] in DAGSTER and _is_private(each.name)
    ]
    assert not private, "use public names only:\n" + "\n".join(private)


def test_only_orchestration_imports_dagster() -> None:
    elsewhere = [
        f"{file.name}:{each.line}: {each.name}"
        for file in package_files()
        if not file.module.startswith("featurekit_dagster.orchestration")
        for each in file.imports
        if each.at_run_time and each.name.split(".")[0] in DAGSTER
    ]
    assert not elsewhere, "\n".join(elsewhere)


def test_declarations_and_plans_import_the_standard_library_only() -> None:
    allowed = sys.stdlib_module_names | {"featurekit_dagster"}
    foreign = [
        f"{file.name}:{each.line}: {each.name}"
        for file in package_files()
        if _is_pure(file)
        for each in file.imports
        if each.name.split(".")[0] not in allowed
    ]
    assert not foreign, "\n".join(foreign)


def test_engine_and_stores_do_not_import_each_other() -> None:
    crossed = [
        f"{file.name}:{each.line}: {each.name}"
        for file in package_files()
        for own, other in (("engine", "stores"), ("stores", "engine"))
        if file.module.startswith(f"featurekit_dagster.{own}")
        for each in file.imports
        if each.name.startswith(f"featurekit_dagster.{other}")
    ]
    assert not crossed, "\n".join(crossed)


ENTRANCES = ["featurekit_dagster", "featurekit_dagster.sdk", "featurekit_dagster.cli"]


@pytest.mark.parametrize("module", ENTRANCES)
def test_importing_a_public_entrance_does_not_load_dagster(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(name for name in sys.modules if name.split('.')[0] in {DAGSTER!r}))"
    answer = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert answer.stdout.split() == []
