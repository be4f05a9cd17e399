"""The lease of a view, held for one short commit at a time, so that batch jobs have their turn in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from featurekit_dagster.stores.ledger_leases import Lease
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

PATIENCE = timedelta(minutes=10)
_SECONDS_BETWEEN_PAUSES, _PAUSE_SECONDS = 5.0, 1.25  # who waits for a view's lease asks for it once a second


@dataclass(slots=True)
class Turns:
    """Takes the lease of one view again and again; now and then it leaves it to others before.

    Args:
        stores: Where the record is kept.
        view: Name of the feature view.
        holder: Who holds the lease.
        wait: How long to wait for it each time.
    """

    stores: WorkspaceStores
    view: str
    holder: str
    wait: timedelta = PATIENCE
    _last_pause: float = field(default_factory=time.monotonic)

    @contextmanager
    def turn(self, check: Callable[[Lease], None] | None = None) -> Iterator[Lease]:
        """Hold the lease for the body of a `with`.

        Args:
            check: Called with the lease before the body; what it raises ends the turn.

        Raises:
            LeaseHeld: A job had it all the time.
        """
        if time.monotonic() - self._last_pause > _SECONDS_BETWEEN_PAUSES:
            time.sleep(_PAUSE_SECONDS)
            self._last_pause = time.monotonic()
        name = f"batch:{self.stores.workspace}/{self.view}"
        with self.stores.ledger.lease(name, holder=self.holder, wait=self.wait) as lease:
            if check is not None:
                check(lease)
            yield lease
