"""Leases: who may work on something, one holder at a time, with an epoch that only grows.

The ledger hands them out; a lease ends by release, when its time has passed, or when its holder's process has ended.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, or_, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import OperationalError

from featurekit_dagster.errors import LeaseHeld, LeaseLost
from featurekit_dagster.intervals import format_time, from_us, to_us
from featurekit_dagster.stores.ledger_lifecycle import PROCESS_ENDED, is_in_run, lose
from featurekit_dagster.stores.ledger_processes import ProcessIdentity, current_process
from featurekit_dagster.stores.ledger_tables import insert_new, jobs, leases

LEASE_TIME = timedelta(minutes=2)
_RENEWALS_PER_LEASE = 3
_LONGEST_POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was handed out; it is lost when the ledger has a higher epoch under its name.

    Args:
        name: What it is about (`batch:<workspace>:<view>`).
        epoch: One more than at any earlier acquisition of the name.
        holder: Who asked for it, usually a job's id.
        ttl: How long it lasts unless renewed.
    """

    name: str
    epoch: int
    holder: str
    ttl: timedelta


def check_held(connection: Connection, lease: Lease | None) -> None:
    """Refuse to go on under a lease that was released or taken over; nothing is asked without one.

    Raises:
        LeaseLost: Its name has another epoch, or no holder.
    """
    if lease is None:
        return
    row = connection.execute(select(leases).where(leases.c.name == lease.name)).one_or_none()
    if row is None or row.holder is None or row.epoch != lease.epoch:
        raise LeaseLost(name=lease.name, epoch=lease.epoch, current=0 if row is None else int(row.epoch))


class LeaseBook:
    """The leases of one ledger.

    Args:
        write: Opens a transaction that holds the ledger's write lock.
        clock: Returns "now".
    """

    def __init__(self, write: Callable[[], AbstractContextManager[Connection]], clock: Callable[[], datetime]) -> None:
        self._write, self._clock = write, clock

    def acquire(self, name: str, holder: str, ttl: timedelta) -> Lease:
        """Take a lease that is free, has run out, or whose holder's process has ended.

        In the last two cases the former holder's attempts are ended as lost: all of an ended process, and those of the
        jobs of which the holder is the id or the run id.

        Raises:
            LeaseHeld: Somebody who is alive holds it, be it the same holder.
        """
        with self._write() as connection:
            now_us = to_us(self._clock())
            row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
            if row is not None and row.holder is not None:
                self._end_former_holder(connection, row, now_us)
            # At least the seconds since 1970, so that the epochs of a ledger that was lost and made anew go on growing.
            epoch = max(int(time.time()), 0 if row is None else int(row.epoch) + 1)
            values = {
                "epoch": epoch,
                "holder": holder,
                "process": str(current_process()),
                "expires_us": to_us(from_us(now_us) + ttl),
            }
            insert_new(connection, leases, {"name": name, **values}, values)
        return Lease(name=name, epoch=epoch, holder=holder, ttl=ttl)

    def renew(self, lease: Lease) -> None:
        """Let a lease last its time again from now.

        Raises:
            LeaseLost: It was released or taken over.
        """
        self._update_own(lease, {"expires_us": to_us(self._clock() + lease.ttl)}, must_hold=True)

    def release(self, lease: Lease) -> None:
        """Give a lease back; one that is lost stays with its new holder."""
        self._update_own(lease, {"holder": None, "process": None, "expires_us": None}, must_hold=False)

    @contextmanager
    def held(self, name: str, holder: str, ttl: timedelta, wait: timedelta) -> Iterator[Lease]:
        """Hold a lease for the body of a `with`, renewed in the background; wait for it at most `wait`.

        Raises:
            LeaseHeld: It was not free within `wait`.
        """
        lease = self._acquire_within(name, holder, ttl, wait)
        over = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(lease, over), name=f"lease {name}", daemon=True)
        renewing.start()
        try:
            yield lease
        finally:
            over.set()
            renewing.join()
            self.release(lease)

    def _acquire_within(self, name: str, holder: str, ttl: timedelta, wait: timedelta) -> Lease:
        deadline = time.monotonic() + wait.total_seconds()
        pause = 0.02
        while True:
            try:
                return self.acquire(name, holder, ttl)
            except LeaseHeld:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_POLL_SECONDS)

    def _renew_until(self, lease: Lease, over: threading.Event) -> None:
        pause = lease.ttl.total_seconds() / _RENEWALS_PER_LEASE
        while not over.wait(pause):
            try:
                self.renew(lease)
            except LeaseLost:
                return
            except OperationalError:
                continue  # the ledger was busy for long; the next renewal is still in time

    def _update_own(self, lease: Lease, values: dict[str, Any], *, must_hold: bool) -> None:
        own = (leases.c.name == lease.name) & (leases.c.epoch == lease.epoch) & leases.c.holder.is_not(None)
        with self._write() as connection:
            if connection.execute(update(leases).where(own).values(**values)).rowcount or not must_hold:
                return
            current = connection.execute(select(leases.c.epoch).where(leases.c.name == lease.name)).scalar_one()
        raise LeaseLost(name=lease.name, epoch=lease.epoch, current=current)

    def _end_former_holder(self, connection: Connection, row: Row[Any], now_us: int) -> None:
        if ProcessIdentity.parse(row.process).is_dead:
            lose(connection, jobs.c.process == row.process, PROCESS_ENDED, now_us)
        elif row.expires_us <= now_us:
            lose(connection, or_(jobs.c.id == row.holder, is_in_run(row.holder)), "its lease ran out", now_us)
        else:
            raise LeaseHeld(name=row.name, holder=row.holder, until=format_time(from_us(row.expires_us)))
