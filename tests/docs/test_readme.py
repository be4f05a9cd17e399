"""What the README shows is what happens: its outputs come from its commands and snippets."""

from __future__ import annotations

import ast
import doctest
import inspect
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from featurekit_dagster import batch_feature_view, stream_feature_view
from featurekit_dagster.cli import app
from featurekit_dagster.domain.aggregation import FUNCTION_NAMES, PARAMETERIZED
from featurekit_dagster.handles import FeatureViewHandle
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.service_handles import FeatureServiceHandle
from featurekit_dagster.serving.vector import FeatureStatus
from tests.conftest import ROOT
from tests.docs.pages import SEPARATOR, Block, JobIds, blocks, run_featurekit, run_program, run_python, run_shown

README = blocks(ROOT / "README.md")
# Materializes the example without Dagster, which is much quicker than `make demo` and stores the same.
MATERIALIZE = """
from featurekit_dagster import get_workspace
from featurekit_dagster.execution.materialize import run_tasks

workspace = get_workspace("dev")
for plan in workspace.plan():
    for run in plan.runs:
        list(run_tasks(workspace.repo.view(plan.view), run.tasks, workspace.stores, trigger="backfill"))
"""


def same(shown: str, printed: str) -> bool:
    """Tell whether a shown text is what was printed; three dots stand for anything, and columns may be wider."""
    return doctest.OutputChecker().check_output(narrowed(shown), narrowed(printed), doctest.ELLIPSIS)


def narrowed(text: str) -> str:
    """Return a text with one space between columns: a time of ten seconds is wider than one of nine."""
    return re.sub("─+", "─", re.sub(r"(?<=\S) {2,}", "  ", text))


def files() -> dict[str, str]:
    """The files of a project of one's own."""
    return {block.file_name: block.text for block in README if block.file_name is not None}


def commands(*, of_own_project: bool) -> list[tuple[str, str]]:
    """The commands with the outputs shown under them, of the tour or of what follows the first file."""
    first_file = next(number for number, block in enumerate(README) if block.file_name is not None)
    part = README[first_file:] if of_own_project else README[:first_file]
    return [pair for block in part if block.kind == "console" for pair in block.commands]


def snippets() -> list[tuple[str, str]]:
    """The Python blocks that are no files, each with the output shown under it."""
    pairs = zip(README, [*README[1:], Block("", "")], strict=True)
    return [
        (block.text, following.text if following.kind == "text" else "")
        for block, following in pairs
        if block.kind == "python" and block.file_name is None
    ]


def test_the_two_commands_come_first() -> None:
    lines = README[0].text.splitlines()
    assert [line.split("#")[0].split() for line in lines] == [["make", "demo"], ["make", "test"]]


@pytest.mark.early
def test_the_tour_prints_what_the_page_shows(tmp_path: Path) -> None:
    environment = {"FEATUREKIT_HOME": str(tmp_path)}
    run_python("import examples.flights.features", ROOT, environment)  # makes the example's data
    for command, shown in commands(of_own_project=False):
        if command == "make demo":
            run_python(MATERIALIZE, ROOT, environment)
        else:
            printed = run_shown(command, ROOT, environment)
            assert same(shown, printed), f"$ {command}\n{printed}"
    joined = f"\nprint({SEPARATOR!r})\n".join(code for code, _ in snippets())
    answers = run_python(joined, ROOT, environment).split(f"{SEPARATOR}\n")
    for (code, shown), printed in zip(snippets(), answers, strict=True):
        assert same(shown, printed), f"{code}\n{printed}"


@pytest.mark.early
def test_the_files_of_the_page_make_a_project(tmp_path: Path) -> None:
    for name, text in files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    run_python(files()["payments.py"], tmp_path, {})
    ids = JobIds()
    for command, shown in commands(of_own_project=True):
        printed = run_shown(ids.replaced(command), tmp_path, {})
        ids.learn(shown, printed)
        assert same(ids.replaced(shown), printed), f"$ {command}\n{printed}"
    loaded = run_python("from definitions import defs; print(defs.resolve_job_def('backfill').name)", tmp_path, {})
    assert loaded == "backfill\n"


def public_names() -> list[str]:
    """The names of `__init__.pyi`."""
    tree = ast.parse((ROOT / "featurekit_dagster" / "__init__.pyi").read_text(encoding="utf-8"))
    (value,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    return list(ast.literal_eval(value))


def not_documented(names: list[str]) -> list[str]:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "ARCHITECTURE.md"))
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", text)]


def test_every_public_name_is_documented() -> None:
    assert public_names()
    assert not_documented(public_names()) == []


def test_every_command_is_documented() -> None:
    root = typer.main.get_command(app)
    names = [f"featurekit {name}" for name in commands_below(root)]
    assert {"featurekit plan", "featurekit stream pause", "featurekit dataset verify"} <= set(names)
    assert not_documented(names) == []


