"""The harness itself: a server comes up, pages can be read and seen, and nothing is left running."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.ui.support.browser import Browser
from tests.ui.support.dagster_server import DagsterServer, dagster_server

pytestmark = pytest.mark.ui

DEFINITIONS = Path(__file__).parent / "support" / "tiny_definitions.py"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterServer]:
    with dagster_server(DEFINITIONS, tmp_path_factory.mktemp("dagster")) as running:
        yield running


def test_page_of_an_asset_shows_its_name_kinds_and_partitions(
    server: DagsterServer, browser: Browser, pictures: Path
) -> None:
    page = browser.open(f"{server.url}/assets/tiny_daily_asset?view=partitions", pictures / "harness_asset.png")
    for words in ("tiny_daily_asset", "2013-01-10", "Missing (10)"):
        assert words in page.text
    assert page.picture.read_bytes().startswith(PNG)
    assert page.picture.stat().st_size > 20_000


def test_no_dialog_of_dagsters_own_covers_the_page(server: DagsterServer, browser: Browser, pictures: Path) -> None:
    page = browser.open(f"{server.url}/locations", pictures / "harness_locations.png")
    assert "tiny_definitions.py" in page.text
    assert "Join the" not in page.text


def test_daemon_and_code_servers_end_with_the_block(tmp_path: Path) -> None:
    with dagster_server(DEFINITIONS, tmp_path / "dagster", daemon=True) as running:
        leader = psutil.Process(running.pid)
        processes = [leader, *leader.children(recursive=True)]
        assert running.graphql("{ version }")["version"]
    assert len(processes) >= 4
    assert psutil.wait_procs(processes, timeout=60)[1] == []


def test_definitions_that_do_not_load_are_reported_with_their_reason(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('no features here')\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="no features here"), dagster_server(broken, tmp_path / "dagster"):
        pass
