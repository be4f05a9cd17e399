"""Changed code is deployed: jobs of the code before it end, what they left is planned anew, and one location leads."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution.materialize import CLAIMED
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.due_jobs import newest_views
from featurekit_dagster.orchestration.run import open_instance, run_due
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.stores.ledger_records import JobRecord
from tests.conftest import ROOT
from tests.support.changing_view import DAY, NOW, START, make_source, run, variants

WHOLE = Interval(START, NOW)
Declare = Callable[..., Workspace]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    make_source(tmp_path)
    return tmp_path


@pytest.fixture
def declare(lake: Path) -> Iterator[Declare]:
    with variants(lake) as make:
        yield make


@pytest.fixture
def busy(lake: Path) -> Iterator[subprocess.Popen[str]]:
    """A process with the code `base` that has begun the first of four jobs and waits for the file `go`."""
    command = [sys.executable, "-m", "tests.support.changing_view", str(lake), "base", CLAIMED, "1", "wait"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{CLAIMED}\n"
    yield process
    process.kill()
    process.communicate(timeout=60)


def queue(workspace: Workspace, interval: Interval, **more: Any) -> JobRecord:
    (view,) = workspace.repo.views
    facts = {"online": True, "offline": True, "trigger": "schedule"} | more
    (job,) = workspace.stores.queue(view, [interval], **facts)
    return job


def look(workspace: Workspace) -> frozenset[str]:
    """Let a code location look at its jobs, as its sensor does before it starts any."""
    return newest_views(workspace, workspace.stores)


def skip_message(workspace: Workspace, instance: dg.DagsterInstance) -> str:
    """Let the view's schedule tick; return why it requests nothing."""
    defs = workspace.definitions()
    schedule = defs.resolve_schedule_def("materialize_tiles_schedule")
    given = {"resources": dict(defs.resources or {}), "repository_def": defs.get_repository_def()}
    with dg.build_schedule_context(instance=instance, **given) as context:
        data = schedule.evaluate_tick(context)
    assert not data.run_requests
    return data.skip_message or ""


def test_a_running_job_of_old_code_ends_and_its_run_begins_no_other(
    declare: Declare, lake: Path, busy: subprocess.Popen[str]
) -> None:
    new = declare("doubled")
    assert look(new) == {"tiles"}
    (job,) = new.jobs()
    assert job.state == "DRAINING"
    (lake / "go").touch()
    assert busy.wait(timeout=300) == 0
    (job,) = new.jobs()
    assert (job.state, [attempt.state for attempt in job.attempts]) == ("DRAINED", ["CANCELLED"])
    assert not new.stores.offline.exists("tiles")


def test_the_range_of_a_drained_job_is_filled_by_the_new_code_where_nobody_has_to_decide(
    declare: Declare, lake: Path, busy: subprocess.Popen[str]
) -> None:
    new = declare("fewer")
    look(new)
    (lake / "go").touch()
    busy.wait(timeout=300)
    (plan,) = new.plan()
    assert [run.interval for run in plan.runs] == [WHOLE]
    run(new)
    assert new.stores.coverage(new.repo.views[0], "online") == IntervalSet([WHOLE])
    assert [job.state for job in new.jobs()] == ["SUCCESS"] * 4 + ["DRAINED"]


def test_the_range_of_a_drained_job_waits_for_a_person_where_somebody_has_to_decide(
    declare: Declare, lake: Path, busy: subprocess.Popen[str]
) -> None:
    old, new = declare("base"), declare("doubled")
    done = queue(old, Interval(WHOLE.end, WHOLE.end + DAY))
    old.stores.ledger.begin(done.id)
    old.stores.ledger.succeed(done.id, stats={})  # something is stored that the new code would not have written
    look(new)
    (lake / "go").touch()
    busy.wait(timeout=300)
    assert (new.plan()[0].runs, new.plan()[0].needs_decision) == ((), True)
    (view,) = new.repo.views
    new.stores.ledger.keep("w", "tiles", StoredShape.of(view))
    assert new.plan()[0].jobs == 4


def test_waiting_jobs_of_old_code_end_at_once_and_those_of_this_code_stay(declare: Declare) -> None:
    old = declare("base")
    first = queue(old, Interval(START, START + DAY))
    new = declare("fewer")
    second = queue(new, Interval(START + DAY, START + 2 * DAY))
    look(new)
    states = {job.id: job.state for job in new.jobs()}
    assert states == {first.id: "DRAINED", second.id: "RUNNING"}
    assert new.snapshot().running == {"tiles": IntervalSet([second.interval])}


def test_a_job_that_is_asked_for_again_is_done_by_the_code_that_is_deployed(declare: Declare) -> None:
    old = declare("base")
    job = queue(old, Interval(START, START + DAY))
    old.stores.ledger.cancel(job.id)
    new = declare("fewer")
    old.stores.ledger.retry(job.id)
    look(new)
    assert new.stores.ledger.job(job.id).state == "MANUAL_RETRY"
    with open_instance(new) as instance:
        (result,) = run_due(new, instance, job.id)
    assert result.success
    assert new.stores.ledger.job(job.id).state == "SUCCESS"


def test_two_locations_do_not_end_each_others_jobs_for_ever(declare: Declare) -> None:
    old, new = declare("base"), declare("fewer")
    assert look(old) == {"tiles"}
    assert look(new) == {"tiles"}
    job = queue(new, Interval(START, START + DAY))
    with open_instance(new) as instance:
        for _ in range(3):
            assert look(old) == frozenset()
            assert run_due(old, instance) == []
            assert look(new) == {"tiles"}
            assert new.stores.ledger.job(job.id).state == "RUNNING"
        assert skip_message(old, instance) == (
            "tiles: a code location that was loaded later has other code of it; reload this one"
        )
        (result,) = run_due(new, instance)
    assert result.success
    assert new.stores.ledger.job(job.id).state == "SUCCESS"


def test_code_that_is_put_back_leads_again_once_it_is_loaded(declare: Declare) -> None:
    old, new = declare("base"), declare("fewer")
    look(old), look(new)
    job = queue(new, Interval(START, START + DAY))
    again = declare("moved")
    assert look(again) == {"tiles"}
    assert again.stores.ledger.job(job.id).state == "DRAINED"
    assert look(new) == look(old) == frozenset()


def test_a_schedule_says_what_has_changed_and_what_to_do(declare: Declare) -> None:
    run(declare("base"), most=1)
    new = declare("doubled")
    with open_instance(new) as instance:
        said = skip_message(new, instance)
    assert said.startswith(
        "tiles: changed: the transformation's code; waits for `featurekit apply --rebuild or --keep`"
    )
