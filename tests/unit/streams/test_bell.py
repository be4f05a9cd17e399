"""A reader of a push log in the process that appends is woken at once."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path

import pytest

from featurekit_dagster.streams import push_log
from featurekit_dagster.streams.bell import Bell, bell_of
from featurekit_dagster.streams.push_log import PushLog, PushLogReader
from featurekit_dagster.streams.reading import ONLY_PARTITION


def test_an_append_wakes_the_readers_of_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_NAP_SECONDS", "_LONGEST_NAP_SECONDS"):  # nobody looks again by itself
        monkeypatch.setattr(push_log, name, 3_600.0)
    log, reader = PushLog(tmp_path / "log.db"), PushLogReader(tmp_path / "log.db")
    reader.seek({ONLY_PARTITION: "0"})
    begun = threading.Event()

    def append() -> None:
        begun.wait(30)
        log.append([b"1"])

    writer = threading.Thread(target=append)
    writer.start()
    begun.set()
    (batch,) = reader.poll(10, timedelta(seconds=30))
    assert batch.payloads == [b"1"]
    writer.join()
    log.close()
    reader.close()


def test_a_ring_between_a_look_and_a_wait_is_not_missed() -> None:
    bell = Bell()
    heard = bell.count
    bell.ring()
    assert bell.wait(heard, 30)
    assert not bell.wait(bell.count, 0)


def test_all_ways_to_a_file_have_one_bell(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert bell_of(tmp_path / "log.db") is bell_of(tmp_path / "link" / "log.db")
    assert bell_of(tmp_path / "log.db") is not bell_of(tmp_path / "other.db")
