"""A stream whose events are lists in memory, and JSON documents of events."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from featurekit_dagster.streams.reading import OLDEST, PartitionLag, StreamBatch


class ListReader:
    """Reads lists of payloads, one per source partition; a position is how many were read (see `StreamReader`).

    `poll` brings `piece` payloads of each assigned partition at most.
    """

    def __init__(self, payloads: Mapping[str, Sequence[bytes]], piece: int = 1_000) -> None:
        self.payloads, self.piece = payloads, piece
        self._next: dict[str, int] = {}

    def partitions(self) -> tuple[str, ...]:
        return tuple(sorted(self.payloads))

    def seek(self, positions: Mapping[str, str | None]) -> None:
        starts = (None, OLDEST)
        self._next = {name: 0 if position in starts else int(position or 0) for name, position in positions.items()}

    def poll(self, most: int, timeout: timedelta) -> list[StreamBatch]:
        found = []
        for name, start in self._next.items():
            end = min(start + min(self.piece, most), len(self.payloads[name]))
            if end > start:
                self._next[name], most = end, most - (end - start)
                found.append(
                    StreamBatch(partition=name, payloads=list(self.payloads[name][start:end]), position=str(end))
                )
        if not found:
            time.sleep(min(timeout.total_seconds(), 0.005))
        return found

    def lag(self) -> tuple[PartitionLag, ...]:
        return tuple(PartitionLag(name, len(self.payloads[name]) - at) for name, at in self._next.items())

    def parents(self) -> Mapping[str, Collection[str]]:
        return {}

    def retention(self) -> timedelta | None:
        return None

    def close(self) -> None:
        self._next = {}


def document(event: Mapping[str, Any]) -> bytes:
    """Return an event as a JSON document; times as text."""
    return json.dumps(event, default=_text, allow_nan=False).encode()


def _text(value: Any) -> str:
    assert isinstance(value, datetime)
    aware = value.replace(tzinfo=UTC) if value.tzinfo is None else value
    return aware.isoformat()
