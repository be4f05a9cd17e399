"""A push log keeps what it has answered for, whoever else opens and closes its file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

from featurekit_dagster.streams.push_log import PushLog

_VISIT = (
    "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT * FROM batches').fetchall(); c.close()"
)


def test_what_is_logged_after_another_process_has_closed_the_log_is_kept(tmp_path: Path) -> None:
    log = PushLog(tmp_path / "payments.db")
    log.append([b"1"])
    log.read(0, 10)  # by a connection of its own, the opening of which must not cost the writer its locks

    subprocess.run([sys.executable, "-c", _VISIT, tmp_path / "payments.db"], check=True)
    log.append([b"2"])

    assert PushLog(tmp_path / "payments.db").read(0, 10).records == [b"1", b"2"]
    log.close()


def test_a_log_that_another_process_is_just_beginning_is_opened_when_it_has(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "payments.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")  # for this SQLite does not wait when it is to switch to WAL
    begun = threading.Timer(0.2, other.execute, ("COMMIT",))
    begun.start()

    log = PushLog(tmp_path / "payments.db")

    assert log.append([b"1"]) == 1
    begun.join()
    log.close()
    other.close()
