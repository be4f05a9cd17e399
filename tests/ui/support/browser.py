"""Headless Chromium: the picture of a page and the text that stands on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--window-size=1600,1000",
)
_UNSEEN = {"script", "style", "noscript", "head", "template"}


@dataclass(frozen=True)
class Page:
    """What the browser showed: the words on the page, in order, and its picture."""

    url: str
    text: str
    picture: Path


@dataclass(frozen=True)
class Browser:
    """One way to start Chromium; every page gets a fresh profile."""

    executable: str
    budget_ms: int = 45_000
    timeout_seconds: int = 300

    @classmethod
    def find(cls) -> Browser | None:
        """Return the installed Chromium, or None."""
        found = next((path for name in EXECUTABLES if (path := shutil.which(name))), None)
        return cls(found) if found else None

    def open(self, url: str, picture: Path) -> Page:
        """Load `url`, let its scripts run, and return what is on it; the picture is written as PNG."""
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            flags = [*_FLAGS, f"--user-data-dir={profile}", f"--virtual-time-budget={self.budget_ms}"]
            if os.geteuid() == 0:
                flags.append("--no-sandbox")
            shown = subprocess.run(
                [self.executable, *flags, f"--screenshot={picture}", "--dump-dom", url],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=self.timeout_seconds,
                check=True,
            )
        return Page(url, _Words.of(shown.stdout.decode("utf-8", errors="replace")), picture)


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self._hidden = 0

    @classmethod
    def of(cls, html: str) -> str:
        parser = cls()
        parser.feed(html)
        parser.close()
        return " ".join(parser.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in _UNSEEN

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _UNSEEN

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.words += data.split()
