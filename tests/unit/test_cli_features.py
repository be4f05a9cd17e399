"""`featurekit get` and `historical`: reading features from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from pyarrow import csv, parquet
from typer.testing import CliRunner

from featurekit_dagster.cli import app
from featurekit_dagster.cli_input import parse_keys, write_frame
from featurekit_dagster.domain.schema import JOIN_KEY_TYPES, Field
from featurekit_dagster.errors import Unsupported
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.sdk import Workspace
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, NOW, shop_workspace, write_purchases

LATEST = "user_most_recent_purchase_with_everything"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Path]:
    """A workspace whose views are materialized up to its time, and the folder it is in."""
    folder = tmp_path_factory.mktemp("filled")
    write_purchases(folder / "purchases.parquet")
    workspace = shop_workspace(folder)
    for plan in workspace.plan():
        for run in plan.runs:
            list(run_tasks(workspace.repo.view(plan.view), run.tasks, workspace.stores, trigger="backfill"))
    by_hand = workspace.plan_interval("last_purchase", FIRST_DAY, NOW, overwrite=False)
    list(run_tasks(workspace.repo.view("last_purchase"), by_hand.tasks, workspace.stores, trigger="manual"))
    return workspace, folder


@pytest.fixture
def shop(filled: tuple[Workspace, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the filled workspace, which the command line finds."""
    bind(*filled, monkeypatch)
    return filled[1]


def refused(*arguments: str, exit_code: int) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert (result.exit_code, result.stdout) == (exit_code, "")
    assert "Traceback" not in result.stderr
    return result.stderr


def write_spine(path: Path) -> Path:
    times = [FIRST_DAY + 5 * DAY, FIRST_DAY + 8 * DAY, FIRST_DAY + 8 * DAY]
    columns = {"user_id": pa.array([7, 8, 9], pa.int64()), "when": pa.array(times, pa.timestamp("us", tz="UTC"))}
    table = pa.table({**columns, "label": pa.array([True, False, True])})
    if path.suffix == ".csv":
        csv.write_csv(table, path)
    else:
        parquet.write_table(table, path)
    return path


@pytest.mark.usefixtures("shop")
def test_get_prints_a_feature_per_line_with_status_and_effective_time() -> None:
    assert output("get", "spend", "user_id=7").splitlines() == [
        "Feature   Value  Status   Effective time",
        "────────────────────────────────────────",
        "sum_1d    100.0  PRESENT  2024-01-11",
        "sum_3d    270.0  PRESENT  2024-01-11",
        "count_1d      1  PRESENT  2024-01-11",
        "count_3d      3  PRESENT  2024-01-11",
    ]


@pytest.mark.usefixtures("shop")
def test_get_json_of_a_service_has_every_view() -> None:
    records = json.loads(output("get", "offers", "user_id=8", "--json"))
    names = ["spend.sum_1d", "spend.sum_3d", "spend.count_1d", "spend.count_3d", "last_purchase.amount"]
    assert [record["name"] for record in records] == names
    assert records[-1] == {
        "name": names[-1], "status": "PRESENT", "value": 101.0, "effective_time": "2024-01-11T00:00Z"
    }  # fmt: skip


@pytest.mark.usefixtures("shop")
def test_get_of_an_unknown_entity_says_missing_data() -> None:
    records = json.loads(output("get", "spend", "user_id=12345", "--json"))
    assert {record["status"] for record in records} == {"MISSING_DATA"}
    assert [record["value"] for record in records] == [None, None, 0, 0]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (["user_id=seven-eleven"], "the value of 'user_id' is no Int64; give a whole number of 64 bits"),
        (["user_id=99999999999999999999"], "the value of 'user_id' is no Int64; give a whole number of 64 bits"),
        (["user_id"], "argument 1 has no '='; give join keys as name=value"),
        (["user=7"], "'user' is no join key; those are user_id: Int64"),
        (["user_id=7", "user_id=8"], "join key 'user_id' is given twice"),
    ],
)
@pytest.mark.usefixtures("shop")
def test_join_keys_are_parsed_by_their_type_and_never_shown(pairs: list[str], message: str) -> None:
    answer = " ".join(refused("get", "spend", *pairs, exit_code=2).split())
    assert message in answer
    assert "seven-eleven" not in answer
    assert "9999" not in answer


@pytest.mark.usefixtures("shop")
def test_get_of_an_unknown_name_lists_views_and_services() -> None:
    answer = refused("get", "spent", "user_id=7", exit_code=1)
    names = f"last_purchase, offers, spend, {LATEST}"
    known = f"there are {names}; did you mean 'spend'?"
    assert answer == f"error: no feature view or feature service named 'spent'; {known}\n"


