"""The spine of a dataset: read from frames, files and queries, kept with one row group per bucket."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import csv, parquet

from featurekit_dagster import Field, Int64, String
from featurekit_dagster.errors import FeatureKitError, QueryRefused, SourceError, SpineError
from featurekit_dagster.execution.dataset_spine import SpineReader, opened_spine, spine_bucket, write_spine
from featurekit_dagster.intervals import Interval
from featurekit_dagster.stores.datasets import Datasets

KEYS = [Field("code", String), Field("shop", Int64)]
TIMES = [datetime(2024, 1, day, tzinfo=UTC) for day in (3, 1, 2)]
ROWS = pa.table({"code": ["007", "b", None], "shop": [1, 2, 3], "seen_at": pa.array(TIMES, pa.timestamp("us", "UTC"))})


def kept(datasets: Datasets, given: Any, bucket_rows: int = 2) -> list[dict[str, Any]]:
    """Return the rows that are kept of a spine."""
    with opened_spine(given, KEYS) as reader:
        facts = write_spine(datasets, "training", reader, bucket_rows=bucket_rows, timestamp_key="seen_at")
    assert facts.rows == 3
    assert facts.interval == Interval(TIMES[1], TIMES[0].replace(microsecond=1))
    buckets = [spine_bucket(datasets, "training", number) for number in range(-(-facts.rows // bucket_rows))]
    return pa.concat_tables(buckets).to_pylist()


def test_spine_is_the_same_whatever_it_is_given_as(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = Datasets(str(tmp_path / "lake"))
    parquet.write_table(ROWS, tmp_path / "spine.parquet")
    csv.write_csv(ROWS, tmp_path / "spine.csv")
    monkeypatch.chdir(tmp_path)
    given = [ROWS, ROWS.to_pandas(), pl.DataFrame(ROWS), "spine.parquet", tmp_path / "spine.parquet"]
    for each in [*given, "SELECT code, shop, seen_at FROM 'spine.parquet'"]:
        assert kept(datasets, each) == ROWS.to_pylist(), each
    texts = [{**row, "code": row["code"] or ""} for row in ROWS.to_pylist()]  # CSV knows no NULL of text
    assert kept(datasets, "spine.csv") == texts


@settings(max_examples=20)
@given(batches=st.lists(st.integers(0, 7), max_size=6), bucket_rows=st.integers(1, 5))
def test_every_bucket_is_one_row_group_however_the_rows_come(
    tmp_path_factory: pytest.TempPathFactory, batches: list[int], bucket_rows: int
) -> None:
    datasets = Datasets(str(tmp_path_factory.mktemp("lake")))
    total = sum(batches)
    whole = pa.table({"n": pa.array(range(total), pa.int64())})
    ends = [sum(batches[: number + 1]) for number in range(len(batches))]
    pieces = [whole.slice(end - size, size) for end, size in zip(ends, batches, strict=True)]
    found = [batch for piece in pieces for batch in piece.to_batches()]
    reader = SpineReader(whole.schema, found)
    facts = write_spine(datasets, "spine", reader, bucket_rows=bucket_rows, timestamp_key=None)
    assert (facts.rows, facts.interval) == (total, None)
    for bucket in range(-(-total // bucket_rows)):
        assert spine_bucket(datasets, "spine", bucket) == whole.slice(bucket * bucket_rows, bucket_rows)
    assert facts == write_spine(
        datasets, "spine", SpineReader(whole.schema, whole.to_batches()), bucket_rows=1, timestamp_key=None
    )


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ("gone.parquet", SourceError, "there is no such file"),
        ("broken.parquet", SourceError, "it is no parquet file"),
        ("wrong.csv", SourceError, "its join keys are not"),
        ("SELEC 1", QueryRefused, "Parser Error"),
        ("SELECT 1 AS code; SELECT 2 AS code", QueryRefused, "give one SELECT"),
        ("SET threads = 1", QueryRefused, "it is no query of rows"),
        ("SELECT error('a secret value') AS code", QueryRefused, "InvalidInputException"),
        ("SELECT 'a secret value' AS code, 1 AS shop, NULL::TIMESTAMP AS seen_at", SpineError, "empty in every row"),
    ],
)
def test_spine_that_cannot_be_read_is_refused_without_its_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, error: type[FeatureKitError], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.parquet").write_text("a secret value")
    Path("wrong.csv").write_text("code,shop,seen_at\nx,a secret value,2024-01-01\n")
    datasets = Datasets(str(tmp_path / "lake"))
    with pytest.raises(error, match=words) as refused, opened_spine(given, KEYS) as reader:
        write_spine(datasets, "training", reader, bucket_rows=2, timestamp_key="seen_at")
    assert "secret" not in str(refused.value)
