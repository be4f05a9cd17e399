"""The browser of the user interface tests, and where their pictures are kept."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Error, Page

from tests.ui.support.browser import Browser
from tests.ui.support.driven_browser import driven_page

_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Remember whether a test has failed, for the fixtures that end after it."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call":
        item.stash[_FAILED] = report.failed


@pytest.fixture(scope="session")
def browser() -> Browser:
    """The installed Chromium; without one the test fails."""
    found = Browser.find()
    if found is None:
        pytest.fail("Chromium was not found; on Debian or Ubuntu: apt-get install -y chromium", pytrace=False)
    return found


@pytest.fixture(scope="session")
def pictures() -> Path:
    """Folder of the screenshots, kept for people to look at (git ignores it)."""
    return Path(__file__).with_name("screenshots")


@pytest.fixture
def page(browser: Browser, pictures: Path, request: pytest.FixtureRequest) -> Iterator[Page]:
    """An empty page that the test drives; what it shows when the test fails is kept and printed."""
    with driven_page(browser) as opened:
        yield opened
        if request.node.stash.get(_FAILED, False):
            picture = pictures / f"failed_{request.node.name}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            try:
                opened.screenshot(path=picture)
                print(f"{opened.url} as in {picture}:\n{opened.inner_text('body')[:3_000]}")
            except Error as error:
                print(f"{opened.url} cannot be shown: {error}")
