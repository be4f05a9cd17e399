from __future__ import annotations

import os
import random
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurekit_dagster.errors import StreamPositionLost
from featurekit_dagster.streams.push_log import LogSlice, PushLog, PushLogReader, push_log_path
from featurekit_dagster.streams.reading import ONLY_PARTITION
from tests.support.clock import Clock

AT_ONCE = timedelta(0)


@pytest.fixture
def log(tmp_path: Path) -> PushLog:
    return PushLog(tmp_path / "push" / "visits.db")


def _records(first: int, count: int) -> list[bytes]:
    return [b'{"n": %d}' % number for number in range(first, first + count)]


def test_records_are_numbered_from_one_in_the_order_of_their_appends(log: PushLog) -> None:
    assert (log.append(_records(1, 3)), log.append([]), log.append(_records(4, 1))) == (3, 3, 4)
    assert log.read(0, 10) == LogSlice(_records(1, 4), 4, log.identity())
    assert log.newest() == 4


@given(
    appends=st.lists(st.integers(0, 7), max_size=6),
    big=st.integers(0, 2_500),
    after=st.integers(0, 30),
    most=st.integers(1, 1_200),
)
def test_a_read_is_a_slice_of_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, appends: list[int], big: int, after: int, most: int
) -> None:
    log = PushLog(tmp_path_factory.mktemp("log") / "visits.db")
    everything: list[bytes] = []
    for count in [*appends, big]:
        added = _records(len(everything), count)
        everything += added
        assert log.append(added) == len(everything)
    expected = everything[after : after + most]
    assert log.read(after, most) == LogSlice(expected, after + len(expected), log.identity())
    log.close()


def test_trimmed_records_are_gone_and_their_numbers_are_not_used_again(log: PushLog, tmp_path: Path) -> None:
    log.append(_records(1, 2))
    log.append(_records(3, 2))
    log.trim(3)
    assert log.oldest() == 2
    assert log.read(2, 10).records == _records(3, 2)
    with pytest.raises(StreamPositionLost, match="position 1 of partition 0, it begins at 2 now"):
        log.read(1, 10)
    log.trim(4)
    assert PushLog(tmp_path / "push" / "visits.db").append(_records(5, 1)) == 5


def test_the_newest_record_before_an_instant_is_known(tmp_path: Path) -> None:
    clock = Clock(datetime(2024, 1, 1, tzinfo=UTC))
    log = PushLog(tmp_path / "visits.db", clock=clock)
    log.append(_records(1, 3))
    later = clock.now = clock.now + timedelta(seconds=1)
    log.append(_records(4, 1))
    assert (log.newest_before(later), log.newest_before(later + timedelta(seconds=1))) == (3, 4)
    assert log.newest_before(later - timedelta(days=1)) == 0


def test_appends_of_many_threads_stay_whole_and_share_commits(log: PushLog) -> None:
    begin = threading.Barrier(16)

    def append(writer: int) -> list[int]:
        begin.wait()
        return [log.append([b"%d %d %d" % (writer, turn, part) for part in range(2)]) for turn in range(5)]

    with ThreadPoolExecutor(16) as threads:
        ends = list(threads.map(append, range(16)))
    records = log.read(0, 1_000).records
    assert len(records) == 16 * 5 * 2
    for writer, lasts in enumerate(ends):
        assert lasts == sorted(lasts)
        for turn, last in enumerate(lasts):
            assert records[last - 2 : last] == [b"%d %d %d" % (writer, turn, part) for part in range(2)]
    with log._reading() as connection:
        (commits,) = connection.execute("SELECT count(*) FROM batches").fetchone()
    assert commits < 16 * 5


def test_a_failed_append_leaves_nothing_and_the_next_one_works(log: PushLog) -> None:
    log.append(_records(1, 1))
    with pytest.raises(TypeError):
        log.append([object()])  # type: ignore[list-item]
    assert log.append(_records(2, 1)) == 2


def test_a_forked_process_opens_the_log_for_itself(log: PushLog) -> None:
    log.append(_records(1, 1))
    child = os.fork()
    if child == 0:
        os._exit(0 if log.append(_records(2, 1)) == 2 and log.newest() == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert log.append(_records(3, 1)) == 3
    assert log.read(0, 10).records == _records(1, 3)


def test_nobody_else_may_read_the_log(log: PushLog, tmp_path: Path) -> None:
    log.append(_records(1, 1))
    modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in (tmp_path / "push").iterdir()}
    assert {"visits.db", "visits.db.lock", "visits.db-wal"} <= modes.keys()
    assert all(mode & 0o077 == 0 for mode in modes.values())


def test_names_with_separators_stay_inside_the_home(tmp_path: Path) -> None:
    path = push_log_path(tmp_path, "../prod", "a/b")
    assert path.parent.parent == tmp_path / "push"
    assert path.name == "a%2Fb.db"


