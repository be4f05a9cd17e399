"""A code location for the servers: the shop in a folder that the test chooses."""

from __future__ import annotations

import os
from pathlib import Path

from tests.ui.support.shop import shop_workspace

workspace = shop_workspace(Path(os.environ["SHOP_FOLDER"]))
defs = workspace.definitions()
