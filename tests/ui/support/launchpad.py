"""Dagster's launchpad, used as a person does: a configuration is typed, looked through, and launched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from playwright.sync_api import Page, expect

from tests.support.dagster_processes import LOCATION, DagsterDeployment


def keep(page: Page, picture: Path, secrets: Iterable[str]) -> None:
    """Keep a picture of what the page shows, which must be none of the secrets."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=picture)
    text = page.inner_text("body")
    assert [secret for secret in secrets if secret in text] == []


def write_config(page: Page, dagster: DagsterDeployment, job: str, config: str) -> None:
    """Open the launchpad of a job and type a configuration in place of what stands there."""
    page.goto(f"{dagster.url}/locations/{LOCATION}/jobs/{job}/playground")
    page.locator(".CodeMirror").first.click()
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(config)


def launch(page: Page, dagster: DagsterDeployment, job: str, config: str, picture: Path, secrets: Iterable[str]) -> str:
    """Type a configuration into the launchpad of a job, launch it, and return the id of the run whose page is shown."""
    write_config(page, dagster, job, config)
    expect(page.get_by_text("No errors")).to_be_visible()
    keep(page, picture, secrets)
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    return page.url.split("?")[0].rsplit("/", 1)[1]
