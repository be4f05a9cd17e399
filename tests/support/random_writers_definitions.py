"""A code location for servers: the views of `random_writers` in a folder that the test chooses."""

from __future__ import annotations

import os
from pathlib import Path

from featurekit_dagster import Workspace
from tests.support.random_writers import make_views

_root = Path(os.environ["RANDOM_WRITERS_FOLDER"])
workspace = Workspace("w", make_views(_root).values(), home=_root / "home", lake=_root / "lake")
defs = workspace.definitions()
