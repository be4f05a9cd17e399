"""The turns that Dagster runs of one process take."""

from __future__ import annotations

import threading

# A run sets Python's logging up anew when it begins: it holds the lock of logging and wants that of a handler, while a
# run in another thread that logs an event holds the lock of its handler and wants that of logging. Both would wait for
# ever. A run may begin another one in its own thread, as an integration test does.
ONE_RUN = threading.RLock()
