"""What the ledger promises about leases, and how it tells a process that lives from one that does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from featurekit_dagster.errors import JobStateError, LeaseHeld, LeaseLost
from featurekit_dagster.stores.ledger import Ledger
from featurekit_dagster.stores.ledger_processes import ProcessIdentity, current_process
from tests.support import ledger_client
from tests.support.clock import Clock
from tests.support.postgres import ledger_place

MINUTE = timedelta(minutes=1)


@pytest.fixture
def clock() -> Clock:
    return Clock(datetime(2024, 6, 1, tzinfo=UTC))


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(tmp_path: Path, clock: Clock, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    opened = Ledger(ledger_place(request, tmp_path), clock=clock)
    yield opened
    opened.close()


def test_the_epoch_grows_with_every_acquisition_of_a_name(ledger: Ledger) -> None:
    epochs = []
    for _ in range(3):
        lease = ledger.acquire("a", "job", MINUTE)
        epochs.append(lease.epoch)
        ledger.release(lease)
    assert epochs[0] < epochs[1] < epochs[2]


def test_the_epochs_of_a_ledger_made_anew_are_above_those_of_the_lost_one(tmp_path: Path) -> None:
    epochs = []
    for name in ("lost.db", "new.db"):
        made = Ledger(tmp_path / name, clock=Clock(datetime(2024, 6, 1, tzinfo=UTC)))
        epochs.append(made.acquire("a", "job", MINUTE).epoch)
        made.close()
        time.sleep(1.1)
    assert epochs[0] < epochs[1]


@pytest.mark.parametrize("holder", ["other", "job"])
def test_a_lease_has_one_holder_at_a_time(ledger: Ledger, holder: str) -> None:
    ledger.acquire("a", "job", MINUTE)
    with pytest.raises(LeaseHeld, match="a is held by job until 2024-06-01T00:01Z"):
        ledger.acquire("a", holder, MINUTE)
    assert ledger.acquire("b", holder, MINUTE).holder == holder


def test_a_lease_that_ran_out_is_taken_over_and_its_jobs_fail(ledger: Ledger, clock: Clock) -> None:
    by_id, by_run, bystander = (ledger_client.claim_day(ledger, number) for number in range(3))
    old = ledger.acquire("a", by_id.id, MINUTE)
    ledger.acquire("b", "run-of-client", 10 * MINUTE)
    clock.now += MINUTE
    assert ledger.acquire("a", "next", MINUTE).epoch == old.epoch + 1
    assert [ledger.job(job.id).state for job in (by_id, by_run, bystander)] == ["FAILURE", "RUNNING", "RUNNING"]
    assert ledger.job(by_id.id).reason == "its lease ran out"
    with pytest.raises(JobStateError):
        ledger.succeed(by_id.id, stats={})
    clock.now += 10 * MINUTE
    ledger.acquire("b", "next", MINUTE)
    assert [ledger.job(job.id).state for job in (by_run, bystander)] == ["FAILURE", "FAILURE"]


def test_a_lease_lasts_to_its_end_and_no_longer(ledger: Ledger, clock: Clock) -> None:
    first = ledger.acquire("a", "job", MINUTE)
    clock.now += MINUTE - timedelta(microseconds=1)
    with pytest.raises(LeaseHeld):
        ledger.acquire("a", "other", MINUTE)
    clock.now += timedelta(microseconds=1)
    assert ledger.acquire("a", "other", MINUTE).epoch > first.epoch


def test_a_renewed_lease_lasts_its_time_again(ledger: Ledger, clock: Clock) -> None:
    lease = ledger.acquire("a", "job", MINUTE)
    clock.now += MINUTE / 2
    ledger.renew(lease)
    clock.now += MINUTE * 3 / 4
    with pytest.raises(LeaseHeld):
        ledger.acquire("a", "other", MINUTE)


def test_a_lease_taken_over_cannot_be_renewed_and_its_release_does_nothing(ledger: Ledger, clock: Clock) -> None:
    old = ledger.acquire("a", "job", MINUTE)
    clock.now += MINUTE
    new = ledger.acquire("a", "other", MINUTE)
    with pytest.raises(LeaseLost, match=f"epoch {old.epoch} is gone, the current epoch is {new.epoch}") as lost:
        ledger.renew(old)
    assert (lost.value.epoch, lost.value.current) == (old.epoch, new.epoch)
    ledger.release(old)
    ledger.renew(new)


def test_a_released_lease_cannot_be_renewed(ledger: Ledger) -> None:
    lease = ledger.acquire("a", "job", MINUTE)
    ledger.release(lease)
    ledger.release(lease)
    with pytest.raises(LeaseLost):
        ledger.renew(lease)


@pytest.mark.parametrize("ledger", ["sqlite"], indirect=True)
def test_a_lease_of_a_killed_process_is_taken_over_and_its_jobs_fail(tmp_path: Path, ledger: Ledger) -> None:
    process = ledger_client.start("hold", tmp_path / "ledger.db", "a")
    ledger_client.go(process)
    job_id = ledger_client.answer(process)
    own = ledger_client.claim_day(ledger, 1)
    with pytest.raises(LeaseHeld):
        ledger.acquire("a", "next", MINUTE)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, but is still listed
    lease = ledger.acquire("a", "next", MINUTE)
    ledger_client.end(process)
    assert lease.holder == "next"
    assert (ledger.job(job_id).state, ledger.job(job_id).reason) == ("FAILURE", "its process ended")
    assert ledger.job(own.id).state == "RUNNING"


def test_a_with_block_gives_its_lease_back_whatever_happens(ledger: Ledger) -> None:
    epochs: list[int] = []

    def work() -> None:
        with ledger.lease("a", "job") as lease:
            epochs.append(lease.epoch)
            assert (lease.name, lease.holder) == ("a", "job")
            raise RuntimeError("body")

    with pytest.raises(RuntimeError, match="body"):
        work()
    with ledger.lease("a", "other") as lease:
        assert lease.epoch > epochs[0]


def test_a_with_block_waits_for_its_turn(ledger: Ledger) -> None:
    lease = ledger.acquire("a", "job", MINUTE)
    with pytest.raises(LeaseHeld), ledger.lease("a", "other", wait=timedelta(seconds=0.1)):
        pass
    ledger.release(lease)
    with ledger.lease("a", "other", wait=timedelta(seconds=5)) as waited:
        assert waited.epoch > lease.epoch


def test_a_with_block_renews_its_lease_while_it_runs(tmp_path: Path) -> None:
    clock, ttl = RenewalClock(datetime(2024, 6, 1, tzinfo=UTC)), timedelta(seconds=0.3)
    ledger = Ledger(tmp_path / "ledger.db", clock=clock)
    with ledger.lease("a", "job", ttl=ttl):
        clock.now += ttl * 0.9
        clock.wait_for_a_renewal()
        clock.now += ttl * 0.9
        with pytest.raises(LeaseHeld):
            ledger.acquire("a", "other", MINUTE)
    assert ledger.acquire("a", "other", MINUTE).holder == "other"
    ledger.close()


class RenewalClock(Clock):
    """A clock that counts how often the thread that renews the lease `a` looks at it."""

    looks = 0

    def __call__(self) -> datetime:
        if threading.current_thread().name == "lease a":
            self.looks += 1
        return self.now

    def wait_for_a_renewal(self) -> None:
        """Return after a renewal that began after this call: the next one begins when it is over."""
        enough, attempts = self.looks + 2, 6_000
        while self.looks < enough and (attempts := attempts - 1):
            time.sleep(0.02)
        assert attempts, "not renewed in two minutes"


def test_the_process_that_asks_is_alive() -> None:
    own = current_process()
    assert own.pid == os.getpid()
    assert not own.is_dead
    assert ProcessIdentity.parse(str(own)) == own


def test_a_process_that_ended_is_dead_before_and_after_its_parent_noticed() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    start = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    identity = replace(current_process(), pid=child.pid, started=start)
    assert not identity.is_dead
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.is_dead
    child.communicate()
    assert identity.is_dead


def test_a_later_process_with_the_same_number_is_another_one() -> None:
    assert replace(current_process(), started="1").is_dead


def test_processes_before_a_restart_of_the_host_are_dead() -> None:
    assert replace(current_process(), boot="earlier").is_dead


def test_processes_that_cannot_be_seen_count_as_alive() -> None:
    own = current_process()
    assert not replace(own, host="other", started="1").is_dead
    assert not replace(own, namespace="pid:[1]", started="1").is_dead
