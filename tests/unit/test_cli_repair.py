"""`featurekit repair`: a ledger that was lost, and a Dagster that shows something else than it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.orchestration.partitions import keys_of
from featurekit_dagster.orchestration.run import open_instance
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.planner import split_tasks
from tests.support.delta_log import forget_log
from tests.unit.cli_runner import bind, output
from tests.unit.cli_shop import DAY, FIRST_DAY, shop_workspace, write_purchases


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    write_purchases(tmp_path / "purchases.parquet")
    return bind(shop_workspace(tmp_path), tmp_path, monkeypatch)


def days(first: int, end: int) -> Interval:
    return Interval(FIRST_DAY + first * DAY, FIRST_DAY + end * DAY)


def fill(shop: Workspace, name: str, *spans: Interval) -> None:
    """Materialize intervals of a view below Dagster."""
    view = shop.repo.view(name)
    for span in spans:
        tasks = split_tasks(view, span, online=view.online, offline=view.offline)
        list(run_tasks(view, tasks, shop.stores, trigger="test"))


def lose_ledger(shop: Workspace) -> None:
    shop.stores.ledger.close()
    for file in shop.home.glob("ledger.db*"):
        file.unlink()
    del shop.__dict__["stores"]
    assert shop.snapshot().covered == {}


def shown(shop: Workspace, view: str) -> set[str]:
    with open_instance(shop) as instance:
        return set(instance.get_materialized_partitions(dg.AssetKey(view)))


def repaired(*arguments: str) -> dict[str, Any]:
    found = json.loads(output("repair", *arguments, "--json"))
    assert isinstance(found, dict)
    return found


def test_a_ledger_that_was_lost_is_read_back_from_the_stores(shop: Workspace) -> None:
    fill(shop, "spend", days(0, 10))
    fill(shop, "last_purchase", days(0, 2), days(4, 6))
    known = shop.snapshot().covered
    lose_ledger(shop)
    lines = [line.split() for line in output("repair", "--no-dagster", width=120).splitlines()]
    spans = ["[2024-01-01,", "2024-01-03),", "[2024-01-05,", "2024-01-07)"]
    assert ["last_purchase", "offline", "nothing", *spans] in lines
    assert ["last_purchase", "online", "nothing", *spans] in lines
    assert shop.snapshot().covered == known
    assert "as it was" in output("repair", "spend", "--no-dagster", width=120)
    output("materialize", "last_purchase", "--start", "2024-01-01", "--end", "2024-01-03", "--overwrite")
    assert shop.snapshot().covered == known


def test_coverage_is_read_back_after_the_log_of_the_table_was_cleaned_up(shop: Workspace) -> None:
    fill(shop, "last_purchase", days(0, 2), days(4, 6))
    known = shop.snapshot().covered
    forget_log(shop.stores.offline.location("last_purchase"))  # type: ignore[attr-defined]  # it is a Delta table
    lose_ledger(shop)
    repaired("last_purchase", "--no-dagster")
    assert shop.snapshot().covered == known


def test_a_view_that_was_rebuilt_is_told_by_generation(shop: Workspace) -> None:
    fill(shop, "spend", days(0, 10))
    shop.stores.ledger.rebuild(shop.name, "spend", StoredShape.of(shop.repo.view("spend")))
    fill(shop, "spend", days(0, 10))
    known = shop.snapshot()
    assert known.generation["spend"] == 2
    lose_ledger(shop)
    text = output("repair", "spend", "--no-dagster", width=120)
    assert [line.split()[:4] for line in text.splitlines()[2:]] == [
        ["spend", str(generation), store, "nothing"] for generation in (1, 2) for store in ("offline", "online")
    ]
    assert (shop.snapshot().covered, shop.snapshot().generation) == (known.covered, known.generation)
    assert [each["generation"] for each in repaired("spend", "--no-dagster")["stores"]] == [1, 1, 2, 2]


def test_covered_partitions_that_dagster_does_not_show_are_reported_to_it(shop: Workspace) -> None:
    fill(shop, "spend", days(0, 3), days(5, 10))
    text = output("repair", "spend", width=120)
    assert text.endswith("\n\nDagster\n  spend: 8 covered partitions reported as materialized\n")
    covered = [days(0, 3), days(5, 10)]
    assert shown(shop, "spend") == set(keys_of(shop.repo.view("spend"), covered))
    assert output("repair", "spend", width=120).endswith("\n\nDagster shows what is covered.\n")


def test_partitions_that_are_shown_and_not_covered_are_named_with_what_to_do(shop: Workspace) -> None:
    output("materialize", "last_purchase", "--start", "2024-01-01", "--end", "2024-01-07")
    view = shop.repo.view("last_purchase")
    some = IntervalSet([days(0, 1), days(3, 6)])
    for store in ("offline", "online"):
        shop.stores.ledger.restore_coverage(shop.name, view.name, store, some)
    # what the ledger says now is what the stores are made to say by a job that is done again
    output("materialize", "last_purchase", "--start", "2024-01-04", "--end", "2024-01-07", "--overwrite")
    text = output("repair", "last_purchase", width=90)
    assert text.endswith(
        "\n\nDagster\n"
        "  last_purchase: 2 partitions shown but not covered, [2024-01-02, 2024-01-04); Dagster\n"
        "    cannot take back the marks of single partitions: materialize them, or wipe the asset\n"
        "    in Dagster and repair again\n"
    )
    (found,) = repaired("last_purchase")["dagster"]
    wrong = [{"start_time": "2024-01-02T00:00Z", "end_time": "2024-01-04T00:00Z"}]
    assert found == {"view": "last_purchase", "reported": 0, "wrongly_shown": wrong}


def test_dagster_is_left_alone_when_it_is_asked_for(shop: Workspace) -> None:
    fill(shop, "spend", days(0, 3))
    found = repaired("spend", "--no-dagster")
    assert found["dagster"] is None
    assert [each["store"] for each in found["stores"]] == ["offline", "online"]
    assert not (shop.home / "dagster").exists()