@pytest.mark.usefixtures("shop")
def test_get_of_a_view_that_is_not_online_is_refused() -> None:
    assert refused("get", LATEST, "user_id=7", exit_code=1).startswith("error: ")


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
@pytest.mark.parametrize("source", ["--from-source", "--from-store"])
def test_historical_writes_the_spine_with_features(shop: Path, tmp_path: Path, ending: str, source: str) -> None:
    spine, out = write_spine(tmp_path / f"spine{ending}"), tmp_path / f"out{ending}"
    text = output("historical", "spend", "--spine", str(spine), source, "--out", str(out), width=400)
    assert text == f"3 rows, 7 columns written to {out}\n"
    table = parquet.read_table(out) if ending == ".parquet" else csv.read_csv(out)
    assert table.column_names[:3] == ["user_id", "when", "label"]
    assert table["spend__sum_3d"].to_pylist() == [30.0 + 40.0 + 50.0, 61.0 + 71.0 + 81.0, None]
    assert table["spend__count_1d"].to_pylist() == [1, 1, 0]


def test_historical_prints_the_head_and_the_shape(shop: Path, tmp_path: Path) -> None:
    spine = write_spine(tmp_path / "spine.parquet")
    wide = output("historical", "spend", "--spine", str(spine), width=140)
    features = ["spend__sum_1d", "spend__sum_3d", "spend__count_1d", "spend__count_3d"]
    assert wide.splitlines()[0].split() == ["user_id", "when", "label", *features]
    narrow = output("historical", "spend", "--spine", str(spine), width=80)
    assert narrow.splitlines()[0].split() == ["Column", "Type", "Row", "1", "Row", "2", "Row", "3"]
    assert max(map(len, narrow.splitlines())) <= 80
    assert wide.splitlines()[-1] == narrow.splitlines()[-1] == "3 rows, 7 columns"


@pytest.mark.usefixtures("shop")
def test_historical_of_a_time_range_as_json() -> None:
    answer = json.loads(output("historical", LATEST, "--start", "2024-01-05", "--end", "2024-01-06", "--json"))
    assert answer["rows"] == 2
    assert [column["name"] for column in answer["columns"]][-2:] == ["_valid_from", "_valid_to"]
    assert answer["head"][0]["_valid_from"] == "2024-01-05T00:00Z"


def test_a_service_is_read_with_a_spine_only(shop: Path, tmp_path: Path) -> None:
    spine = write_spine(tmp_path / "spine.parquet")
    answer = json.loads(output("historical", "offers", "--spine", str(spine), "--json"))
    assert answer["columns"][-1]["name"] == "last_purchase__amount"
    assert [row["last_purchase__amount"] for row in answer["head"]] == [50.0, 81.0, None]
    range_answer = refused("historical", "offers", "--start", "2024-01-05", "--end", "2024-01-06", exit_code=2)
    assert "'offers' is a feature service, which is read with --spine" in " ".join(range_answer.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "2024-01-05"], "give either --spine, or --start and --end"),
        ([], "give either --spine, or --start and --end"),
        (["--start", "yesterday", "--end", "2024-01-05"], "'yesterday' is no ISO time"),
        (["--spine", "nowhere.csv"], "nowhere.csv"),
        (["--spine", "spine.txt"], "'spine.txt' ends in neither .parquet nor .csv"),
        (["--start", "2024-01-05", "--end", "2024-01-06", "--out", "none/out.csv"], "there is no folder 'none'"),
    ],
)
def test_historical_refuses_what_it_cannot_read(shop: Path, arguments: list[str], message: str) -> None:
    (shop / "spine.txt").write_text("user_id\n")
    assert message in " ".join(refused("historical", "spend", *arguments, exit_code=2).split())


def test_lists_are_not_written_to_csv(tmp_path: Path) -> None:
    table = pa.table({"user_id": [7], "shops": [["s1", "s2"]]})
    with pytest.raises(Unsupported, match=r"out\.csv: a CSV file cannot hold the lists of shops; write \.parquet"):
        write_frame(table, tmp_path / "out.csv")
    write_frame(table, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet") == table


def test_every_join_key_type_is_parsed_from_text() -> None:
    fields = [Field(dtype.name, dtype) for dtype in JOIN_KEY_TYPES]
    texts = ["String= a=b ", "Int32=-5", "Int64=9223372036854775807", "Bytes=00ff", "Bool=True", "Timestamp=2024-01-05"]
    assert parse_keys(texts, fields) == {
        "String": " a=b ",
        "Int32": -5,
        "Int64": 2**63 - 1,
        "Bytes": b"\x00\xff",
        "Bool": True,
        "Timestamp": FIRST_DAY + 4 * DAY,
    }
    for text in ("Int32=2147483648", "Bytes=0", "Bool=maybe", "Timestamp=noon"):
        with pytest.raises(typer.BadParameter, match="is no "):
            parse_keys([text], fields)


def test_an_unreadable_spine_is_refused_without_showing_its_rows(shop: Path, tmp_path: Path) -> None:
    spine = tmp_path / "spine.csv"
    spine.write_text("user_id,when\nsecret-person,2024-01-05T00:00:00Z\n")
    answer = refused("historical", "spend", "--spine", str(spine), exit_code=1)
    assert answer.startswith("error: source 'spine.csv' cannot be read")
    assert "secret-person" not in answer
