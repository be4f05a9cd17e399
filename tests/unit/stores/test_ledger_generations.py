"""What the ledger promises about generations: which is written, when one takes over, what is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from featurekit_dagster.errors import ChangedDeclaration, ChangeNotKeepable, RetiredGeneration
from featurekit_dagster.intervals import Interval, IntervalSet, to_us
from featurekit_dagster.planning.generations import GenerationState, StoredShape
from featurekit_dagster.planning.tasks import RemovedView
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.ledger_tables import WRITE, open_engine
from tests.support.postgres import ledger_place, new_database

T0 = datetime(2024, 3, 1, tzinfo=UTC)
NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
CURRENT, BUILDING, RETIRED = GenerationState.CURRENT, GenerationState.BUILDING, GenerationState.RETIRED
OLD = StoredShape(
    code="old",
    keys=(("user_id", "Int64"),),
    time_column="event_time",
    batch_schedule_us=DAY // timedelta(microseconds=1),
    values=(("amount", "Float64"),),
    online_index=("user_id",),
    online_values=(("amount", "Float64"),),
    start_us=to_us(T0),
    stores=("offline", "online"),
)
NEW = replace(OLD, code="new")
WIDER = replace(OLD, values=(*OLD.values, ("fee", "Float64")))


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    opened = Ledger(ledger_place(request, tmp_path), clock=lambda: NOW)
    yield opened
    opened.close()


def days(first: int, last: int) -> Interval:
    return Interval(T0 + first * DAY, T0 + last * DAY)


def claim(ledger: Ledger, interval: Interval, **more: Any) -> JobRecord:
    facts: dict[str, Any] = {"workspace": "w", "view": "v", "online": True, "offline": True, "trigger": "manual"} | more
    return ledger.claim(interval=interval, **facts)


def finish(ledger: Ledger, interval: Interval, **more: Any) -> JobRecord:
    job = claim(ledger, interval, **more)
    ledger.succeed(job.id, stats={})
    return ledger.job(job.id)


def states(ledger: Ledger) -> list[GenerationState]:
    return [record.state for record in ledger.generations("w", "v")]


def test_the_first_declaration_of_a_view_is_generation_1_and_stays_it(ledger: Ledger) -> None:
    assert ledger.generations("w", "v") == ()
    assert ledger.open_generation("w", "v", OLD) == ledger.open_generation("w", "v", OLD) == 1
    (record,) = ledger.generations("w", "v")
    assert (record.generation, record.state, record.shape) == (1, CURRENT, OLD)
    assert record.created_at == record.changed_at == NOW


def test_a_changed_declaration_waits_for_a_decision_and_says_which(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 1))
    with pytest.raises(ChangedDeclaration) as refused:
        ledger.open_generation("w", "v", NEW)
    assert str(refused.value) == (
        "v: it was changed since it was materialized (the transformation's code); decide what becomes of what is "
        "stored: `featurekit apply v --rebuild`, or, if no stored value would differ, `featurekit apply v --keep`"
    )
    with pytest.raises(ChangedDeclaration) as refused:
        ledger.open_generation("w", "v", WIDER)
    assert (refused.value.changes, refused.value.keepable) == (("new column fee: Float64",), False)
    assert str(refused.value).endswith("decide what becomes of what is stored: `featurekit apply v --rebuild`")
    assert [record.shape for record in ledger.generations("w", "v")] == [OLD]


def test_what_changes_nothing_that_is_stored_is_remembered(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", WIDER)
    finish(ledger, days(0, 1))
    moved = replace(OLD, start_us=to_us(T0 - 5 * DAY), stores=("offline",))
    assert ledger.open_generation("w", "v", moved) == 1
    (record,) = ledger.generations("w", "v")
    assert record.shape == replace(moved, online_index=("user_id",))
    with pytest.raises(ChangedDeclaration, match="new column fee"):
        ledger.open_generation("w", "v", WIDER)


def test_a_rebuild_takes_over_with_the_success_that_completes_it(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 3))
    assert ledger.rebuild("w", "v", NEW) == 2
    assert ledger.open_generation("w", "v", NEW) == 2
    assert states(ledger) == [CURRENT, BUILDING]
    finish(ledger, days(0, 1), generation=2)
    finish(ledger, days(1, 3), generation=2, online=False)
    assert states(ledger) == [CURRENT, BUILDING]
    found = ledger.resolution("w", "v", NEW)
    assert (found.write, found.read, found.replaces) == (2, 1, 1)
    finish(ledger, days(1, 3), generation=2, offline=False)
    assert states(ledger) == [RETIRED, CURRENT]
    found = ledger.resolution("w", "v", NEW)
    assert (found.write, found.read, found.replaces, found.retired) == (2, 2, None, (1,))
    assert ledger.coverage("w", "v", "offline") == IntervalSet([days(0, 3)])


def test_a_job_that_fails_or_is_cancelled_does_not_complete_a_rebuild(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 1))
    ledger.rebuild("w", "v", NEW)
    ledger.fail(claim(ledger, days(0, 1), generation=2).id, reason="x")
    ledger.stop(claim(ledger, days(0, 1), generation=2).id, reason="x")
    assert states(ledger) == [CURRENT, BUILDING]


def test_a_rebuild_need_not_cover_what_lies_before_its_start_or_a_store_that_it_does_not_write(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 3))
    ledger.rebuild("w", "v", replace(NEW, start_us=to_us(T0 + DAY), stores=("offline",)))
    finish(ledger, days(1, 3), generation=2, online=False)
    assert states(ledger) == [RETIRED, CURRENT]


def test_a_rebuild_of_nothing_is_there_at_once(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    assert ledger.rebuild("w", "v", NEW) == 2
    assert states(ledger) == [RETIRED, CURRENT]
    assert ledger.rebuild("w", "unknown", NEW) == 1
    assert [record.state for record in ledger.generations("w", "unknown")] == [CURRENT]


def test_a_second_rebuild_retires_the_first_unfinished_one(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 2))
    ledger.rebuild("w", "v", NEW)
    finish(ledger, days(0, 1), generation=2)
    assert ledger.rebuild("w", "v", WIDER) == 3
    assert states(ledger) == [CURRENT, RETIRED, BUILDING]
    finish(ledger, days(1, 2), generation=2)
    assert states(ledger) == [CURRENT, RETIRED, BUILDING]
    finish(ledger, days(0, 2), generation=3)
    assert states(ledger) == [RETIRED, RETIRED, CURRENT]


def test_kept_rows_stand_for_the_changed_declaration(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 2))
    assert ledger.keep("w", "v", NEW) == 1
    assert ledger.open_generation("w", "v", NEW) == 1
    assert [record.shape for record in ledger.generations("w", "v")] == [NEW]
    with pytest.raises(ChangedDeclaration):
        ledger.open_generation("w", "v", OLD)


def test_rows_that_lack_a_column_cannot_be_kept(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 1))
    with pytest.raises(ChangeNotKeepable) as refused:
        ledger.keep("w", "v", replace(WIDER, code="new"))
    assert str(refused.value) == (
        "v: stored rows cannot follow what was changed (new column fee: Float64), whatever their values; "
        "`featurekit apply v --rebuild` builds them anew beside the old ones"
    )
    assert [record.shape for record in ledger.generations("w", "v")] == [OLD]


def test_where_nothing_was_written_a_changed_declaration_begins_anew(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    ledger.fail(claim(ledger, days(0, 1)).id, reason="x", permanent=True)
    assert ledger.open_generation("w", "v", NEW) == 2
    assert ledger.keep("w", "v", WIDER) == 3
    assert states(ledger) == [RETIRED, RETIRED, CURRENT]
    ledger.stream_started("w", "v", 3, T0)
    with pytest.raises(ChangedDeclaration):
        ledger.open_generation("w", "v", replace(WIDER, code="new"))


def test_keeping_a_view_that_nobody_knows_makes_it_known(ledger: Ledger) -> None:
    assert ledger.keep("w", "v", OLD) == 1
    assert states(ledger) == [CURRENT]


def test_a_forgotten_view_leaves_its_jobs_and_nothing_else(ledger: Ledger) -> None:
    ledger.register("w", "v")
    ledger.open_generation("w", "v", OLD)
    job = finish(ledger, days(0, 2))
    ledger.open_generation("w", "other", OLD)
    assert ledger.known_views("w") == ["other", "v"]
    ledger.forget("w", "v")
    assert ledger.known_views("w") == ["other"]
    assert (ledger.generations("w", "v"), ledger.coverage("w", "v", "offline")) == ((), IntervalSet())
    assert [found.id for found in ledger.jobs("w", "v")] == [job.id]
    assert ledger.open_generation("w", "v", WIDER) == 1


def test_a_forgotten_generation_leaves_the_others(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 1))
    ledger.rebuild("w", "v", NEW)
    finish(ledger, days(0, 1), generation=2)
    ledger.forget("w", "v", 1)
    assert [(record.generation, record.state) for record in ledger.generations("w", "v")] == [(2, CURRENT)]
    assert ledger.coverage("w", "v", "online", 1) == IntervalSet()
    assert ledger.coverage("w", "v", "online", 2) == IntervalSet([days(0, 1)])
    assert ledger.rebuild("w", "v", OLD) == 3


def test_a_job_of_a_retired_generation_is_not_done_again(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    job = finish(ledger, days(0, 1))
    assert ledger.retry(job.id).state == "MANUAL_RETRY"
    ledger.cancel(job.id)
    ledger.rebuild("w", "v", NEW)
    finish(ledger, days(0, 1), generation=2)
    with pytest.raises(RetiredGeneration, match=r"wrote generation 1, .* trigger a new job"):
        ledger.retry(job.id)


def test_a_job_says_for_which_code_it_is_and_a_retry_is_for_any(ledger: Ledger) -> None:
    facts: dict[str, Any] = {"workspace": "w", "view": "v", "online": True, "offline": True, "trigger": "manual"}
    (waiting,) = ledger.queue(intervals=[days(0, 1)], code_version="a", **facts)
    assert waiting.code_version == "a"
    assert ledger.begin(waiting.id, code_version="b").code_version == "a"
    ledger.fail(waiting.id, reason="x", permanent=True)
    assert ledger.retry(waiting.id).code_version is None
    assert ledger.begin(waiting.id, code_version="b").code_version == "b"
    assert claim(ledger, days(1, 2), code_version="c").code_version == "c"


def test_jobs_are_outdated_by_other_code_another_generation_or_another_grid(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 1), code_version="a")
    same = claim(ledger, days(1, 2), code_version="a")
    unsaid = claim(ledger, days(2, 3))
    other = claim(ledger, days(3, 4), code_version="b")
    ragged = claim(ledger, Interval(T0 + 4 * DAY, T0 + 4.5 * DAY), code_version="a")
    claim(ledger, days(0, 1), view="undeclared", code_version="b")
    assert set(ledger.outdated("w", {"v": "a"}, {"v": OLD})) == {other.id, ragged.id}
    assert ledger.outdated("w", {"v": "a"}, {"v": OLD}) == [other.id, ragged.id]
    assert len(ledger.outdated("w", {"v": "a"}, {"v": NEW})) == 4  # nothing is written before somebody has decided
    ledger.rebuild("w", "v", OLD)
    moved = claim(ledger, days(1, 2), generation=2, code_version="a")
    assert moved.id not in ledger.outdated("w", {"v": "a"}, {"v": OLD})
    assert {same.id, unsaid.id} <= set(ledger.outdated("w", {"v": "a"}, {"v": OLD}))


def test_the_code_location_that_was_loaded_last_is_followed(ledger: Ledger) -> None:
    assert ledger.deploy("w", {"v": "a", "u": "x"}, 1) == frozenset()
    assert ledger.deploy("w", {"v": "b"}, 2) == frozenset()
    assert ledger.deploy("w", {"v": "a", "u": "x"}, 1) == {"v"}
    assert ledger.deploy("w", {"v": "b", "u": "x"}, 1) == frozenset()
    assert ledger.deploy("w", {"v": "a"}, 3) == frozenset()
    assert ledger.deploy("w", {"v": "b"}, 2) == {"v"}
    assert ledger.deploy("w", {"v": "a", "u": "x"}, 1) == frozenset()
    assert ledger.register("w", "v") == NOW
    assert ledger.deploy("other", {"v": "z"}, 0) == frozenset()


# ---- snapshots


def test_a_snapshot_is_about_the_generation_that_is_written(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 3))
    finish(ledger, days(5, 6), online=False)
    claim(ledger, days(7, 8))
    ledger.rebuild("w", "v", NEW)
    finish(ledger, days(0, 1), generation=2)
    claim(ledger, days(1, 2), generation=2)
    ledger.fail(claim(ledger, days(2, 3), generation=2).id, reason="x")
    built = ledger.snapshot("w", {"v": NEW})
    assert built.covered == dict.fromkeys((("v", "online"), ("v", "offline")), IntervalSet([days(0, 1)]))
    assert built.superseded == {
        ("v", "online"): IntervalSet([days(0, 3)]),
        ("v", "offline"): IntervalSet([days(0, 3), days(5, 6)]),
    }
    assert (built.running, built.failed) == ({"v": IntervalSet([days(1, 2)])}, {"v": IntervalSet([days(2, 3)])})
    assert (dict(built.generation), built.changes, built.undeclared) == ({"v": 2}, {}, {})
    for shapes in ({"v": OLD}, None):
        old = ledger.snapshot("w", shapes)
        assert old.coverage("v", "offline") == IntervalSet([days(0, 3), days(5, 6)])
        assert (old.running, old.failed, old.superseded) == ({"v": IntervalSet([days(7, 8)])}, {}, {})


def test_a_snapshot_tells_what_has_changed_and_shows_what_there_is(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 3))
    found = ledger.snapshot("w", {"v": NEW, "fresh": NEW})
    assert {view: [change.what for change in each] for view, each in found.changes.items()} == {"v": ["transformation"]}
    assert (dict(found.generation), found.coverage("v", "online")) == ({"v": 1, "fresh": 1}, IntervalSet([days(0, 3)]))


def test_a_snapshot_lists_retired_generations_and_views_that_nobody_declares(ledger: Ledger) -> None:
    ledger.open_generation("w", "v", OLD)
    finish(ledger, days(0, 3))
    ledger.rebuild("w", "v", NEW)
    finish(ledger, days(0, 3), generation=2)
    finish(ledger, days(4, 5), generation=2, online=False)
    ledger.open_generation("w", "empty", OLD)
    assert dict(ledger.snapshot("w", {"v": NEW}).retired) == {"v": (1,)}
    both = {"offline": IntervalSet([days(0, 3), days(4, 5)]), "online": IntervalSet([days(0, 3)])}
    assert ledger.snapshot("w", {}).undeclared == {
        "empty": RemovedView(view="empty", generations=(1,), covered={}),
        "v": RemovedView(view="v", generations=(1, 2), covered=both),
    }
    assert ledger.snapshot("w").undeclared == {}


# ---- older ledgers


def make_older(place: str) -> None:
    """Take out of a ledger what version 2 did not have."""
    engine = open_engine(place)
    with engine.connect().execution_options(**WRITE) as connection, connection.begin():
        connection.execute(text("DROP TABLE generations"))
        for table, column in (
            ("jobs", "request"),
            ("jobs", "code_version"),
            ("views", "code_version"),
            ("views", "deployed_us"),
        ):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN {column}"))
        connection.execute(text("UPDATE facts SET value = '2' WHERE name = 'schema_version'"))
    engine.dispose()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_ledger_of_version_2_keeps_everything_and_its_views_are_generation_1(
    tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    place = str(tmp_path / "ledger.db") if kind == "sqlite" else new_database(request.getfixturevalue("postgres_url"))
    first = Ledger(place, clock=lambda: NOW)
    job = finish(first, days(0, 2))
    first.close()
    make_older(place)
    second = Ledger(place, clock=lambda: NOW)
    assert second.job(job.id) == job
    assert second.coverage("w", "v", "online") == IntervalSet([days(0, 2)])
    (record,) = second.generations("w", "v")
    assert (record.generation, record.state, record.shape) == (1, CURRENT, None)
    assert second.snapshot("w", {"v": NEW}).changes == {}
    assert second.open_generation("w", "v", NEW) == 1
    assert [record.shape for record in second.generations("w", "v")] == [NEW]
    with pytest.raises(ChangedDeclaration):
        second.open_generation("w", "v", OLD)
    second.close()
