"""`featurekit materialize`, `dev` and `demo`: what they start, what they say, how they end."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.cli_dagster import dev_command
from featurekit_dagster.cli_reports import ViewOutcome, print_outcomes
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.sdk import Workspace
from tests.unit.cli_runner import bind, in_subprocess, output
from tests.unit.cli_shop import DAY, FIRST_DAY, NOW, shop_workspace, write_purchases

LATEST = "user_most_recent_purchase_with_everything"
EVERYTHING = Interval(FIRST_DAY, NOW)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a source of its own, which the command line finds."""
    write_purchases(tmp_path / "purchases.parquet")
    return bind(shop_workspace(tmp_path), tmp_path, monkeypatch)


def covered(workspace: Workspace, view: str, store: str) -> IntervalSet:
    return workspace.stores.coverage(workspace.repo.view(view), store)


def refused(*arguments: str, exit_code: int) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert "Traceback" not in result.stderr
    return " ".join(result.stderr.split())


def test_materialize_does_what_the_plan_says_and_nothing_the_second_time(shop: Workspace) -> None:
    first = CliRunner().invoke(app, ["materialize"], env={"COLUMNS": "140"})
    assert first.exit_code == 0, first.output
    assert first.stderr.splitlines() == ["spend: 10 partitions done", f"{LATEST}: 10 partitions done"]
    assert "  spend: 10 partitions in 1 job\n" in first.stdout
    assert "  last_purchase: its jobs are triggered by hand (batch_trigger=MANUAL)\n" in first.stdout
    spend, latest, _, total = (line.split()[:-1] for line in first.stdout.splitlines()[-4:])
    assert (spend, latest) == (["spend", "10", "1", "0", "20"], [LATEST, "10", "10", "0", "20"])
    assert total == ["2", "feature", "views", "20", "11", "0", "40"]
    assert covered(shop, "spend", "online") == covered(shop, "spend", "offline") == IntervalSet([EVERYTHING])

    second = CliRunner().invoke(app, ["materialize"], env={"COLUMNS": "140"})
    assert (second.exit_code, second.stderr) == (0, "")
    assert "  spend: up to date to 2024-01-11T00:00Z\n" in second.stdout
    assert len(shop.stores.ledger.jobs("shop")) == 11


def test_a_failed_job_ends_with_exit_code_1_and_its_interval_while_the_others_are_done(shop: Workspace) -> None:
    (shop.home.parent / "broken").touch()
    asked = ("last_purchase", "--start", "2024-01-01", "--end", "2024-01-11")
    text = output("materialize", *asked, width=140, exit_code=1)
    assert "last_purchase          10     5       1    16" in text
    assert "  last_purchase [2024-01-05, 2024-01-07): 1 job: " in text
    assert "never shown" not in text
    assert text.endswith("No Dagster daemon is there to try again; run the same command once the cause is repaired.\n")
    holes = IntervalSet([EVERYTHING]).subtract(covered(shop, "last_purchase", "online"))
    assert holes == IntervalSet([Interval(FIRST_DAY + 4 * DAY, FIRST_DAY + 6 * DAY)])

    (shop.home.parent / "broken").unlink()
    again = ("last_purchase", "--start", "2024-01-05", "--end", "2024-01-07", "--json")
    (outcome,) = json.loads(output("materialize", *again))
    assert (outcome["success"], outcome["rows"], len(outcome["jobs"])) == (True, 4, 1)
    assert covered(shop, "last_purchase", "online") == IntervalSet([EVERYTHING])


def test_what_failed_before_and_waits_is_done_at_once_by_who_asks_for_it(shop: Workspace) -> None:
    ledger, asked = shop.stores.ledger, ("--start", "2024-01-03", "--end", "2024-01-05")
    (job,) = json.loads(output("materialize", "spend", *asked, "--no-wait", "--json"))
    refused("materialize", "spend", *asked, exit_code=1)
    ledger.begin(job["id"])
    ledger.fail(job["id"], reason="the source was away")
    (outcome,) = json.loads(output("materialize", "spend", "--json"))
    tried = [each for each in outcome["jobs"] if each["id"] == job["id"]]
    assert [(each["state"], each["attempts"]) for each in tried] == [("SUCCESS", 2)]
    assert covered(shop, "spend", "online") == IntervalSet([EVERYTHING])


