"""Some of many stored keys, chosen as if by chance and yet the same again: those with the smallest hashes.

Every online store chooses so, by the same hash of the same bytes; therefore stores with equal keys give equal samples.
"""

from __future__ import annotations

import heapq
from hashlib import blake2b

_HASH_BYTES = 8


class KeySample:
    """Takes encoded keys in any order, and keeps some.

    Args:
        count: How many to keep.
        seed: Another one makes another choice.
    """

    def __init__(self, count: int, seed: int) -> None:
        self._count, self._salt = count, seed.to_bytes(16, "little", signed=True)
        # the largest hash is at the head: it is the first to go, so hashes are kept negative
        self._kept: list[tuple[int, bytes]] = []

    def look_at(self, encoded: bytes) -> None:
        """Take one more key, each once.

        Args:
            encoded: The whole key as `KeyCodec` encodes it, without the prefix of the generation.
        """
        rank = -int.from_bytes(blake2b(encoded, digest_size=_HASH_BYTES, key=self._salt).digest(), "big")
        if len(self._kept) < self._count:
            heapq.heappush(self._kept, (rank, encoded))
        elif self._kept and rank > self._kept[0][0]:
            heapq.heapreplace(self._kept, (rank, encoded))

    def chosen(self) -> list[bytes]:
        """Return the keys that were kept, the smallest hash first."""
        return [encoded for _, encoded in sorted(self._kept, reverse=True)]
