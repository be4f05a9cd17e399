"""The commands about single jobs: what they print, and what they do to the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from featurekit_dagster import Workspace
from featurekit_dagster.cli import app
from featurekit_dagster.intervals import Interval
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, shop_workspace, write_purchases


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_purchases(tmp_path / "purchases.parquet")
    return bind(shop_workspace(tmp_path), tmp_path, monkeypatch)


def queued(shop: Workspace, first: int, end: int) -> JobRecord:
    interval = Interval(FIRST_DAY + first * DAY, FIRST_DAY + end * DAY)
    (job,) = shop.stores.ledger.queue(
        workspace=shop.name, view="spend", intervals=[interval], online=True, offline=True, trigger="manual"
    )
    return job


def test_jobs_are_listed_newest_first_and_by_state(shop: Workspace) -> None:
    first, second = queued(shop, 3, 4), queued(shop, 4, 6)
    shop.stores.ledger.cancel(first.id)
    text = output("jobs", width=120)
    assert text.index(second.id[:8]) < text.index(first.id[:8])
    assert "[2024-01-05, 2024-01-07)  RUNNING" in text
    assert "MANUALLY_CANCELLED" in text
    assert second.id[:8] not in output("jobs", "--state", "manually_cancelled", width=120)
    assert output("jobs", "last_purchase") == "There are no such jobs.\n"
    assert [each["id"] for each in json.loads(output("jobs", "spend", "--limit", "1", "--json"))] == [second.id]


def test_jobs_of_several_views_and_kinds_are_told_apart(shop: Workspace) -> None:
    first = queued(shop, 3, 4)
    span = Interval(FIRST_DAY, FIRST_DAY + 3 * DAY)
    chore = shop.stores.ledger.queue_chore(
        workspace=shop.name, view="last_purchase", kind="COMPACTION", interval=span, trigger="manual", request={}
    )
    assert "Kind" not in output("jobs", "spend", width=120)
    (row,) = [line for line in output("jobs", "spend", "last_purchase", width=120).splitlines() if "COMP" in line]
    assert row.split()[:3] == [chore.id[:8], "last_purchase", "COMPACTION"]
    assert "\n  COMPACTION last_purchase [2024-01-01, 2024-01-04)\n" in output("job", chore.id)
    listed = json.loads(output("jobs", "last_purchase", "spend", "--limit", "2", "--json"))
    assert [each["id"] for each in listed] == [chore.id, first.id]


def test_a_long_reason_is_indented_below_its_job(shop: Workspace) -> None:
    job = queued(shop, 3, 4)
    shop.stores.ledger.begin(job.id)
    shop.stores.ledger.fail(job.id, reason="many words " * 20, permanent=True)
    _, _, reason = output("job", job.id).split("\n\n")[0].partition("\n  reason: ")
    later = reason.splitlines()[1:]
    assert len(later) == 3
    assert all(line.startswith("    ") and not line.startswith("     ") for line in later)


def test_a_job_is_found_by_the_beginning_of_its_id(shop: Workspace) -> None:
    job = queued(shop, 3, 4)
    assert output("job", job.id[:8]) == (
        f"Job {job.id}: RUNNING\n"
        "  spend [2024-01-04, 2024-01-05), offline and online\n"
        "  asked for by manual\n"
        "  next attempt at 2024-01-11T00:00:00Z\n"
    )
    queued(shop, 4, 5)
    for start, said in (("", "several jobs begin with ''"), ("%", "no job begins with '%'")):
        result = CliRunner().invoke(app, ["job", start])
        assert (result.exit_code, result.stderr) == (1, f"error: {said}; featurekit jobs lists them, give one id\n")


def test_waiting_carries_the_job_out_and_tells_its_attempt(shop: Workspace) -> None:
    job = queued(shop, 3, 4)
    with pytest.warns(UserWarning, match="no Dagster daemon gives a sign of life"):
        shown = json.loads(output("wait", job.id, "--json"))
    assert (shown["state"], len(shown["attempts"])) == ("SUCCESS", 1)
    assert shown["attempts"][0]["run_url"].startswith("http://127.0.0.1:3000/runs/")
    text = output("job", job.id, width=160)
    assert " Attempt 1 SUCCESS 2024-01-11 2024-01-11 http" in " ".join(text.split())
    assert "\n  offline: wrote 2 rows in place of 0\n  online: wrote 2 rows\n\n" in text


def test_a_cancelled_job_is_told_and_a_retry_makes_it_due_again(shop: Workspace) -> None:
    job = queued(shop, 3, 4)
    assert output("cancel", job.id).startswith(f"Job {job.id}: MANUALLY_CANCELLED\n")
    output("wait", job.id, exit_code=1)
    assert output("retry", job.id).startswith(f"Job {job.id}: MANUAL_RETRY\n")
    assert [due.id for due in shop.stores.ledger.due(shop.name)] == [job.id]


def test_materialize_without_waiting_queues_the_jobs_for_the_daemon(shop: Workspace) -> None:
    interval = ("--start", "2024-01-04", "--end", "2024-01-08")
    made = json.loads(output("materialize", "last_purchase", *interval, "--no-wait", "--json"))
    assert [each["interval"]["start_time"][:10] for each in made] == ["2024-01-04", "2024-01-06"]
    assert [due.id for due in shop.stores.ledger.due(shop.name)] == [each["id"] for each in made]
    output("materialize", "last_purchase", *interval, "--no-wait", exit_code=1)


def test_an_unknown_state_is_refused_with_all_of_them(shop: Workspace) -> None:
    output("jobs", "--state", "DONE", exit_code=2)
