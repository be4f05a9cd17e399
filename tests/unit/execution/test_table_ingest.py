"""Ingesting into a feature table: what is taken, what is refused, what reads answer, what an interruption leaves."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from featurekit_dagster import Attribute, Entity, Field, Float64, Int64, String, TectonValidationError
from featurekit_dagster.errors import (
    ChangedDeclaration,
    IngestNotRetried,
    KeyTooLong,
    LeaseHeld,
    NotAFeatureTable,
    NotFoundError,
    PlanError,
    ReadError,
    RowsRefused,
)
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.execution.table_ingest import CLAIMED, WRITTEN_OFFLINE, WRITTEN_ONLINE, ingest_rows
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.serving.vector import MISSING_DATA
from tests.support.scores import DAY, FIRST, HOUR, SCHEMA, Table, rows

MICROSECOND = timedelta(microseconds=1)
NOON = FIRST + DAY / 2


class Killed(BaseException):
    """The end of the process, as far as `except Exception` can tell."""


def killed_at(step: str) -> Any:
    def on_step(reached: str) -> None:
        if reached == step:
            raise Killed

    return on_step


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


# ---- what is taken ---------------------------------------------------------------------------------------------------


def test_ingested_rows_are_read_online_and_offline(table: Table) -> None:
    job = table.handle.ingest(rows(("a", NOON, 1.0), ("a", NOON + HOUR, 2.0), ("b", NOON, 3.0)))
    assert (job.job_type, job.state, len(job.attempts)) == ("INGEST", "SUCCESS", 1)
    assert job.stats["rows"] == job.stats["rows_offline"] == 3
    assert [job.id for job in table.handle.list_jobs()] == [job.id]
    assert table.online("a") == 2.0
    spine = pa.table({"user_id": ["a", "a", "a", "b", "z"], "at": [NOON - MICROSECOND, NOON, *[NOON + HOUR] * 3]})
    found = table.handle.get_features_for_events(spine).to_arrow()["scores__score"].to_pylist()
    assert found == [None, 1.0, 2.0, 3.0, None]
    service = table.workspace.get_feature_service("ranking")
    assert service.get_online_features({"user_id": "b"}).to_dict() == {"scores.score": 3.0}
    assert service.get_features_for_events(spine).to_arrow()["scores__score"].to_pylist() == found


def test_a_row_expires_by_its_own_timestamp(tmp_path: Path) -> None:
    table = Table(tmp_path, ttl=HOUR)
    table.clock.now = NOON
    table.handle.ingest(rows(("a", NOON, 1.0)))
    assert table.online("a", NOON + HOUR - MICROSECOND) == 1.0
    assert table.online("a", NOON + HOUR) is None
    spine = pa.table({"user_id": ["a", "a"], "at": [NOON + HOUR - MICROSECOND, NOON + HOUR]})
    assert table.handle.get_features_for_events(spine).to_arrow()["scores__score"].to_pylist() == [1.0, None]
    (row,) = table.handle.get_features_in_range(FIRST, FIRST + DAY).to_arrow().to_pylist()
    assert (row["_valid_from"], row["_valid_to"]) == (NOON, NOON + HOUR)


def test_a_later_row_takes_the_place_of_one_with_equal_keys_and_time(table: Table) -> None:
    table.handle.ingest(rows(("a", NOON, 1.0), ("a", NOON, 2.0), (None, NOON, 5.0)))
    assert table.stored() == [("a", NOON, 2.0), (None, NOON, 5.0)]
    again = table.handle.ingest(rows(("a", NOON, None), (None, NOON, 6.0), ("b", NOON, 7.0)))
    assert again.stats["rows_replaced"] == 2
    assert table.stored() == [("a", NOON, None), ("b", NOON, 7.0), (None, NOON, 6.0)]
    assert table.online("a") is None
    assert table.online(None) == 6.0


def test_an_older_row_changes_nothing_online(table: Table) -> None:
    table.handle.ingest(rows(("a", NOON, 1.0)))
    late = table.handle.ingest(rows(("a", NOON - DAY, 9.0)))
    assert late.stats["rows_online_skipped"] == 1
    assert table.online("a") == 1.0
    assert table.stored() == [("a", NOON - DAY, 9.0), ("a", NOON, 1.0)]


def test_the_same_rows_twice_are_there_once(table: Table) -> None:
    given = rows(("a", NOON, 1.0), ("b", NOON + DAY, 2.0))
    table.handle.ingest(given)
    before = table.stored()
    assert table.handle.ingest(given).stats["rows_replaced"] == 2
    assert table.stored() == before
    assert table.online("b") == 2.0


@pytest.mark.parametrize(
    "make", [lambda t: t.to_pandas(), pl.from_arrow, lambda t: t], ids=["pandas", "polars", "arrow"]
)
def test_every_kind_of_frame_is_taken(table: Table, make: Any) -> None:
    table.handle.ingest(make(rows(("a", NOON, 1.5), ("b", NOON, None))))
    assert table.stored() == [("a", NOON, 1.5), ("b", NOON, None)]


def test_naive_times_are_utc_and_columns_come_in_any_order(table: Table) -> None:
    frame = pd.DataFrame({"rank": [1], "score": [1.0], "scored_at": [NOON.replace(tzinfo=None)], "user_id": ["a"]})
    table.handle.ingest(frame)
    assert table.stored() == [("a", NOON, 1.0)]


def test_keys_and_columns_may_have_odd_names_and_types(tmp_path: Path) -> None:
    names = [Field("User id", Int64), Field('a"b', String)]
    table = Table(tmp_path, entities=[Entity(name="odd", join_keys=names)], features=[Attribute("the Score", Float64)])
    time = pa.array([NOON] * 3, pa.timestamp("us", tz="UTC"))
    given = {"User id": [1, None, 1], 'a"b': ["x", "y", None], "scored_at": time, "the Score": [1.0, 2.0, 3.0]}
    table.handle.ingest(pa.table(given))
    assert table.handle.ingest(pa.table(given)).stats["rows_replaced"] == 3
    answer = table.handle.get_online_features({"User id": None, 'a"b': "y"})
    assert answer.to_dict() == {"the Score": 2.0}


def test_a_table_of_one_store_answers_from_that_alone(tmp_path: Path) -> None:
    online, offline = Table(tmp_path / "on", offline=False), Table(tmp_path / "off", online=False)
    for table in (online, offline):
        assert table.handle.ingest(rows(("a", NOON, 1.0))).state == "SUCCESS"
    assert online.online("a") == 1.0
    with pytest.raises(ReadError, match="not kept offline"):
        online.handle.get_historical_features()
    assert offline.stored() == [("a", NOON, 1.0)]
    with pytest.raises(ReadError, match="not materialized online"):
        offline.online("a")


def test_rows_of_tomorrow_are_taken_where_there_is_no_online_store(tmp_path: Path) -> None:
    table = Table(tmp_path, online=False)
    tomorrow = table.clock.now + DAY
    table.handle.ingest(rows(("a", tomorrow, 1.0)))
    spine = pa.table({"user_id": ["a", "a"], "at": [tomorrow - MICROSECOND, tomorrow]})
    assert table.handle.get_features_for_events(spine).to_arrow()["scores__score"].to_pylist() == [None, 1.0]


# ---- what is refused -------------------------------------------------------------------------------------------------

GOOD = rows(("a", NOON, 1.0))
WRONG = {
    "no rows": (GOOD.slice(0, 0), "there are none"),
    "a column too few": (GOOD.drop_columns(["rank"]), "column 'rank' is missing"),
    "a column too many": (GOOD.append_column("more", [[1]]), "column 'more' is not declared"),
    "text for a number": (
        GOOD.set_column(2, "score", pa.array(["secret"])),
        "column 'score' is string, declared Float64",
    ),
    "a fraction for an integer": (GOOD.set_column(3, "rank", pa.array([1.5])), "its values do not all fit"),
    "a number for a key": (
        GOOD.set_column(0, "user_id", pa.array([77_777])),
        "column 'user_id' is int64, declared String",
    ),
    "no time": (rows(("a", NOON, 1.0), ("a", None, 2.0)), "column 'scored_at' is NULL in 1 rows"),
    "a time to come": (rows(("a", FIRST + 31 * DAY, 1.0)), "later than now in 1 rows"),
    "a time before all times": (rows(("a", FIRST.replace(year=999), 1.0)), "outside the years 1000 to 9998 in 1 rows"),
    "half a microsecond": (
        GOOD.set_column(1, "scored_at", pa.array([1_700_000_000_000_000_500], pa.timestamp("ns"))),
        "times between two microseconds",
    ),
    "values of several types": (
        pd.DataFrame({"user_id": ["secret", 3], "scored_at": [NOON, NOON], "score": [1.0, 1.0], "rank": [1, 1]}),
        "values of several types",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_rows_that_do_not_fit_are_refused_and_none_is_taken(table: Table, what: str) -> None:
    frame, said = WRONG[what]
    with pytest.raises(RowsRefused) as caught:
        table.handle.ingest(frame)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "77777" not in str(caught.value).replace(",", "")
    assert table.handle.list_jobs() == []
    assert not table.stores.has_ledger or table.stored() == []


def test_what_is_no_frame_is_refused(table: Table) -> None:
    with pytest.raises(TectonValidationError, match="no frame"):
        table.handle.ingest([{"user_id": "a"}])


def test_a_table_without_stores_takes_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotAFeatureTable, match="keeps no rows"):
        Table(tmp_path, online=False, offline=False).handle.ingest(GOOD)


def test_a_key_too_long_for_a_wildcard_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    keys = [Field("user_id", String), Field("page", String)]
    declared = {"entities": [Entity(name="visit", join_keys=keys)], "online_serving_index": ["user_id"]}
    table = Table(tmp_path, **declared)
    with pytest.raises(KeyTooLong):
        table.handle.ingest(GOOD.append_column("page", [["p" * 500]]))
    assert table.handle.list_jobs() == []
    table.handle.ingest(GOOD.append_column("page", [["p"]]))
    assert table.stores.offline.row_count("scores") == 1


def test_a_table_cannot_be_computed_or_materialized(table: Table) -> None:
    span = (FIRST, FIRST + DAY)
    with pytest.raises(ReadError, match="a feature table, which has no source"):
        table.handle.get_features_for_events(GOOD.select(["user_id", "scored_at"]), from_source=True)
    with pytest.raises(ReadError, match="mock_inputs on a feature table"):
        table.handle.get_features_in_range(*span, mock_inputs={"x": GOOD})
    for run in (table.handle.run, table.handle.run_transformation):
        with pytest.raises(ReadError, match="whose rows are ingested"):
            run(*span)
    with pytest.raises(PlanError, match="whose rows come by ingest"):
        table.handle.trigger_materialization_job(*span, online=True, offline=True)


def test_a_table_that_nothing_was_ingested_into_is_empty(table: Table) -> None:
    assert table.online("a") is None
    assert set(table.handle.get_online_features({"user_id": "a"}).statuses.values()) == {MISSING_DATA}
    assert table.stored() == []
    spine = GOOD.select(["user_id", "scored_at"])
    assert table.handle.get_features_for_events(spine).to_arrow()["scores__score"].to_pylist() == [None]


def test_tables_are_found_by_name_and_are_no_views(table: Table) -> None:
    assert table.workspace.list_feature_tables() == ["scores"]
    assert table.workspace.list_feature_views() == []
    assert type(table.workspace.get_feature_view("scores")) is type(table.handle)
    with pytest.raises(NotFoundError, match="no feature table named 'nobody'"):
        table.workspace.get_feature_table("nobody")


# ---- interruptions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [WRITTEN_OFFLINE, WRITTEN_ONLINE])
def test_rows_of_an_ingest_that_died_after_the_offline_store_reach_the_online_store(table: Table, step: str) -> None:
    table.handle.ingest(rows(("a", NOON, 1.0)))
    with pytest.raises(Killed):
        ingest_rows(table.view, rows(("a", NOON + HOUR, 2.0), ("b", NOON, 3.0)), table.stores, on_step=killed_at(step))
    table.handle.ingest(rows(("c", NOON, 4.0)))
    assert [table.online(user) for user in "abc"] == [2.0, 3.0, 4.0]
    newest, died, _ = table.handle.list_jobs()
    assert (newest.state, died.state, [a.state for a in died.attempts]) == ("SUCCESS", "SUCCESS", ["ERROR", "SUCCESS"])
    assert table.handle.finish_ingests() == []


def test_an_ingest_that_died_before_the_offline_store_is_given_up(table: Table) -> None:
    with pytest.raises(Killed):
        ingest_rows(table.view, rows(("a", NOON, 1.0)), table.stores, on_step=killed_at(CLAIMED))
    (given_up,) = table.handle.finish_ingests()
    assert given_up.state == "FAILURE"
    assert given_up.reason == "it ended before its rows were in the offline store; ingest them again"
    assert table.online("a") is None
    assert table.handle.ingest(rows(("a", NOON, 1.0))).state == "SUCCESS"
    assert table.online("a") == 1.0


def test_an_ingest_that_failed_online_waits_for_another_attempt(table: Table) -> None:
    def fails(step: str) -> None:
        if step == WRITTEN_OFFLINE:
            raise OSError("disk full: secret")

    with pytest.raises(OSError, match="disk full"):
        ingest_rows(table.view, rows(("a", NOON, 1.0)), table.stores, on_step=fails)
    (waiting,) = table.handle.list_jobs()
    assert (waiting.state, waiting.next_attempt_at is not None) == ("RUNNING", True)
    assert "secret" not in (waiting.reason or "")
    (done,) = table.handle.finish_ingests()
    assert (done.id, done.state) == (waiting.id, "SUCCESS")
    assert table.online("a") == 1.0


def test_an_ingest_that_failed_before_the_offline_store_is_a_failure(table: Table) -> None:
    def fails(step: str) -> None:
        if step == CLAIMED:
            raise OSError("no such disk: secret")

    with pytest.raises(OSError, match="no such disk"):
        ingest_rows(table.view, rows(("a", NOON, 1.0)), table.stores, on_step=fails)
    (failed,) = table.handle.list_jobs()
    assert (failed.state, failed.reason) == ("FAILURE", "OSError (its text stays with the caller)")


def test_one_ingest_waits_for_the_other(table: Table) -> None:
    name = f"batch:{table.workspace.name}/scores"
    with table.stores.ledger.lease(name, holder="other"), pytest.raises(LeaseHeld):
        table.handle.ingest(GOOD, wait=timedelta(seconds=0.05))
    assert table.handle.ingest(GOOD).state == "SUCCESS"


# ---- changes ---------------------------------------------------------------------------------------------------------


def test_a_changed_table_takes_rows_only_after_a_decision(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.handle.ingest(GOOD)
    changed = Table(tmp_path, features=[Attribute("score", String), Attribute("rank", Int64)])
    as_text = pa.table({name: GOOD[name] if name != "score" else pa.array(["1"]) for name in SCHEMA.names})
    with pytest.raises(ChangedDeclaration):
        changed.handle.ingest(as_text)
    assert plan_view(changed.view, changed.workspace.snapshot(), changed.clock.now).needs_decision


def test_a_rebuilt_table_answers_from_its_old_rows_until_the_new_ones_reach_as_far(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.handle.ingest(rows(("a", NOON, 1.0), ("a", NOON + DAY, 2.0)))
    features = [Attribute(name, Float64 if name == "score" else Int64) for name in ("score", "rank", "more")]
    changed = Table(tmp_path, features=features)
    with pytest.raises(ChangedDeclaration):
        changed.handle.ingest(GOOD.append_column("more", [[5]]))
    shape = changed.workspace.shapes()["scores"]
    assert changed.stores.ledger.rebuild(changed.workspace.name, "scores", shape) == 2
    assert table.online("a") == 2.0
    whole = rows(("a", NOON, 3.0), ("a", NOON + DAY, 4.0)).append_column("more", [[5, 6]])
    changed.handle.ingest(whole.slice(1))
    assert table.stored() == [("a", NOON, 1.0), ("a", NOON + DAY, 2.0)]
    changed.handle.ingest(whole.slice(0, 1))
    assert changed.stored() == [("a", NOON, 3.0), ("a", NOON + DAY, 4.0)]
    assert changed.handle.get_online_features({"user_id": "a"}).to_dict()["more"] == 6


def test_a_lost_ledger_knows_a_table_again_by_its_stores(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.handle.ingest(rows(("a", NOON, 1.0)))
    (tmp_path / "ledger.db").unlink()
    found = Table(tmp_path)
    repaired = list(repair_coverage([found.view], found.stores))
    assert {(each.store, str(each.after)) for each in repaired} == {
        ("offline", "[2024-01-01T00:00Z, 2024-01-02T00:00Z)"),
        ("online", "[2024-01-01T00:00Z, 2024-01-02T00:00Z)"),
    }
    assert found.online("a") == 1.0
    assert found.handle.ingest(rows(("a", NOON, 2.0))).stats["rows_replaced"] == 1
    assert found.online("a") == 2.0


def test_an_ingest_is_not_retried_by_its_id(table: Table) -> None:
    job = table.handle.ingest(GOOD)
    with pytest.raises(IngestNotRetried, match="ingest them again"):
        table.stores.ledger.retry(job.id)
