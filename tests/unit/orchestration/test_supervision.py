"""What a supervisor decides, from what is known of a stream alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from featurekit_dagster.domain.feature_view import StreamProcessingMode
from featurekit_dagster.domain.schema import Field, Float64
from featurekit_dagster.domain.stream_sources import KafkaConfig, PushConfig, RedisStreamConfig, StreamSource
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.supervision import (
    Decision,
    FinishedRun,
    Followed,
    GoingRun,
    decide,
    failures_in_a_row,
)
from featurekit_dagster.planning.generations import Change, Resolution
from featurekit_dagster.planning.stream_code import stream_code
from featurekit_dagster.stores.ledger_records import AttemptRecord, JobRecord
from tests.unit.domain.declared import TRANSACTIONS, streamed

NOW = datetime(2024, 1, 10, 12, tzinfo=UTC)
FAR = datetime(9999, 1, 1, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def resolution(write: int | None = 1, online: int = 1, changes: tuple[Change, ...] = ()) -> Resolution:
    return Resolution(write=write, read=online, read_online=online, changes=changes, replaces=None, retired=())


def job(
    state: str = "RUNNING", code: str = "new", generation: int = 1, run_id: str | None = "run", **more: Any
) -> JobRecord:
    times = {"created_at": NOW, "updated_at": NOW}
    attempt = AttemptRecord(id="a", number=1, run_id=run_id, state="RUNNING", reason=None, **times)
    facts = {
        **{"id": f"{state} {code} {generation}", "workspace": "w", "view": "v", "kind": "STREAM", "trigger": "stream"},
        **{"interval": Interval(NOW, FAR), "online": True, "offline": False, "overwrite": False, "reason": None},
        **{"next_attempt_at": None, "attempts": (attempt,), "stats": {}, **times},
    }
    return JobRecord(**facts | {"generation": generation, "state": state, "code_version": code} | more)


def known(**changes: Any) -> Followed:
    nothing = Followed(code="new", resolution=resolution(), paused_at=None, jobs=(), runs={}, finished=())
    return replace(nothing, **changes)


def failed(seconds_ago: float, lasted: timedelta = SECOND) -> FinishedRun:
    ended = NOW - seconds_ago * SECOND
    return FinishedRun(failed=True, began_at=ended - lasted, ended_at=ended)


def test_a_stream_that_nobody_follows_is_followed() -> None:
    assert decide(known(), NOW) == Decision(start=(0,))


def test_a_run_of_this_code_is_left_alone_be_it_queued_or_at_work() -> None:
    assert decide(known(runs={"run": GoingRun("new")}), NOW).reason == "run run follows the stream"
    assert decide(known(runs={"run": GoingRun("new")}, jobs=[job()]), NOW).drain == ()


def test_a_stream_that_an_ingest_process_follows_gets_no_run() -> None:
    applied = job(run_id=None)
    assert decide(known(jobs=[applied]), NOW) == Decision(
        reason="an ingest process follows the stream", applied=applied
    )
    old = job(run_id=None, code="old")
    decision = decide(known(jobs=[old]), NOW)
    assert (decision.start, decision.drain, decision.reason) == ((), (old.id,), "an ingest process is ending")
    lost = replace(applied, attempts=(replace(applied.attempts[0], state="ERROR"),))
    assert decide(known(jobs=[lost]), NOW) == Decision(start=(0,))


def test_a_run_of_older_code_ends_before_another_begins() -> None:
    old = job(code="old")
    decision = decide(known(runs={"run": GoingRun("old")}, jobs=[old]), NOW)
    assert (decision.start, decision.drain, decision.is_followed) == ((), (old.id,), True)
    assert decide(known(jobs=[replace(old, state="DRAINED")]), NOW) == Decision(start=(0,))


def test_beside_a_generation_that_is_rebuilt_the_old_one_is_followed_until_reads_switch() -> None:
    old = job(code="old", generation=1)
    rebuilding = known(resolution=resolution(write=2, online=1), jobs=[old], runs={"run": GoingRun("old")})
    assert decide(rebuilding, NOW) == Decision(start=(0,), is_followed=True)
    new = job(generation=2, run_id="new run")
    both = replace(rebuilding, jobs=[new, old], runs={"run": GoingRun("old"), "new run": GoingRun("new")})
    assert decide(both, NOW).drain == ()
    switched = replace(both, resolution=resolution(write=2, online=2))
    assert decide(switched, NOW).drain == (old.id,)
    same_code = known(resolution=resolution(write=2, online=1), jobs=[job(generation=1)], runs={"run": GoingRun("new")})
    assert decide(same_code, NOW).start


def test_a_change_that_waits_for_a_person_leaves_everything_as_it_is() -> None:
    change = Change(what="x", text="a column is gone", keepable=False)
    decision = decide(known(resolution=resolution(write=None, changes=(change,)), jobs=[job(code="old")]), NOW)
    assert (decision.start, decision.drain) == ((), ())
    assert decision.reason.startswith("changed: a column is gone; its run goes on")


def test_a_paused_and_a_cancelled_stream_are_left_alone() -> None:
    assert decide(known(paused_at=NOW), NOW).reason == "paused since 2024-01-10T12:00Z"
    cancelled = decide(known(jobs=[job("MANUALLY_CANCELLED")]), NOW)
    assert cancelled.reason == "it was cancelled by hand; featurekit stream resume starts it again"
    assert decide(known(jobs=[job("MANUAL_RETRY"), job("MANUALLY_CANCELLED")]), NOW).start


@pytest.mark.parametrize(("failures", "wait"), [(1, 5), (2, 10), (4, 40), (7, 300), (20, 300)])
def test_each_failure_in_a_row_doubles_the_wait(failures: int, wait: int) -> None:
    runs = [failed(wait - 1 + number) for number in range(failures)]
    assert not decide(known(finished=runs), NOW).start
    assert decide(known(finished=runs), NOW + SECOND).start


def test_only_failures_since_the_last_good_run_count() -> None:
    good = FinishedRun(failed=False, began_at=None, ended_at=NOW)
    assert failures_in_a_row([]) == failures_in_a_row([good, failed(1)]) == 0
    assert failures_in_a_row([failed(1), failed(2), good, failed(3)]) == 2
    assert failures_in_a_row([failed(1, 10 * MINUTE), failed(2)]) == 1
    assert failures_in_a_row([FinishedRun(failed=True, began_at=None, ended_at=NOW), failed(2)]) == 2


def test_each_share_of_a_stream_has_a_run_of_its_own() -> None:
    three = known(parallelism=3)
    assert decide(three, NOW) == Decision(start=(0, 1, 2))
    jobs = [job(run_id="second", batch="1/3"), job("MANUALLY_CANCELLED", run_id="third", batch="2/3")]
    partly = replace(three, runs={"second": GoingRun("new", 1)}, jobs=jobs)
    decision = decide(partly, NOW)
    assert decision.start == (0,)
    assert decision.reason.split("; ")[0] == "run second follows share 2 of 3 of the stream"
    waiting = decide(replace(partly, finished=[replace(failed(1), share=0)]), NOW)
    assert (waiting.start, "it failed once" in waiting.reason) == ((), True)


def test_runs_of_another_parallelism_end_before_any_begins() -> None:
    alone = job(code="old")
    more = known(parallelism=2, jobs=[alone], runs={"run": GoingRun("old")})
    decision = decide(more, NOW)
    assert (decision.start, decision.drain) == ((), (alone.id,))
    assert decide(replace(more, runs={}, jobs=[replace(alone, state="DRAINED")]), NOW).start == (0, 1)
    assert decide(replace(more, runs={}, jobs=[replace(alone, state="MANUALLY_CANCELLED")]), NOW).start == ()


def test_the_code_of_a_loop_changes_with_the_settings_of_its_stream_but_for_secrets() -> None:
    def code(config: Any, **more: Any) -> str:
        side = TRANSACTIONS.batch_config
        source = StreamSource(name="s", stream_config=config, batch_config=side, **more)
        return stream_code(streamed(source=source, stream_processing_mode=StreamProcessingMode.CONTINUOUS))

    assert code(PushConfig()) == code(PushConfig())
    assert code(PushConfig()) != code(PushConfig(watermark_delay_threshold=MINUTE))
    assert code(PushConfig()) != code(PushConfig(deduplication_columns=["id"]))
    assert code(PushConfig()) != code(PushConfig(), schema=[Field("amount", Float64)])
    kafka = {"kafka_bootstrap_servers": "broker:9092", "topics": "a"}
    secret = {"options": {"sasl.password": "secret"}}
    assert code(KafkaConfig(**kafka)) == code(KafkaConfig(**kafka, **secret))
    assert code(KafkaConfig(**kafka)) != code(KafkaConfig(**kafka | {"topics": "b"}))
    urls = ["redis://me:secret@host:6379/0", "redis://me:other@host:6379/0", "redis://me:secret@other:6379/0"]
    first, other_password, other_host = (code(RedisStreamConfig(url=url, stream_key="k")) for url in urls)
    assert first == other_password != other_host
