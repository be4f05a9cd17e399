"""A dataset that is too large to be made at once: within its memory, cancelled, killed, and the same in the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from featurekit_dagster import Workspace
from tests.conftest import ROOT, SOAK
from tests.support.large_dataset import job_of, large_workspace, prepare

ROWS, BUCKET_ROWS, EVENTS, USERS = (1_000_000, 100_000, 4_000_000, 100_000) if SOAK else (9_000, 1_000, 30_000, 2_000)
BUCKETS = ROWS // BUCKET_ROWS
BUDGET, MOST_BYTES = "2GB", 3 * 10**9


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which two datasets of the same rows wait, filled by another process."""
    path = tmp_path_factory.mktemp("large")
    settings = {"events": EVENTS, "users": USERS, "rows": ROWS, "bucket_rows": BUCKET_ROWS}
    child = get_context("spawn").Process(
        target=prepare, args=(path,), kwargs={**settings, "datasets": ["whole", "interrupted"]}
    )
    child.start()
    child.join()
    assert child.exitcode == 0
    return path


def start(folder: Path, name: str, buckets: int = 0) -> subprocess.Popen[str]:
    """Start a process that carries out the job of a dataset, and stops itself after so many buckets."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FEATUREKIT_MEMORY": BUDGET}
    command = [sys.executable, "-m", "tests.support.large_dataset", str(folder), name, str(buckets)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def finish(folder: Path, name: str) -> int:
    """Carry out the job of a dataset to its end and return the most memory that this took."""
    process = start(folder, name)
    printed, _ = process.communicate(timeout=3_000)
    assert process.returncode == 0
    return int(printed)


def interrupt(folder: Path, workspace: Workspace, buckets: int, end: Callable[[subprocess.Popen[str]], None]) -> int:
    """Let a process make some buckets of a dataset, end it, and return its exit code."""
    job, process = job_of(workspace, "interrupted"), start(folder, "interrupted", buckets)
    seen = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    assert seen is not None
    assert seen.si_code == os.CLD_STOPPED
    end(process)
    process.send_signal(signal.SIGCONT)
    process.communicate(timeout=600)
    assert job.progress[0] == buckets
    assert job.get_dataset() is None
    return process.returncode


@pytest.mark.slow
def test_dataset_that_was_cancelled_and_killed_is_that_of_an_uninterrupted_job(folder: Path) -> None:
    workspace = large_workspace(folder)
    job = job_of(workspace, "interrupted")
    assert interrupt(folder, workspace, BUCKETS // 3, lambda _: job.cancel()) == 1
    assert job.state == "MANUALLY_CANCELLED"
    job.retry()
    assert interrupt(folder, workspace, BUCKETS // 2, lambda process: process.kill()) == -signal.SIGKILL
    most = [finish(folder, name) for name in ("interrupted", "whole")]
    found = [workspace.get_dataset(name) for name in ("interrupted", "whole")]
    assert found[0].manifest["content_sha256"] == found[1].manifest["content_sha256"]
    assert [each.row_count for each in found] == [ROWS, ROWS]
    assert len(found[0].features) == 3 * 3 + 2 * 3 + 2
    assert max(most) < MOST_BYTES