def commands_below(group: Any) -> Iterator[str]:
    """Every command of a group, those of groups inside it with the name of theirs before them."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from (f"{name} {below}" for below in commands_below(command))
        else:
            yield name


def test_every_aggregation_function_is_documented() -> None:
    assert not_documented([*FUNCTION_NAMES, *(call.partition("(")[0] for call in PARAMETERIZED.values())]) == []


def test_every_window_is_documented_with_all_that_it_takes() -> None:
    from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow, TimeWindowSeries

    windows = (TimeWindow, TimeWindowSeries, LifetimeWindow)
    assert not_documented([field.name for window in windows for field in fields(window)]) == []


def test_every_argument_of_a_declaration_is_documented() -> None:
    said = {*inspect.signature(batch_feature_view).parameters, *inspect.signature(stream_feature_view).parameters}
    for_people = {"other", "arguments", "name", "description", "owner", "tags", "context_parameter_name"}
    assert not_documented(sorted(said - for_people)) == []


def test_every_method_of_a_view_and_of_a_service_is_documented() -> None:
    simple = {"get_feature_columns", "get_timestamp_field"}
    methods = {
        name
        for handle in (FeatureViewHandle, FeatureServiceHandle)
        for name, _ in inspect.getmembers(handle, inspect.isfunction)
        if not name.startswith("_")
    }
    assert "trigger_materialization_job" in methods
    assert not_documented(sorted(methods - simple)) == []


def test_every_setting_from_the_environment_is_documented() -> None:
    texts = [file.read_text(encoding="utf-8") for file in (ROOT / "featurekit_dagster").rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"FEATUREKIT_[A-Z_]+", text)}
    assert "FEATUREKIT_MEMORY" in names
    assert not_documented(sorted(names)) == []


def test_every_benchmark_is_listed() -> None:
    scripts = {file for file in (ROOT / "benchmarks").glob("*.py") if "__main__" in file.read_text(encoding="utf-8")}
    assert not_documented(sorted(f"benchmarks/{file.name}" for file in scripts)) == []


def test_every_status_of_a_feature_is_documented() -> None:
    assert not_documented([status.value for status in FeatureStatus]) == []


def test_every_kind_trigger_and_state_of_a_job_is_documented() -> None:
    from featurekit_dagster.orchestration import materializations, translator

    triggers = [getattr(materializations, name) for name in ("SCHEDULE", "BACKFILL", "MANUAL", "ADOPTED")]
    tags = [translator.KIND, translator.VIEW, translator.TRIGGER, translator.JOB_BATCH]
    assert not_documented([translator.BATCH, *tags]) == []
    assert not_documented([*triggers, *(state.value for state in JobState)]) == []


def test_every_job_and_check_is_documented() -> None:
    golden = (ROOT / "tests" / "golden" / "definitions.txt").read_text(encoding="utf-8").splitlines()
    jobs = {line.split()[1] for line in golden if line.startswith("job ")}
    checks = {line.split(":")[1] for line in golden if line.startswith("check ")}
    assert jobs
    assert checks
    of_no_view = [name for name in jobs if not name.startswith(("materialize_", "stream_"))]
    assert not_documented(["materialize_VIEW", "stream_VIEW", *of_no_view, *checks]) == []


def test_every_sensor_is_documented() -> None:
    from definitions import defs

    sensors = [re.sub("^supervise_.*", "supervise_VIEW", sensor.name) for sensor in defs.sensors or ()]
    assert sensors
    assert not_documented(sensors) == []


@pytest.mark.parametrize("page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_page_names_a_place_on_one_machine(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w.~>-])/(?:home|root|tmp|usr|var|work)/\S*", text) == []


@pytest.mark.slow
@pytest.mark.parametrize("program", ["dg launch", "dagster asset", "dagster job execute"])
def test_the_commands_of_dagster_materialize(program: str, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^\| `({program} .+?)` \|", text, re.MULTILINE)
    (tmp_path / "range.yaml").write_text(files()["range.yaml"], encoding="utf-8")
    first, last = "2013-12-30T00:00Z", "2013-12-31T00:00Z"
    command = found.replace("VIEW", "origin_weather").replace("A...B", f"{first}...{last}")
    name, *arguments = shlex.split(command.replace("range.yaml", str(tmp_path / "range.yaml")))
    environment = {"FEATUREKIT_HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path / "dagster")}
    (tmp_path / "dagster").mkdir()
    (tmp_path / "dagster" / "dagster.yaml").write_text((ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    run_program(Path(sys.executable).with_name(name), arguments, ROOT, environment)
    status = run_featurekit(["status", "origin_weather", "--json"], ROOT, environment)
    assert '"2013-12-30T00:00Z"' in status, status
