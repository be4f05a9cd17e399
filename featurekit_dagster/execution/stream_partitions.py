"""The source partitions of a loop: those of its share, as the stream has them now, each under a lease of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from featurekit_dagster.errors import LeaseHeld, StreamUnavailable
from featurekit_dagster.execution.stream_follower import StreamFollower
from featurekit_dagster.streams.reading import StreamReader
from featurekit_dagster.streams.sharing import Share, may_begin

SECONDS_BETWEEN_LOOKS = 30.0

_log = logging.getLogger("featurekit.stream")


@dataclass(slots=True)
class StreamPartitions:
    """Tells a loop which source partitions it follows.

    Args:
        reader: The stream.
        share: Which of several loops it is.
        take: Takes the lease of a partition and returns its epoch; it may raise `LeaseHeld`.
        follower: The loop.
    """

    reader: StreamReader
    share: Share
    take: Callable[[str], int]
    follower: StreamFollower
    _looked: float = field(default=float("-inf"), init=False)

    def begin(self) -> None:
        """Let the loop follow what there is.

        Raises:
            LeaseHeld: Another loop follows one of the partitions.
            StreamUnavailable: The stream cannot be reached.
        """
        mine, others = self._split()
        self.follower.share_with(others)
        self.follower.begin({name: self.take(name) for name in mine})
        self._looked = time.monotonic()

    def look(self) -> None:
        """Now and then, let the loop follow what came to the stream since; nothing may be waiting to be committed."""
        if time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        try:
            mine, others = self._split()
        except StreamUnavailable:
            return  # whether that lasts for too long is the reader's to tell
        self.follower.share_with(others)
        taken = {}
        for name in mine:
            try:
                taken[name] = self.take(name)
            except LeaseHeld:
                _log.warning("source partition %s is followed by another loop; it is looked at again", name)
        if taken:
            self.follower.join(taken)

    def _split(self) -> tuple[list[str], list[str]]:
        """Return the partitions to be followed from now on, and those that are other loops'."""
        names, parents, follower = self.reader.partitions(), self.reader.parents(), self.follower
        own, stored, has_begun = set(self.share.of(names)), follower.stored_positions(), follower.has_begun
        positions = {name: stored.get(name) for name in names}
        mine: list[str] = []
        for name in names:  # parents stand before what took over from them
            if name not in own or name in follower.partitions:
                continue
            # among those of one loop the reader keeps the order
            others = {each: at for each, at in positions.items() if each not in (*follower.partitions, *mine)}
            if not has_begun or may_begin(name, parents, others):
                mine.append(name)
        return mine, [name for name in names if name not in own]
