"""The command that puts rows into a feature table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.execution.table_ingest import WRITTEN_OFFLINE, ingest_rows
from tests.support.scores import FIRST, Table, rows
from tests.unit.cli_runner import bind, output


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table(tmp_path / "home")
    bind(made.workspace, tmp_path, monkeypatch)
    return made


def test_a_file_is_ingested(table: Table) -> None:
    given = rows(("a", FIRST, 1.0), ("b", FIRST, 2.0))
    pq.write_table(given, "scores.parquet")
    csv.write_csv(given.set_column(1, "scored_at", given["scored_at"].cast(pa.timestamp("us"))), "scores.csv")
    text = output("ingest-table", "scores", "--file", "scores.parquet")
    assert text.startswith("scores: 2 rows, 0 of them in place of others, 2 newest online (job ")
    assert "2 rows, 2 of them in place of others" in output("ingest-table", "scores", "--file", "scores.csv")
    assert table.online("b") == 2.0


def test_an_interrupted_ingest_is_finished(table: Table) -> None:
    assert output("ingest-table", "scores") == "scores: no ingest was interrupted.\n"

    def fails(step: str) -> None:
        if step == WRITTEN_OFFLINE:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ingest_rows(table.view, rows(("a", FIRST, 1.0)), table.stores, on_step=fails)
    (job,) = table.handle.list_jobs()
    assert output("ingest-table", "scores") == f"scores: job {job.id} is SUCCESS\n"
    assert table.online("a") == 1.0


def test_a_table_whose_online_store_was_emptied_is_refilled(table: Table) -> None:
    table.handle.ingest(rows(("a", FIRST, 1.0), ("b", FIRST, 2.0)))
    assert "Nothing is missing online" in output("refill-online", "scores")
    table.stores.online.close()
    shutil.rmtree(table.workspace.home / "online")
    (done,) = json.loads(output("refill-online", "scores", "--json"))
    assert (done["view"], done["state"], done["rows_online"]) == ("scores", "SUCCESS", 2)
    assert table.online("b") == 2.0


def test_what_cannot_be_ingested_is_refused(table: Table) -> None:
    Path("wrong.parquet").write_text("no parquet")
    pq.write_table(rows(("a", None, 1.0)), "no_time.parquet")
    for arguments, said in (
        (
            ("scores", "--file", "wrong.parquet"),
            "it is no parquet file with the columns of feature table",
        ),
        (("scores", "--file", "no_time.parquet"), "column 'scored_at' is NULL in 1 rows"),
        (("nobody",), "no feature table named 'nobody'"),
    ):
        result = CliRunner().invoke(app, ["ingest-table", *arguments])
        assert result.exit_code == 1
        assert said in result.output
    assert table.handle.list_jobs() == []


def test_plan_and_status_show_a_table(table: Table) -> None:
    assert "scores" in output("plan", width=140)
    table.handle.ingest(rows(("a", FIRST, 1.0)))
    assert "scores" in output("status", width=140)
    assert "SUCCESS" in output("jobs", "scores", width=140)
    assert output("materialize", "scores", width=140)
