"""`featurekit plan` and `apply` when declarations have changed: what they say, ask, refuse and do."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from featurekit_dagster import Field, Int64, Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.planning.generations import GenerationState, StoredShape
from tests.conftest import ROOT
from tests.unit.changed_shop import WHOLE, changed_shop, double_spend, fill
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, NOW, shop_workspace, write_purchases

GOLDEN = ROOT / "tests" / "golden" / "cli"
DOUBLED: dict[str, dict[str, Any]] = {"spend": {"function": double_spend}}
EVERYTHING = "user_most_recent_purchase_with_everything"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a shop: two views materialized, and a third with a replaced generation."""
    folder = tmp_path_factory.mktemp("filled")
    write_purchases(folder / "purchases.parquet")
    workspace = shop_workspace(folder)
    for name in ("spend", "last_purchase"):
        fill(workspace, name)
    ledger, shape = workspace.stores.ledger, workspace.shapes()[EVERYTHING]
    ledger.open_generation("shop", EVERYTHING, shape)
    assert ledger.rebuild("shop", EVERYTHING, shape) == 2
    workspace.stores.online.close()
    return folder


@pytest.fixture
def folder(filled: Path, tmp_path: Path) -> Path:
    """A copy of it, of the test's own."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return tmp_path


def bound(folder: Path, monkeypatch: pytest.MonkeyPatch, *given: Any, **more: Any) -> Workspace:
    return bind(changed_shop(folder, *given, **more), folder, monkeypatch)


def refused(*arguments: str, exit_code: int = 1) -> str:
    """Return what a refused command says."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result.stderr.strip()


def states(workspace: Workspace, view: str) -> list[str]:
    return [record.state.value for record in workspace.stores.ledger.generations("shop", view)]


def test_rebuild_into_too_many_partitions_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bound(folder, monkeypatch, {"last_purchase": {"batch_schedule": timedelta(seconds=5)}})
    said = refused("apply", "last_purchase", "--rebuild", "--yes")
    assert said.startswith("error: last_purchase: batch_schedule 5s makes 172,800 partitions; Dagster gets slow above")
    assert states(workspace, "last_purchase") == ["CURRENT"]


