"""The browser of the user interface tests, and where their pictures are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.ui.support.browser import Browser


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
