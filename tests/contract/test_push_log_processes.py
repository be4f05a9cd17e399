"""Several processes append to one push log, and some are killed: what was answered for is there, once and in order."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featurekit_dagster.streams.push_log import PushLog
from tests.conftest import ROOT, SOAK

WRITER = "tests.support.push_log_writer"


@contextmanager
def _writing(path: Path, answers: Path, name: str, turns: int) -> Iterator[subprocess.Popen[bytes]]:
    with answers.open("ab") as out:
        writer = subprocess.Popen([sys.executable, "-m", WRITER, str(path), name, str(turns)], cwd=ROOT, stdout=out)
        try:
            yield writer
        finally:
            writer.kill()
            writer.wait()


def _check(path: Path, answers: Path) -> int:
    """Hold every answer against the log, and return how many there are."""
    log = PushLog(path)
    found = [record.decode() for record in log.read(0, 10_000_000).records]
    log.close()
    assert len(found) == len(set(found))
    lines = [line for line in answers.read_text().splitlines(keepends=True) if line.endswith("\n")]
    for line in lines:
        writer, thread, turn, last = line.split()
        parts = [f"{writer} {thread} {turn} {part}" for part in range(1 + int(turn) % 3)]
        assert found[int(last) - len(parts) : int(last)] == parts
    by_thread: dict[str, list[int]] = {}
    for record in found:
        writer, thread, turn, _ = record.split()
        by_thread.setdefault(f"{writer} {thread}", []).append(int(turn))
    assert all(turns == sorted(turns) for turns in by_thread.values())
    return len(lines)


def test_several_processes_append_to_one_log(tmp_path: Path) -> None:
    path, answers = tmp_path / "log.db", [tmp_path / f"answers{number}" for number in range(3)]
    running = [_writing(path, answers[number], str(number), 40) for number in range(3)]
    with running[0] as first, running[1] as second, running[2] as third:
        assert [writer.wait(300) for writer in (first, second, third)] == [0, 0, 0]
    assert sum(_check(path, file) for file in answers) == 3 * 3 * 40


@pytest.mark.slow
def test_what_a_killed_process_answered_for_is_logged(tmp_path: Path) -> None:
    chance, path, answered = random.Random(20), tmp_path / "log.db", 0
    for turn in range(200 if SOAK else 20):
        answers = tmp_path / f"answers{turn}"
        with _writing(path, answers, str(turn), 1_000_000) as writer:
            deadline = time.monotonic() + 300
            while answers.stat().st_size == 0 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.1))
            assert writer.poll() is None
            writer.kill()
            writer.wait()
        answered += _check(path, answers)
    assert answered > turn
