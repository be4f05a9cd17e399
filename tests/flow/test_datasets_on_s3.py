"""Datasets in a lake on S3: made, gone on with, found, read and taken away as in a local one."""

from __future__ import annotations

from pathlib import Path

import boto3
import pandas as pd
import pyarrow as pa
import pytest

from featurekit_dagster import Workspace
from tests.support.clock import Clock
from tests.support.datasets import content, ended_by, made, make
from tests.support.published import DAYS, day, materialize, published_view, write_events
from tests.support.s3_moto import s3_server

BUCKET = "datasets"


@pytest.mark.slow
def test_dataset_on_s3_is_made_bucket_by_bucket_and_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_events(tmp_path / "events.parquet", [("a", 20, 1), ("b", 50, 2), ("a", 75, 3), ("b", 130, 4)])
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        store = boto3.client("s3", region_name=environment["AWS_REGION"])
        store.create_bucket(Bucket=BUCKET)
        view = published_view("tiles", tmp_path / "events.parquet")
        lake = f"s3://{BUCKET}/lake"
        workspace = Workspace("world", [view], home=tmp_path / "home", lake=lake, clock=Clock(day(DAYS + 3)))
        materialize(workspace, 0, 7)
        spine = pd.DataFrame({"user": ["a", "b", "c", "a", "b"], "asked_at": [day(n) for n in (5, 6, 6, 5, 6)]})
        frame = workspace.get_feature_view("seen").get_features_for_events(spine)
        job = frame.start_dataset_job("training", extra_config={"bucket_rows": 2})
        assert workspace.stores.datasets.begun() == ("training",)
        assert ended_by(lambda: make(workspace, job, buckets=2))
        dataset = made(workspace, job)
        assert workspace.list_datasets() == ["training"]
        assert dataset.storage_location == f"{lake}/world/datasets/training"
        assert dataset.manifest["content_sha256"] == content(frame.to_arrow())
        assert dataset.to_dataframe().to_arrow().to_pylist() == frame.to_arrow().to_pylist()
        assert dataset.reproduce().is_equal
        for user, found in (("c", ("training",)), ("d", ())):
            assert workspace.stores.datasets.with_keys("seen", pa.table({"user": [user]})) == found
        dataset.archive()
        assert workspace.list_datasets() == []
        dataset.delete()
        left = store.list_objects_v2(Bucket=BUCKET, Prefix="lake/world/datasets/")
        assert left["KeyCount"] == 0
