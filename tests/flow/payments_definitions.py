"""A code location for commands and servers: the payments workspace in a folder that the test chooses."""

from __future__ import annotations

import os
from pathlib import Path

from tests.flow.payments import day, payments_workspace

workspace = payments_workspace(Path(os.environ["PAYMENTS_FOLDER"]), now=day(10))
defs = workspace.definitions()