def test_a_reader_goes_on_where_the_last_checkpoint_was(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    PushLog(path).append(_records(0, 50))
    chance, position, seen = random.Random(7), None, []
    while len(seen) < 50:
        reader = PushLogReader(path)
        reader.seek({ONLY_PARTITION: position})
        for _ in range(chance.randint(0, 3)):
            for batch in reader.poll(chance.randint(1, 9), AT_ONCE):
                assert len(batch.payloads) <= 9
                seen += batch.payloads
                position = batch.position
        reader.close()
    assert seen == _records(0, 50)


def test_the_first_poll_tells_where_an_empty_log_is_begun(tmp_path: Path) -> None:
    reader = PushLogReader(tmp_path / "visits.db")
    reader.seek({ONLY_PARTITION: None})
    (batch,) = reader.poll(10, AT_ONCE)
    identity = PushLog(tmp_path / "visits.db").identity()
    assert (list(batch.payloads), batch.position) == ([], f"{identity}:0")
    assert reader.poll(10, AT_ONCE) == []


def test_a_waiting_poll_sees_what_another_handle_appends(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    log, reader = PushLog(path), PushLogReader(path)
    reader.seek({ONLY_PARTITION: "0"})
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(reader.poll, 10, timedelta(seconds=20))
        log.append(_records(1, 2))
        (batch,) = waiting.result()
    assert (batch.payloads, batch.position) == (_records(1, 2), f"{log.identity()}:2")


def test_lag_is_what_is_still_to_be_polled(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    PushLog(path).append(_records(1, 5))
    reader = PushLogReader(path)
    assert reader.lag() == ()
    reader.seek({ONLY_PARTITION: None})
    assert [lag.events for lag in reader.lag()] == [5]
    reader.poll(3, AT_ONCE)
    assert [lag.events for lag in reader.lag()] == [2]


def test_a_log_that_was_trimmed_or_is_shorter_than_a_position_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    log, reader = PushLog(path), PushLogReader(path)
    log.append(_records(1, 2))
    log.trim(2)
    for position in ("1", "3", f"{log.identity()}:1", f"{log.identity()}:3"):
        with pytest.raises(StreamPositionLost, match=f"'visits' .* position {position[-1]} "):
            reader.seek({ONLY_PARTITION: position})


def test_a_position_of_an_older_version_is_one_of_the_log_that_is_there(tmp_path: Path) -> None:
    path = tmp_path / "visits.db"
    log, reader = PushLog(path), PushLogReader(path)
    log.append(_records(1, 3))
    assert log.number_of("2") == 2
    reader.seek({ONLY_PARTITION: "2"})
    (batch,) = reader.poll(10, AT_ONCE)
    assert (batch.payloads, batch.position) == (_records(3, 1), f"{log.identity()}:3")


@settings(max_examples=10)
@given(old=st.integers(0, 9), read=st.integers(0, 9), new=st.integers(0, 9), is_open=st.booleans())
def test_of_a_log_that_was_begun_anew_every_record_is_read_once(
    tmp_path_factory: pytest.TempPathFactory, old: int, read: int, new: int, is_open: bool
) -> None:
    path = tmp_path_factory.mktemp("log") / "visits.db"
    log, reader = PushLog(path), PushLogReader(path)
    log.append(_records(0, old))
    reader.seek({ONLY_PARTITION: None})
    position = next((batch.position for batch in reader.poll(max(read, 1), AT_ONCE)), None)
    _lose(path)
    if not is_open:  # another process goes on
        log.close()
        reader.close()
        log, reader = PushLog(path), PushLogReader(path)
        reader.seek({ONLY_PARTITION: position})
    assert log.append(_records(100, new)) == new
    assert [lag.events for lag in reader.lag()] == [new]
    seen: list[bytes] = []
    for _ in range(new + 1):
        for batch in reader.poll(2, AT_ONCE):
            seen += batch.payloads
            position = batch.position
    assert seen == _records(100, new)
    assert position == f"{log.identity()}:{new}"
    assert [lag.events for lag in reader.lag()] == [0]
    log.close()
    reader.close()


def test_a_handle_that_was_open_when_the_log_was_deleted_appends_to_the_new_one(log: PushLog, tmp_path: Path) -> None:
    log.append(_records(1, 2))
    before, path = log.identity(), tmp_path / "push" / "visits.db"
    _lose(path)
    other = PushLog(path)
    assert (log.append(_records(1, 1)), other.append(_records(2, 1))) == (1, 2)
    assert log.identity() == other.identity() != before
    log.close()
    assert other.read(0, 10).records == PushLog(path).read(0, 10).records == _records(1, 2)


def test_numbers_of_a_lost_log_say_nothing_about_the_new_one(log: PushLog, tmp_path: Path) -> None:
    log.append(_records(1, 4))
    found = log.read(0, 3)
    assert log.number_of(found.position) == 3
    _lose(tmp_path / "push" / "visits.db")
    log.append(_records(1, 4))
    assert log.number_of(found.position) == 0
    log.trim(3, found.log)
    assert (log.oldest(), log.read(found.last, 1, found.log).records) == (0, _records(1, 1))


def _lose(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def test_a_log_that_is_begun_anew_has_another_identity(log: PushLog, tmp_path: Path) -> None:
    assert log.identity() == PushLog(tmp_path / "push" / "visits.db").identity()
    assert log.identity() != PushLog(tmp_path / "other.db").identity()