def test_covered_intervals_are_replaced_only_with_overwrite_and_filled_round(shop: Workspace) -> None:
    asked = ("spend", "--start", "2024-01-03", "--end", "2024-01-05")
    output("materialize", *asked)
    answer = refused("materialize", *asked, exit_code=1)
    assert answer.startswith("error: spend: [2024-01-03T00:00Z, 2024-01-05T00:00Z) overlaps")
    (job,) = shop.stores.ledger.jobs("shop")
    assert answer.endswith(f"job {job.id} succeeded there; pass overwrite=True (--overwrite) to replace what it wrote")
    overwritten = CliRunner().invoke(app, ["materialize", *asked, "--overwrite", "--json"], env={"COLUMNS": "100"})
    assert " ".join(overwritten.stderr.split()) == (
        "Warnings spend: overwriting [2024-01-03T00:00Z, 2024-01-05T00:00Z) online replaces its tiles, and those of no "
        "other interval; an event whose timestamp was moved from one interval to another counts in both or in neither "
        "until both are overwritten"
    )
    (outcome,) = json.loads(overwritten.stdout)
    assert [(job["state"], job["overwrite"]) for job in outcome["jobs"]] == [("SUCCESS", True)]
    text = output("materialize", "spend")
    assert "  spend: 8 partitions in 2 jobs; 2 of 10 partitions are covered already or\n    running\n" in text
    assert covered(shop, "spend", "online") == IntervalSet([EVERYTHING])


def test_nothing_is_started_when_one_view_is_refused(shop: Workspace) -> None:
    answer = refused("materialize", "spend", LATEST, "--start", "2024-01-03T06:00", "--end", "2024-01-05", exit_code=1)
    assert "2024-01-03T06:00Z is not on the 1d grid of the Unix epoch" in answer
    assert not shop.home.exists()


@pytest.mark.slow
def test_progress_is_seen_although_dagster_turns_the_streams_to_its_logs(tmp_path: Path) -> None:
    write_purchases(tmp_path / "purchases.parquet")
    script = "from featurekit_dagster.cli import app; app()"
    result = in_subprocess(tmp_path, script, "materialize", "spend", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    (outcome,) = json.loads(result.stdout)
    assert (outcome["view"], outcome["rows"]) == ("spend", 20)
    result = in_subprocess(tmp_path, script, "materialize", LATEST)
    assert (result.returncode, result.stderr) == (0, f"{LATEST}: 10 partitions done\n")


@pytest.mark.parametrize(
    "arguments",
    [["--start", "2024-01-03"], ["--end", "2024-01-03"], ["--overwrite"], ["--start", "x", "--end", "2024-01-03"]],
)
@pytest.mark.usefixtures("shop")
def test_times_of_materialize_come_in_pairs_and_are_iso(arguments: list[str]) -> None:
    refused("materialize", "spend", *arguments, exit_code=2)


def test_dev_starts_dagster_for_this_host_only(shop: Workspace) -> None:
    project = shop.home.parent
    (project / "workspace.yaml").write_text("load_from: []\n")
    command = dev_command(shop, ["--port", "3001"])
    dagster = (sys.executable, "-m", "dagster", "dev", "--workspace", str(project / "workspace.yaml"))
    assert command.arguments == (*dagster, "--port", "3001", "--host", "127.0.0.1")
    assert command.folder == project
    assert command.dagster_home == shop.home / "dagster"
    assert "telemetry: {enabled: false}" in (command.dagster_home / "dagster.yaml").read_text()


@pytest.mark.parametrize(
    "arguments", [["-h", "0.0.0.0"], ["-h0.0.0.0"], ["--host=10.0.0.1"], ["--dagit-host", "example.org"], ["--host"]]
)
@pytest.mark.usefixtures("shop")
def test_dev_refuses_to_open_the_ui_to_other_hosts(arguments: list[str]) -> None:
    assert "the UI has no login" in refused("dev", *arguments, exit_code=2)


def test_dev_needs_a_workspace_file(shop: Workspace) -> None:
    answer = refused("dev", "-h", "localhost", exit_code=1)
    assert answer.startswith(f"error: there is no workspace.yaml in {shop.home.parent}")


@pytest.mark.usefixtures("shop")
def test_demo_without_the_repository_says_where_the_example_is(monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", root)])
    for name in [name for name in sys.modules if name.split(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    assert "the example is not installed with the package: it comes with the repository" in refused("demo", exit_code=1)


def test_an_error_names_its_view_once() -> None:
    outcome = ViewOutcome(view="spend", partitions=1, jobs=(), seconds=0.1, error="spend: it overlaps another")
    console = Console(file=StringIO(), width=80)
    print_outcomes(console, [outcome])
    assert console.file.getvalue().endswith("\nFailed\n  spend: it overlaps another\n")  # type: ignore[attr-defined]
