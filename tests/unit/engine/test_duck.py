"""Connections share a database and nothing else."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import duckdb
import pyarrow as pa
import pytest

from featurekit_dagster.engine.duck import connect, interruptible


def test_what_one_connection_registers_or_sets_another_does_not_see() -> None:
    with connect() as one, connect() as other:
        one.register("events", pa.table({"v": [1]}))
        one.execute("CREATE TEMP VIEW doubled AS SELECT 2 * v AS v FROM events; SET TimeZone = 'America/New_York'")
        for name in ("events", "doubled"):
            with pytest.raises(duckdb.CatalogException):
                other.sql(f"SELECT * FROM {name}").fetchall()
        assert other.sql("SELECT current_setting('TimeZone')").fetchall() == [("UTC",)]


def test_a_connection_that_is_closed_leaves_the_others_open() -> None:
    with connect() as kept:
        with connect() as closed:
            closed.sql("SELECT 1").fetchall()
        assert kept.sql("SELECT 1").fetchall() == [(1,)]


def test_threads_ask_at_the_same_time() -> None:
    def ask(number: int) -> int:
        with connect() as con:
            found: int = con.sql(f"SELECT sum(i + {number}) FROM range(100000) r(i)").fetchall()[0][0]
            return found

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(8))) == [4_999_950_000 + 100_000 * number for number in range(8)]


def test_an_interrupt_ends_only_the_work_that_it_is_for() -> None:
    with connect() as bystander, interruptible() as work, connect() as con:
        work.interrupt()
        assert bystander.sql("SELECT 1").fetchall() == [(1,)]
        assert con.sql("SELECT 1").fetchall() == [(1,)]


def test_the_memory_budget_reaches_a_connection_made_after_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, limit in (("2GB", "953.6 MiB"), ("1GB", "476.8 MiB")):
        monkeypatch.setenv("FEATUREKIT_MEMORY", given)
        with connect() as con:
            assert con.sql("SELECT current_setting('memory_limit')").fetchall() == [(limit,)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_has_a_database_of_its_own() -> None:
    with connect() as con:
        con.sql("SELECT 1").fetchall()
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            with connect() as own:
                is_right = own.sql("SELECT sum(i) FROM range(1000000) r(i)").fetchall() == [(499999500000,)]
            os._exit(0 if is_right else 1)
        assert os.waitpid(child, 0)[1] == 0
