"""A code location for servers and commands: the rides workspace in a folder that the test chooses."""

from __future__ import annotations

import os
from pathlib import Path

from tests.flow.rides import Rides

workspace = Rides.at(Path(os.environ["RIDES_FOLDER"])).workspace()
defs = workspace.definitions()
