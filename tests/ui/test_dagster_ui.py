"""What a person sees in Dagster after a backfill: the graph from the sources on, partitions, metadata, checks, runs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from tests.architecture.python_files import ROOT
from tests.flow.payments import AMOUNT, USERS, break_days, day, payments_workspace, run_asset
from tests.ui.support.browser import Browser, Page
from tests.ui.support.dagster_server import DagsterServer, dagster_server

pytestmark = pytest.mark.ui

DEFINITIONS = ROOT / "tests" / "flow" / "payments_definitions.py"
BACKFILL = {"featurekit/trigger": "backfill"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterServer]:
    """A webserver over a workspace with eight of ten days backfilled, and one of them failed in one view."""
    folder = tmp_path_factory.mktemp("payments")
    home = folder / "dagster"
    home.mkdir()
    shutil.copy(ROOT / "dagster.yaml", home / "dagster.yaml")
    workspace = payments_workspace(folder / "data", now=day(10))
    break_days(folder / "data", [5])
    with dg.DagsterInstance.from_config(str(home)) as instance:
        assert run_asset(workspace, "spending", 0, 8, instance, tags=BACKFILL).success
        assert not run_asset(workspace, "last_payment", 0, 8, instance, tags=BACKFILL).success
    environment = {"PAYMENTS_FOLDER": str(folder / "data")}
    with dagster_server(DEFINITIONS, home, environment=environment) as running:
        yield running


def seen(browser: Browser, server: DagsterServer, path: str, picture: Path, *words: str) -> Page:
    page = browser.open(server.url + path, picture)
    assert [word for word in words if word not in page.text] == [], page.text[:3_000]
    assert [secret for secret in (*USERS, str(int(AMOUNT))) if secret in page.text] == []
    return page


def test_graph_shows_sources_views_and_their_state(server: DagsterServer, browser: Browser, pictures: Path) -> None:
    path = f"/locations/{DEFINITIONS.name}/asset-groups/user/lineage"
    seen(browser, server, path, pictures / "graph.png", "spending", "last_payment", "payments", "filled")


def test_partitions_page_shows_what_is_covered(server: DagsterServer, browser: Browser, pictures: Path) -> None:
    path = "/assets/last_payment?view=partitions"
    seen(browser, server, path, pictures / "partitions.png", "2023-01-10T00:00Z", "Materialized", "Missing", "Failed")


def test_overview_shows_features_checks_rows_and_lineage(
    server: DagsterServer, browser: Browser, pictures: Path
) -> None:
    words = ("What a user spent.", "amount_sum_1d_1d", "sum of amount over 1d.", "Delta Lake", "DuckDB")
    seen(browser, server, "/assets/spending", pictures / "overview.png", *words)


def test_lineage_page_leads_from_a_view_to_its_sources(server: DagsterServer, browser: Browser, pictures: Path) -> None:
    path = "/assets/spending?view=lineage"
    seen(browser, server, path, pictures / "lineage.png", "sources", "payments", "Parquet", "Delta Lake")


def test_event_of_a_partition_shows_its_rows_and_its_job(
    server: DagsterServer, browser: Browser, pictures: Path
) -> None:
    words = (
        "dagster/row_count",
        "featurekit/job_rows_replaced",
        "featurekit/job_null_rates",
        "featurekit/window_start",
    )
    seen(browser, server, "/assets/spending?view=events", pictures / "events.png", *words)


def test_checks_page_shows_the_results_of_the_run(server: DagsterServer, browser: Browser, pictures: Path) -> None:
    words = ("schema", "inside_coverage", "unique_rows", "up_to_date", "is not materialized offline and online.")
    seen(browser, server, "/assets/spending?view=checks", pictures / "checks.png", *words[:4])


def test_runs_page_shows_who_started_a_run(server: DagsterServer, browser: Browser, pictures: Path) -> None:
    words = ("materialize_spending", "materialize_last_payment", "featurekit/trigger", "Failure", "Success")
    seen(browser, server, "/runs", pictures / "runs.png", *words)