@pytest.mark.parametrize("width", [80, 140])
def test_plan_text_of_what_has_changed_at_both_widths(
    folder: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    bound(folder, monkeypatch, DOUBLED, without=("last_purchase",))
    text = output("plan", width=width, exit_code=3)
    golden = GOLDEN / f"plan_changed_{width}.txt"
    assert text == golden.read_text(), f"write it to {golden.relative_to(ROOT)} if it is right:\n{text}"
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("width", [80, 140])
def test_apply_text_at_both_widths(folder: Path, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    bound(folder, monkeypatch, DOUBLED, without=("last_purchase",), now=NOW + DAY / 2)
    text = output("apply", "--rebuild", "--yes", width=width)
    golden = GOLDEN / f"apply_{width}.txt"
    assert text == golden.read_text(), f"write it to {golden.relative_to(ROOT)} if it is right:\n{text}"
    assert max(map(len, text.splitlines())) <= width


def test_plan_json_has_what_changed_what_it_takes_and_what_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound(folder, monkeypatch, DOUBLED, without=("last_purchase",))
    plans = {plan["view"]: plan for plan in json.loads(output("plan", "--json", exit_code=3))}
    spend, everything, last = plans["spend"], plans[EVERYTHING], plans["last_purchase"]
    whole = [{"start_time": "2024-01-01T00:00Z", "end_time": "2024-01-11T00:00Z"}]
    both = {"offline": whole, "online": whole}
    assert spend["changes"] == [{"what": "transformation", "text": "the transformation's code", "keepable": True}]
    assert (spend["needs_decision"], spend["runs"]) == (True, [])
    assert spend["stored"] == {"generation": 1, "rows": 20, "covered": both}
    assert spend["rebuild"] == {"partitions": 10, "jobs": 1, "queries": 1, "runs": 1, "generation": 2}
    assert (last["removed"], last["stored"]) == (True, {"generations": [1], "rows": 20, "covered": both})
    assert everything["retired"] == [{"generation": 1, "rows": None, "removable_at": "2024-01-11T01:00Z"}]
    assert (everything["generation"], everything["needs_decision"], everything["removed"]) == (2, False, False)


@pytest.mark.parametrize(
    ("changes", "without", "exit_code"),
    [
        ({}, (), 0),
        (DOUBLED, (), 3),
        ({}, ("last_purchase",), 3),
        ({}, (EVERYTHING,), 0),
        ({"spend": {"description": "d", "feature_start_time": FIRST_DAY + 4 * DAY}}, (), 0),
    ],
    ids=["nothing", "code", "removed with data", "removed without data", "start and description"],
)
def test_plan_ends_with_3_when_something_stored_is_at_stake(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, dict[str, Any]],
    without: tuple[str, ...],
    exit_code: int,
) -> None:
    bound(folder, monkeypatch, changes, without=without)
    output("plan", exit_code=exit_code)
    output("plan", EVERYTHING if EVERYTHING not in without else "spend", exit_code=0)


def test_a_changed_view_needs_a_decision_and_without_one_nothing_is_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = bound(folder, monkeypatch, DOUBLED, without=("last_purchase",))
    said = refused("apply", "--yes", exit_code=3)
    assert said == (
        "error: spend changed, and somebody has to decide what becomes of the stored rows; give --rebuild or --keep. "
        "Nothing was done."
    )
    assert states(workspace, "spend") == ["CURRENT"]
    assert workspace.stores.offline.row_count("last_purchase") == 20


def test_a_removal_needs_no_decision_and_is_one_job(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bound(folder, monkeypatch, {}, without=("last_purchase",))
    applied = json.loads(output("apply", "last_purchase", "--yes", "--json"))
    (done,) = applied["done"]
    assert applied["plan"] == []
    (job,) = workspace.stores.ledger.jobs("shop", "last_purchase", limit=1)
    assert (done["action"], done["job_ids"]) == ("remove", [job.id])
    assert (job.kind, job.state, job.stats) == ("DELETION", "SUCCESS", {"rows_removed": 20})
    assert workspace.stores.offline.row_count("last_purchase") is None
    assert output("plan", EVERYTHING, "spend")
    assert "There was nothing to apply." in output("apply", "spend")
    assert "no feature view named 'last_purchase'" in refused("apply", "last_purchase")


def test_kept_rows_stand_and_nothing_has_to_be_done(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bound(folder, monkeypatch, DOUBLED)
    assert "generation 1 stands as it is, under the changed declaration" in output("apply", "--keep", "--yes")
    assert states(workspace, "spend") == ["CURRENT"]
    (plan,) = json.loads(output("plan", "spend", "--json"))
    assert (plan["changes"], plan["runs"]) == ([], [])


def test_rows_of_intervals_that_another_schedule_covers_in_part_are_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(folder, monkeypatch, {"spend": {"batch_schedule": 2 * DAY}})
    output("apply", "spend", "--keep", "--yes")
    (plan,) = json.loads(output("plan", "spend", "--json"))
    # the grid of two days begins on 31 December, of which nothing is stored
    assert plan["runs"][0]["interval"] == {"start_time": "2023-12-31T00:00Z", "end_time": "2024-01-02T00:00Z"}
    assert plan["replaces"] == {"rows": 2}
    said = " ".join(output("plan", "spend").split())
    assert "; replaces 2 offline rows of intervals that are covered in part" in said


def test_what_changed_without_a_decision_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"spend": {"feature_start_time": FIRST_DAY + 5 * DAY, "online": False}}
    bound(folder, monkeypatch, changes)
    said = output("plan", "spend")
    news = "spend: materialization start 2024-01-01T00:00Z -> 2024-01-03T00:00Z; no longer online"
    assert f"Changed, without anything to decide {news} " in " ".join(said.split())


def test_rows_that_lack_columns_cannot_be_kept_and_the_columns_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = bound(
        folder, monkeypatch, {"spend": {"join_keys": (Field("shop_id", Int64),), "function": double_spend}}
    )
    assert refused("apply", "spend", "--keep", "--yes") == (
        "error: spend: stored rows cannot follow what was changed (join keys user_id: Int64 -> shop_id: Int64), "
        "whatever their values; `featurekit apply spend --rebuild` builds them anew beside the old ones"
    )
    assert "--keep is not possible (join keys user_id: Int64 -> shop_id: Int64)" in " ".join(
        output("plan", "spend", exit_code=3).split()
    )
    assert states(workspace, "spend") == ["CURRENT"]


def test_a_rebuild_is_begun_beside_what_reads_answer_from(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bound(folder, monkeypatch, DOUBLED)
    said = " ".join(output("apply", "spend", "--rebuild", "--yes").split())
    assert "generation 2 is begun; reads answer from generation 1 until it covers as much" in said
    assert "rebuild as generation 2 (0 of 10 intervals done)" in said
    assert said.endswith("Run featurekit materialize to do it.")
    assert states(workspace, "spend") == [GenerationState.CURRENT, GenerationState.BUILDING]
    before = workspace.get_feature_view("spend").get_online_features({"user_id": 7}).to_dict()["sum_1d"]
    fill(workspace, "spend")
    workspace = bound(folder, monkeypatch, DOUBLED)
    assert workspace.get_feature_view("spend").get_online_features({"user_id": 7}).to_dict()["sum_1d"] == 2 * before
    assert states(workspace, "spend") == [GenerationState.RETIRED, GenerationState.CURRENT]


def test_a_view_that_changes_again_while_it_is_rebuilt_is_rebuilt_from_what_reads_answer_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound(folder, monkeypatch, DOUBLED)
    output("apply", "spend", "--rebuild", "--yes")
    workspace = bound(folder, monkeypatch, {"spend": {"function": double_spend, "mode": "pandas"}})
    (plan,) = json.loads(output("plan", "spend", "--json", exit_code=3))
    assert (plan["stored"]["generation"], plan["stored"]["rows"]) == (1, 20)
    assert plan["rebuild"] == {"partitions": 10, "jobs": 1, "queries": 1, "runs": 1, "generation": 3}
    output("apply", "spend", "--rebuild", "--yes")
    assert states(workspace, "spend") == ["CURRENT", "RETIRED", "BUILDING"]


def test_where_nobody_can_be_asked_yes_has_to_be_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bound(folder, monkeypatch, DOUBLED)
    for arguments in (["--rebuild"], ["--keep"], ["--rebuild", "--json"]):
        assert refused("apply", *arguments) == (
            "error: stored rows would be replaced or removed, and there is no terminal to ask at; say --yes. "
            "Nothing was done"
        )
    assert states(workspace, "spend") == ["CURRENT"]
    assert "give --rebuild or --keep, not both" in refused("apply", "--rebuild", "--keep", exit_code=2)


@pytest.mark.parametrize(("answer", "expected"), [("n", (1, ["CURRENT"])), ("y", (0, ["CURRENT", "BUILDING"]))])
def test_on_a_terminal_a_person_is_asked(folder: Path, answer: str, expected: tuple[int, list[str]]) -> None:
    (folder / "shop.py").write_text(
        "from pathlib import Path\nfrom tests.unit.changed_shop import changed_shop, double_spend\n"
        "workspace = changed_shop(Path('.'), {'spend': {'function': double_spend}})\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "FEATUREKIT_WORKSPACE": "shop:workspace", "PATH": os.defpath}
    script = "from featurekit_dagster.cli import app; app()"
    person, terminal = pty.openpty()
    command = [sys.executable, "-c", script, "apply", "spend", "--rebuild"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=terminal, stdout=subprocess.PIPE, text=True)
    os.close(terminal)
    os.write(person, f"{answer}\n".encode())
    said, _ = process.communicate(timeout=300)
    os.close(person)
    assert "Do it? [y/N]:" in said
    assert (process.returncode, states(shop_workspace(folder), "spend")) == expected
    assert ("Nothing was done." in said) == (answer == "n")


def test_a_replaced_generation_is_kept_for_an_hour_and_then_removed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = bound(folder, monkeypatch, {}, now=NOW + timedelta(minutes=59))
    said = output("apply", EVERYTHING)
    assert "featurekit apply removes it from 2024-01-11T01:00Z on" in " ".join(said.split())
    assert "There was nothing to apply." in said
    assert states(early, EVERYTHING) == ["RETIRED", "CURRENT"]
    late = bound(folder, monkeypatch, {}, now=NOW + timedelta(hours=1))
    assert "there is no terminal to ask at" in refused("apply", EVERYTHING)
    said = output("apply", EVERYTHING, "--yes")
    assert "removed generation 1, which nothing used any more" in " ".join(said.split())
    assert states(late, EVERYTHING) == ["CURRENT"]
    assert "There was nothing to apply." in output("apply", EVERYTHING)


def test_a_view_without_data_is_forgotten_and_its_name_is_free(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = bound(folder, monkeypatch, {}, without=(EVERYTHING,))
    output("apply", "--yes")
    ledger = workspace.stores.ledger
    assert ledger.generations("shop", EVERYTHING) == ()
    shape = StoredShape.of(shop_workspace(folder).repo.view(EVERYTHING))
    assert ledger.open_generation("shop", EVERYTHING, shape) == 1
    assert ledger.coverage("shop", "spend", "offline").covers(WHOLE)


def test_neither_plan_nor_keeping_loads_dagster(folder: Path) -> None:
    (folder / "shop.py").write_text(
        "from pathlib import Path\nfrom tests.unit.changed_shop import changed_shop, double_spend\n"
        "workspace = changed_shop(Path('.'), {'spend': {'function': double_spend}})\n"
    )
    script = """
import sys
from featurekit_dagster.cli import app
try:
    app(sys.argv[1:])
finally:
    print('dagster' in sys.modules, file=sys.stderr)
"""
    environment = {"PYTHONPATH": str(ROOT), "FEATUREKIT_WORKSPACE": "shop:workspace", "PATH": os.defpath}
    for arguments, code in ((["plan"], 3), (["apply", "--keep", "--yes"], 0)):
        command = [sys.executable, "-c", script, *arguments]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stderr.strip()) == (code, "False")
