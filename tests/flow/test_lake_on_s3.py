"""A lake on S3: everything that is kept there is written, read, tidied, repaired and removed as in a local one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from featurekit_dagster import Workspace
from featurekit_dagster.execution.maintenance import maintain_view
from featurekit_dagster.execution.publish import Published
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.planning.tasks import OFFLINE
from featurekit_dagster.stores.dead_letters import DeadLetters
from featurekit_dagster.stores.lake_files import LakeFiles
from featurekit_dagster.stores.stream_state import DeadLetter
from tests.support.clock import Clock
from tests.support.published import (
    DAYS,
    day,
    export,
    materialize,
    published_view,
    rows_expected,
    rows_published,
    write_events,
)
from tests.support.s3_moto import s3_server

ROOT = Path(__file__).resolve().parents[2]
EVENTS = [("a", 20, 1), ("b", 50, 2), ("a", 75, 3), ("c", 100, None), ("a", 130, 3), ("b", 200, 4)]
ROUNDS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A new bucket, which the environment says how to reach."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    name = request.node.name.replace("_", "-")[:60].strip("-")
    boto3.client("s3", region_name=server["AWS_REGION"]).create_bucket(Bucket=name)
    return name


def keys(bucket: str) -> list[str]:
    found = boto3.client("s3", region_name="us-east-1").list_objects_v2(Bucket=bucket)
    return [each["Key"] for each in found.get("Contents", ())]


def workspace_on(lake: str | None, folder: Path) -> Workspace:
    view = published_view("tiles", folder / "events.parquet")
    return Workspace("world", [view], home=folder / f"home of {bool(lake)}", lake=lake, clock=Clock(day(DAYS + 3)))


def answers(workspace: Workspace) -> list[pd.DataFrame]:
    spine = pd.DataFrame({"user": ["a", "b", "c", "nobody"], "ts": pd.to_datetime([day(5), day(6), day(6), day(6)])})
    handle = workspace.get_feature_view("seen")
    at_times = handle.get_features_for_events(spine, timestamp_key="ts").to_pandas()
    over_time = handle.get_features_in_range(day(5), day(7)).to_pandas()
    return [at_times, over_time.sort_values(["user", "_valid_from"], ignore_index=True)]


def test_a_lake_on_s3_lives_as_a_local_one(bucket: str, tmp_path: Path) -> None:
    write_events(tmp_path / "events.parquet", EVENTS)
    remote, local = workspace_on(f"s3://{bucket}/lake", tmp_path), workspace_on(None, tmp_path)
    for workspace in (remote, local):
        materialize(workspace, 0, 6)
        materialize(workspace, 2, 4)
    for far, near in zip(answers(remote), answers(local), strict=True):
        pd.testing.assert_frame_equal(far, near)
    assert all(name.startswith("lake/world/") for name in keys(bucket))
    view, stores = remote.repo.view("seen"), remote.stores
    export(remote)
    assert rows_published(remote) == rows_expected(remote, Published.of(view, stores).windows()) != []
    (job,) = maintain_view(view, stores, trigger="test", retention=timedelta(0))
    assert job.stats["files_deleted"] > 0
    for far, near in zip(answers(remote), answers(local), strict=True):
        pd.testing.assert_frame_equal(far, near)
    covered = stores.coverage(view, OFFLINE)
    stores.ledger.restore_coverage("world", "seen", OFFLINE, IntervalSet())
    (repaired,) = repair_coverage([view], stores)
    assert (repaired.store, repaired.after, stores.coverage(view, OFFLINE)) == (OFFLINE, covered, covered)
    stores.offline.drop("seen", 1)
    assert not stores.offline.exists("seen")
    assert [name for name in keys(bucket) if "/offline/" in name] == []


def test_files_and_tables_beside_the_views_are_kept_there_too(bucket: str) -> None:
    files = LakeFiles(f"s3://{bucket}/lake/datasets")
    assert (files.folders(), files.read_json("one/manifest.json")) == ((), None)
    files.write_json("one/manifest.json", {"rows": 1})
    long = {"rows": list(range(600_000))}
    files.write_json("one/manifest.json", long)
    spine = pa.table({"row": np.random.default_rng(1).random(600_000)})
    with files.writing("two/spine.parquet") as stream:
        pq.write_table(spine, stream)
    assert files.folders() == ("one", "two")
    assert files.read_json("one/manifest.json") == long
    assert pq.read_table(files.reading("two/spine.parquet")) == spine
    files.remove_folder("two")
    assert files.folders() == ("one",)
    letters = DeadLetters(f"s3://{bucket}/lake/world/dead_letters/seen")
    letter = DeadLetter(partition="0", number=1, reason="late", payload=b"event")
    letters.append([letter], day(1))
    letters.append([letter], day(1))
    assert letters.read()["payload"].to_pylist() == [b"event"]


@pytest.mark.filterwarnings("ignore:.* no Dagster daemon gives a sign of life")
def test_deleted_keys_and_datasets_are_kept_there(bucket: str, tmp_path: Path) -> None:
    write_events(tmp_path / "events.parquet", EVENTS)
    workspace = workspace_on(f"s3://{bucket}/lake", tmp_path)
    materialize(workspace, 0, 6)
    export(workspace)
    handle = workspace.get_feature_view("seen")
    (deletion,) = handle.delete_keys(pd.DataFrame({"user": ["a"]}), online=False) or ()
    done = handle.wait_for_deletion_job(deletion)
    assert done.state == "SUCCESS"
    assert {row[0] for row in rows_published(workspace)} == {"b"}
    materialize(workspace, 0, 6)
    spine = pd.DataFrame({"user": ["a", "b"], "ts": pd.to_datetime([day(6), day(6)])})
    frame = handle.get_features_for_events(spine, timestamp_key="ts")
    frame.start_dataset_job("kept").wait_for_completion()
    dataset = workspace.get_dataset("kept").to_dataframe().to_pandas()
    assert dataset["seen__v_sum_3d_6h_offset_1d"].isna().tolist() == [True, False]
    assert workspace.list_datasets() == ["kept"]
    assert {name.split("/")[2] for name in keys(bucket)} == {"_featurekit", "datasets", "offline"}


def test_two_processes_that_write_one_table_lose_nothing(bucket: str) -> None:
    root, writers = f"s3://{bucket}/lake", {"early": "seen:0-12", "late": "seen:12-24"}
    started = [_writer(root, name, part) for name, part in writers.items()]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=600)
    assert [process.returncode for process in started] == [0, 0]
    table = DeltaTable(f"{root}/offline/seen/g1")
    rows = table.to_pyarrow_table().to_pylist()
    assert len(rows) == 24
    assert {(row["writer"], row["round"]) for row in rows} == {(name, ROUNDS - 1) for name in writers}
    assert len(table.history()) == 2 * ROUNDS


def _writer(root: str, name: str, part: str) -> subprocess.Popen[str]:
    command: list[Any] = [sys.executable, "-m", "tests.support.offline_writer", root, name, str(ROUNDS), part]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
