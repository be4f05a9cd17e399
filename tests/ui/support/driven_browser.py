"""A browser that a test clicks and types in, where `browser` only looks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from playwright.sync_api import Page, expect, sync_playwright

from tests.ui.support.browser import Browser

SECONDS = 1_000.0
PATIENCE = 180 * SECONDS
"""A busy machine needs more than a minute for a page of Dagster's."""
SIZE = {"width": 1600, "height": 1000}


@contextlib.contextmanager
def driven_page(browser: Browser) -> Iterator[Page]:
    """Yield an empty page of the installed Chromium; what is not found on it within three minutes fails the test."""
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=browser.executable, args=arguments, timeout=PATIENCE)
        page = started.new_page(viewport=SIZE)
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        try:
            yield page
        finally:
            started.close()
