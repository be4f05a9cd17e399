"""Which source partitions of a stream each of several loops follows.

A partition's loop depends on its name alone, so none changes hands when others come or go.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from featurekit_dagster.streams.reading import ENDED

_NUMBER = re.compile(r"\d+$")


@dataclass(frozen=True, slots=True)
class Share:
    """One of several loops that follow a stream together.

    Args:
        index: Which of them, from 0 on.
        count: How many there are.
    """

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index + 1} of {self.count}"

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return what `str` made of a share.

        Raises:
            ValueError: The text is no share.
        """
        index, _, count = text.partition(" of ")
        found = cls(int(index) - 1, int(count))
        if not 0 <= found.index < found.count:
            raise ValueError(text)
        return found

    def of(self, partitions: Iterable[str]) -> tuple[str, ...]:
        """Return those of the partitions that this loop follows.

        Numbered ones go round, whatever their topic begins with.

        >>> Share(1, 2).of([f"visits/{number}" for number in range(4)])
        ('visits/0', 'visits/2')
        """
        return tuple(name for name in partitions if _number(name) % self.count == self.index)


ONLY_SHARE = Share()


def _number(partition: str) -> int:
    found = _NUMBER.search(partition)
    stem = partition if found is None else partition[: found.start()]
    return zlib.crc32(stem.encode()) + (0 if found is None else int(found[0]))


def may_begin(partition: str, parents: Mapping[str, Collection[str]], positions: Mapping[str, str | None]) -> bool:
    """Tell whether all that a partition took over from was read to its end.

    Args:
        partition: One that nobody has read yet.
        parents: The partitions that others took over from.
        positions: Where each partition stands that the stream still has; None where nobody has begun.
    """
    before = [name for name in parents.get(partition, ()) if name in positions]
    return all(positions[name] == ENDED for name in before)
