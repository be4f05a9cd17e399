"""Where datasets are kept: buckets once each, the manifest last, rows in their order, keys that are found."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from featurekit_dagster.errors import LeaseLost, NotFoundError
from featurekit_dagster.stores.datasets import ROW, Datasets

REFERENCES = [
    {"view": "spending", "join_keys": ["user", "shop"], "spine_keys": ["buyer", "shop"]},
    {"view": "visits", "join_keys": ["user"], "spine_keys": ["visitor"]},
]


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    return Datasets(str(tmp_path / "lake" / "shop"))


def rows(first: int, *buyers: str | None) -> pa.Table:
    """Return rows whose numbers begin with `first`, in an order that is not theirs."""
    numbers = list(range(first, first + len(buyers)))
    table = pa.table(
        {
            ROW: pa.array(numbers, pa.int64()),
            "buyer": pa.array(buyers, pa.string()),
            "shop": pa.array(numbers, pa.int64()),
            "visitor": pa.array([f"visitor {n}" for n in numbers]),
            "spending.sum": pa.array([n / 2 for n in numbers]),
        }
    )
    return table.take(list(reversed(range(len(numbers)))))


def test_bucket_that_is_stored_again_is_stored_once(datasets: Datasets) -> None:
    datasets.append("training", 0, rows(0, "ann", "bob"), epoch=1, job_id="job")
    datasets.append("training", 1, rows(2, "cle"), epoch=1, job_id="job")
    for bucket in (0, 1):
        datasets.append("training", bucket, rows(0, "again"), epoch=1, job_id="job")
    assert (datasets.buckets("training"), datasets.row_count("training")) == (2, 3)


def test_writer_whose_lease_was_taken_over_stores_nothing(datasets: Datasets) -> None:
    datasets.append("training", 0, rows(0, "ann"), epoch=7, job_id="job")
    with pytest.raises(LeaseLost):
        datasets.append("training", 1, rows(1, "bob"), epoch=6, job_id="job")
    assert datasets.row_count("training") == 1


def test_rows_come_in_their_order_whatever_order_they_were_stored_in(datasets: Datasets) -> None:
    datasets.append("training", 0, rows(0, "ann", "bob", "cle"), epoch=1, job_id="job")
    datasets.append("training", 1, rows(3, "dan", None), epoch=1, job_id="job")
    for piece_rows in (1, 2, 3, 100):
        found = pa.concat_tables(datasets.pieces("training", piece_rows, 5))
        assert found["buyer"].to_pylist() == ["ann", "bob", "cle", "dan", None]
        assert found.column_names == ["buyer", "shop", "visitor", "spending.sum"] == datasets.schema("training").names


def test_dataset_is_there_with_its_manifest_and_not_before(datasets: Datasets) -> None:
    assert (datasets.names(), datasets.begun()) == ((), ())
    datasets.write_request("training", {"job_id": "job", "request": {"references": REFERENCES}})
    datasets.append("training", 0, rows(0, "ann"), epoch=1, job_id="job")
    assert (datasets.names(), datasets.begun()) == ((), ("training",))
    with pytest.raises(NotFoundError):
        datasets.manifest("training")
    datasets.write_manifest("training", {"rows": 1})
    assert (datasets.names(), datasets.begun()) == (("training",), ())
    assert datasets.manifest("training") == {"rows": 1}
    datasets.remove("training")
    assert (datasets.names(), datasets.begun(), datasets.row_count("training")) == ((), (), 0)
    datasets.remove("training")


def test_datasets_that_have_a_key_are_found_whatever_the_columns_are_called(datasets: Datasets) -> None:
    for name in ("finished", "begun"):
        datasets.write_request(name, {"job_id": "job", "request": {"references": REFERENCES}})
        datasets.append(name, 0, rows(0, "ann", None), epoch=1, job_id="job")
    datasets.write_manifest("finished", {"rows": 2})
    datasets.write_request("empty", {"job_id": "job", "request": {"references": REFERENCES}})

    def found(view: str, **keys: object) -> tuple[str, ...]:
        return datasets.with_keys(view, pa.table({name: pa.array([value]) for name, value in keys.items()}))

    both = ("begun", "finished")
    assert found("spending", user="ann", shop=0) == found("spending", shop=0, user="ann") == both
    assert found("spending", user=None, shop=1) == both
    assert found("spending", user="ann", shop=1) == ()
    assert found("visits", user="visitor 1") == both
    assert found("visits", user="ann") == found("others", user="ann") == ()
    assert datasets.with_keys("visits", pa.table({"user": pa.array([], pa.string())})) == ()


def test_archived_dataset_is_marked_until_it_is_not(datasets: Datasets) -> None:
    datasets.write_manifest("training", {})
    for time in ("2024-01-01T00:00Z", None):
        datasets.archive("training", time)
        assert datasets.is_archived("training") is (time is not None)
