"""`featurekit plan` and `status`: what they print, what they load, how they refuse."""

from __future__ import annotations

import json
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.sdk import Workspace
from featurekit_dagster.stores.ledger import Ledger
from tests.conftest import ROOT
from tests.unit.cli_runner import bind, in_subprocess, output
from tests.unit.cli_shop import DAY, FIRST_DAY, NOW, shop_workspace

GOLDEN = ROOT / "tests" / "golden" / "cli"
HEAVY = {"dagster", "duckdb", "deltalake", "lmdb", "numpy", "pandas", "polars", "pyarrow", "sklearn"}
PRINT_LOADED = f"""
import sys
from featurekit_dagster.cli import app
try:
    app(sys.argv[1:])
finally:
    print(*sorted({HEAVY!r} & {{name.split('.')[0] for name in sys.modules}}), file=sys.stderr)
"""


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace of its own, which the command line finds."""
    return bind(shop_workspace(tmp_path), tmp_path, monkeypatch)


def ledger_of(workspace: Workspace) -> Ledger:
    workspace.home.mkdir(parents=True, exist_ok=True)
    return Ledger(workspace.home / "ledger.db", clock=workspace.now, new_id=map("job-{}".format, range(99)).__next__)


def claim(ledger: Ledger, view: str, interval: Interval, *, online: bool = True) -> str:
    job = ledger.claim(
        workspace="shop", view=view, interval=interval, online=online, offline=True, trigger="backfill", run_id="run-1"
    )
    return job.id


def assert_golden(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text(), f"write it to tests/golden/cli/{name} if it is right:\n{text}"


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.usefixtures("shop")
def test_plan_text_at_both_widths(width: int) -> None:
    assert_golden(f"plan_{width}.txt", output("plan", width=width))


@pytest.mark.parametrize("width", [80, 140])
def test_status_text_at_both_widths(shop: Workspace, width: int) -> None:
    ledger = ledger_of(shop)
    for first, last in ((0, 4), (6, 9)):
        ledger.succeed(claim(ledger, "spend", Interval(FIRST_DAY + first * DAY, FIRST_DAY + last * DAY)), stats={})
    failed = claim(ledger, "spend", Interval(FIRST_DAY + 4 * DAY, FIRST_DAY + 6 * DAY))
    ledger.fail(failed, reason="source 'purchases' cannot be read: there is no such file")
    claim(ledger, "last_purchase", Interval(FIRST_DAY, FIRST_DAY + 5 * DAY))
    assert_golden(f"status_{width}.txt", output("status", width=width))


def test_no_line_is_wider_than_the_terminal(shop: Workspace) -> None:
    claim(ledger_of(shop), "spend", Interval(FIRST_DAY, NOW))
    for command in ("plan", "status"):
        assert max(map(len, output(command).splitlines())) <= 80


@pytest.mark.usefixtures("shop")
def test_plan_json_is_a_list_of_plain_dicts_with_iso_times() -> None:
    plans = json.loads(output("plan", "spend", "user_most_recent_purchase_with_everything", "--json"))
    assert [(p["view"], p["partitions"], p["jobs"], p["queries"], len(p["runs"])) for p in plans] == [
        ("spend", 10, 1, 1, 1),
        ("user_most_recent_purchase_with_everything", 10, 10, 10, 1),
    ]
    assert plans[0]["wanted"] == {"start_time": "2024-01-01T00:00Z", "end_time": "2024-01-11T00:00Z"}
    assert plans[0]["runs"][0]["jobs"] == [
        {"interval": plans[0]["wanted"], "online": True, "offline": True, "overwrite": False}
    ]
    assert [len(p["warnings"]) for p in plans] == [0, 1]


def test_plan_leaves_out_what_is_covered_and_what_runs(shop: Workspace) -> None:
    ledger = ledger_of(shop)
    ledger.succeed(claim(ledger, "spend", Interval(FIRST_DAY, FIRST_DAY + 2 * DAY)), stats={})
    claim(ledger, "spend", Interval(FIRST_DAY + 5 * DAY, FIRST_DAY + 6 * DAY))
    (plan,) = json.loads(output("plan", "spend", "--json"))
    starts = [run["interval"]["start_time"] for run in plan["runs"]]
    assert starts == ["2024-01-03T00:00Z", "2024-01-07T00:00Z"]
    assert plan["partitions"] == 7


def test_plan_says_when_there_is_nothing_to_do(shop: Workspace) -> None:
    ledger = ledger_of(shop)
    ledger.succeed(claim(ledger, "spend", Interval(FIRST_DAY, NOW)), stats={})
    assert "There is nothing to do." in output("plan", "spend")


def test_plan_changes_nothing(shop: Workspace) -> None:
    output("plan")
    output("status")
    assert not shop.home.exists()


def test_status_json_says_what_is_covered_missing_and_open(shop: Workspace) -> None:
    ledger = ledger_of(shop)
    done = Interval(FIRST_DAY, FIRST_DAY + 7 * DAY)
    ledger.succeed(claim(ledger, "spend", done), stats={"rows": 14})
    ledger.fail(claim(ledger, "spend", Interval(done.end, NOW)), reason="no such file")
    (status,) = json.loads(output("status", "spend", "--json"))
    assert status["covered"]["offline"] == [{"start_time": "2024-01-01T00:00Z", "end_time": "2024-01-08T00:00Z"}]
    assert status["covered"]["online"] == status["covered"]["offline"]
    assert status["missing_partitions"] == 3
    assert status["last_job"]["state"] == "FAILURE"
    assert [(job["reason"], job["run_id"]) for job in status["open_jobs"]] == [("no such file", "run-1")]


def test_a_failed_job_that_was_done_again_is_no_longer_open(shop: Workspace) -> None:
    ledger = ledger_of(shop)
    ledger.fail(claim(ledger, "spend", Interval(FIRST_DAY, NOW)), reason="no such file")
    ledger.succeed(claim(ledger, "spend", Interval(FIRST_DAY, NOW)), stats={})
    (status,) = json.loads(output("status", "spend", "--json"))
    assert (status["open_jobs"], status["missing_partitions"]) == ([], 0)


def test_status_lists_at_most_the_limit(shop: Workspace) -> None:
    ledger = ledger_of(shop)
    for day in range(4):
        start = FIRST_DAY + timedelta(days=day)
        ledger.fail(claim(ledger, "spend", Interval(start, start + DAY)), reason="no such file")
    text = output("status", "--limit", "3")
    assert text.count("no such file") == 3
    assert "and 1 more; --limit shows them" in text


@pytest.mark.usefixtures("shop")
def test_an_unknown_view_is_refused_with_one_line_and_exit_code_1() -> None:
    result = CliRunner().invoke(app, ["plan", "spent"])
    known = "last_purchase, spend, user_most_recent_purchase_with_everything"
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr == f"error: no feature view named 'spent'; there are {known}; did you mean 'spend'?\n"


def test_without_a_workspace_the_ways_to_name_one_are_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["plan"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: no workspace is declared in {tmp_path} or above it; add [tool.featurekit")
    tables = '[tool.featurekit.workspaces]\ndev = "shop:workspace"\ntest = "shop:workspace"\n'
    (tmp_path / "pyproject.toml").write_text(tables)
    result = CliRunner().invoke(app, ["plan"])
    assert (result.exit_code, result.stderr) == (1, "error: there are several workspaces; name one of dev, test\n")


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("import json\njson.loads('[')\n", "shop_of_a_person.py"),
        ("def broken(\n", "    def broken("),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_shown_from_its_own_line_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, shown: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "shop_of_a_person.py").write_text(code)
    (tmp_path / "pyproject.toml").write_text('[tool.featurekit.workspaces]\ndev = "shop_of_a_person"\n')
    result = CliRunner().invoke(app, ["plan"])
    assert result.exit_code == 1
    first, *rest = result.stderr.splitlines()
    assert first == "error: the module of the workspace cannot be imported"
    assert "shop_of_a_person.py" in "".join(rest[:2])
    assert any(shown in line for line in rest)
    assert "featurekit_dagster" not in result.stderr


def test_a_warning_is_a_sentence(shop: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def told() -> None:
        texts = [warnings.formatwarning("it rains", kind, "here.py", 7) for kind in (UserWarning, FutureWarning)]
        raise TectonValidationError("".join(texts))

    monkeypatch.setattr(shop, "snapshot", told)
    result = CliRunner().invoke(app, ["status"])
    assert result.stderr == "error: warning: it rains\nhere.py:7: FutureWarning: it rains\n\n"


@pytest.mark.parametrize("arguments", [["plan", "--bad"], ["status", "--limit", "-1"], ["nothing"]])
def test_wrong_usage_ends_with_exit_code_2(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize("group", [[], ["dataset"], ["ingest"], ["integration-test"], ["stream"]])
def test_what_a_command_does_fits_its_line_of_the_list(group: list[str]) -> None:
    lines = output(*group, "--help").splitlines()
    described = lines[lines.index("Commands:") + 1 :]
    assert described
    assert [line for line in described if line.endswith("...")] == []


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    result = in_subprocess(tmp_path, PRINT_LOADED, "--help")
    assert (result.returncode, result.stderr.split()) == (0, [])
    commands = ["plan", "materialize", "status", "get", "historical", "dev", "demo"]
    assert all(f"  {command} " in result.stdout for command in commands)


@pytest.mark.parametrize("command", ["plan", "status"])
def test_plan_and_status_load_neither_dagster_nor_duckdb(tmp_path: Path, command: str) -> None:
    claim(ledger_of(shop_workspace(tmp_path)), "spend", Interval(FIRST_DAY, NOW))
    result = in_subprocess(tmp_path, PRINT_LOADED, command)
    assert (result.returncode, result.stderr.split()) == (0, [])
    assert "spend" in result.stdout


def test_a_refusal_is_one_message_without_a_traceback(tmp_path: Path) -> None:
    result = in_subprocess(tmp_path, PRINT_LOADED, "plan", "spent")
    assert result.returncode == 1
    assert result.stderr.startswith("error: no feature view named 'spent'")
    assert "Traceback" not in result.stderr
