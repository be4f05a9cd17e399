"""Some of very many ordered keys, found by looking some places up instead of walking over all of them.

A key is drawn byte by byte: which bytes come next behind those that were drawn is asked by looking up one of them.
What was learned is remembered, so the first bytes, which all keys share, are asked for once. Every key can be drawn,
and what it costs depends on how many are wanted and on how long they are, not on how many there are.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FirstFrom = Callable[[bytes], bytes | None]
"""Returns the first key that is not before some bytes; None behind the last one."""


@dataclass(slots=True)
class _Branch:
    """What is known of the keys that begin alike.

    Args:
        bytes_: Which bytes come next in some of them; the smallest one first.
        bound: No larger byte than those below this one comes next.
        only: The key, where there is one only.
    """

    bytes_: list[int]
    bound: int = 256
    only: bytes | None = None


class KeyProbe:
    """Draws keys, each once.

    Args:
        first_from: Looks a place up.
        after: Returns the first place behind a key and all that belongs to it.
        prefix: What all the keys begin with that are meant; none of them is the beginning of another.
        chance: Draws.
    """

    def __init__(
        self, first_from: FirstFrom, after: Callable[[bytes], bytes], prefix: bytes, chance: random.Random
    ) -> None:
        self._first_from, self._after, self._prefix, self._chance = first_from, after, prefix, chance
        self._branches: dict[bytes, _Branch] = {}
        self._firsts: dict[bytes, bytes] = {}
        self.looks = 0

    def keys(self, most_looks: int) -> Iterator[bytes]:
        """Yield keys until no more is likely to be found, or so many places were looked up."""
        seen: set[bytes] = set()
        again = 0
        while self.looks < most_looks and again <= 20 + 10 * len(seen):
            key = self._drawn()
            if key is None or key in seen:
                again += 1
                continue
            again = 0
            seen.add(key)
            yield key

    def _drawn(self) -> bytes | None:
        """Draw a key; None where there are none, or they have gone meanwhile."""
        beginning = self._prefix
        while True:
            branch = self._branch(beginning)
            if branch is None or branch.only is not None:
                return None if branch is None else branch.only
            beginning += bytes([self._next_byte(beginning, branch)])

    def _branch(self, beginning: bytes) -> _Branch | None:
        known = self._branches.get(beginning)
        if known is not None:
            return known
        first = self._firsts.pop(beginning, None) or self._look(beginning, beginning)
        if first is None:
            return None
        another = self._look(self._after(first), beginning)
        branch = _Branch([], only=first) if another is None else _Branch([first[len(beginning)]])
        if another is not None:
            self._firsts[first[: len(beginning) + 1]] = first
        self._branches[beginning] = branch
        return branch

    def _next_byte(self, beginning: bytes, branch: _Branch) -> int:
        """Draw one of the bytes that come next: any place is as likely, or, half of the time, any known one."""
        known, smallest, at = branch.bytes_, branch.bytes_[0], len(beginning)
        if len(known) > 1 and self._chance.random() < 0.5:
            return self._chance.choice(known)
        while True:
            drawn = self._chance.randrange(smallest, branch.bound)
            if drawn in known:
                return drawn
            found = self._look(beginning + bytes([drawn]), beginning)
            if found is None:
                branch.bound = drawn
            else:
                if found[at] not in known:
                    known.append(found[at])
                    self._firsts[found[: at + 1]] = found
                return found[at]

    def _look(self, place: bytes, beginning: bytes) -> bytes | None:
        """Return the first key that is not before a place, if it begins so."""
        self.looks += 1
        found = self._first_from(place)
        return found if found is not None and found.startswith(beginning) else None
