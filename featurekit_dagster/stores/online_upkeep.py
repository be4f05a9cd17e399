"""What an online store can do with all records of a generation at once: lay them out anew, and trim them.

A part of `OnlineStore`; `execution/compaction.py` uses it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from featurekit_dagster.stores.online import OnlineLayout


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What `OnlineUpkeep.trim` found and did.

    Args:
        removed: Tiles or rows that were taken out.
        values_before: Stored values before, each with the tiles of a chunk or one row.
        values_after: Those that are left.
        bytes_before: Their size with their keys, before.
        bytes_after: What is left of it.
    """

    removed: int
    values_before: int
    values_after: int
    bytes_before: int
    bytes_after: int


class OnlineUpkeep(Protocol):
    """Upkeep of a stored generation, by whoever holds the lease of its view.

    A generation has two slots for its records. One of them is in use; the other one is empty, or is being filled by
    `OnlineStore.write` with records of another tile size, which are then taken into use in one step.
    """

    def placed(self, layout: OnlineLayout) -> OnlineLayout:
        """Return the layout with the tile size and the slot that the generation uses now.

        It is the given one until something of the generation was written, which fixes both.
        """
        ...

    def use(self, layout: OnlineLayout, *, epoch: int) -> None:
        """Let the generation use the slot and the tile size of a layout from now on.

        Whoever holds the former layout goes on reading the former slot, in which nothing changes any more until
        somebody clears it; writes under it raise `OnlineLayoutMismatch`.

        Raises:
            LeaseLost: Somebody has begun to write the former slot under a higher epoch.
        """
        ...

    def holds(self, layout: OnlineLayout) -> bool:
        """Tell whether there is anything in a slot, whole or left of an interrupted write."""
        ...

    def clear(self, layout: OnlineLayout, *, epoch: int) -> None:
        """Remove everything from a slot that is not in use; what is not there is left at that.

        What is covered is forgotten first, so a late reader finds nothing and never a part of the records.

        Raises:
            LeaseLost: Somebody has begun to write the slot under a higher epoch.
        """
        ...

    def trim(self, layout: OnlineLayout, since_us: int | None, *, epoch: int, check: Callable[[], None]) -> Trimmed:
        """Remove the tiles that start, or the rows that lie, before a time, in short transactions.

        `coverage` stays as it is, but from the first transaction on `OnlineSnapshot.coverage_us` leaves out what lies
        before the time, and later writes keep that so. What was interrupted is finished by a repetition.

        Args:
            layout: Layout of the generation, as `placed` returns it.
            since_us: The time in microseconds since 1970; None removes nothing and only measures.
            epoch: Lease epoch of the writer.
            check: Called between transactions; what it raises ends the work.

        Raises:
            LeaseLost: Somebody has begun to write under a higher epoch.
        """
        ...
