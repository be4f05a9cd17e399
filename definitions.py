"""The code location of the example: what `dagster dev`, `dagster` and `dg` load.

One line per workspace is all that a project of its own needs.
"""

from __future__ import annotations

from examples.flights.features import workspace

defs = workspace.definitions()
