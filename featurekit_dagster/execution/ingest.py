"""Events that are sent to a push source: checked one by one, logged all together or not at all.

What is logged is on disk before the sender is answered. The loops of the views that follow the source apply it, and
draining takes it to the source's own Delta table.
"""

from __future__ import annotations

import base64
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from featurekit_dagster.domain.feature_view import FeatureView, StreamProcessingMode
from featurekit_dagster.domain.stream_sources import StreamSource
from featurekit_dagster.errors import NotAPushSource, TectonValidationError
from featurekit_dagster.execution.stream_events import FUTURE
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from featurekit_dagster.streams.decoding import Refusal, decode
from featurekit_dagster.streams.push_log import PushLog, push_log_path
from featurekit_dagster.streams.reading import ONLY_PARTITION

_NAP_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class IngestResult:
    """What became of events that were sent.

    Args:
        accepted: How many were logged, or would have been; all of them or none.
        refused: Why not; at least one for each event that does not fit.
        sequence: Number of the last one in the source's log; None where nothing was logged.
        visible: Whether the views that move with each event have them online; None where there are no such views, or
            nobody has waited.
    """

    accepted: int
    refused: Sequence[Refusal]
    sequence: int | None = None
    visible: bool | None = None


class PushSource:
    """A push source of a workspace, ready to take events. For any number of threads.

    Args:
        source: The declaration.
        views: The views of the workspace; those that follow the source say what its keys are.
        stores: The workspace's stores.

    Raises:
        NotAPushSource: The source is another stream, or has no schema.
    """

    def __init__(self, source: StreamSource, views: Iterable[FeatureView], stores: WorkspaceStores) -> None:
        if not source.is_push:
            raise NotAPushSource(source=source.name, reason="it is read from a stream; send them there")
        if not source.schema:
            reason = "it has no schema to check them against; declare StreamSource(schema=[Field(...), ...])"
            raise NotAPushSource(source=source.name, reason=reason)
        self.name, self.fields = source.name, tuple(source.schema)
        self._stores = stores
        self.views = tuple(view for view in views if view.stream_source == source)
        names = [field.name for field in self.fields]
        keys = {key.name for view in self.views for key in view.join_keys if key.name in names}
        self.never_null = tuple(name for name in names if name in keys)
        time_field = source.stream_config.timestamp_field
        if time_field is None and source.batch_source is not None:
            time_field = source.batch_source.timestamp_field
        self.time_field = time_field if time_field in names else None

    @cached_property
    def log(self) -> PushLog:
        """The source's log."""
        return open_push_log(self._stores, self.name)

    def ingest(self, payloads: Sequence[bytes], *, dry_run: bool = False) -> IngestResult:
        """Check events, and log all of them if all of them fit; they are on disk when this returns.

        Args:
            payloads: One JSON object each.
            dry_run: Only check.
        """
        latest = self._stores.clock() + FUTURE
        checked = decode(payloads, self.fields, never_null=self.never_null, time_field=self.time_field, latest=latest)
        if checked.refused:
            return IngestResult(0, checked.refused)
        if dry_run or not payloads:
            return IngestResult(len(payloads), ())
        return IngestResult(len(payloads), (), self.log.append(payloads))

    def wait_until_applied(self, sequence: int, timeout: timedelta) -> bool:
        """Wait until every view that moves with each event has applied the log up to a number.

        Returns:
            Whether they have: a view that nobody has followed yet, or that comes too late, has not.
        """
        deadline = time.monotonic() + timeout.total_seconds()
        while (applied := self.applied()) is not None and applied < sequence:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_NAP_SECONDS)
        return True

    def applied(self) -> int | None:
        """Return up to which number of the log all views have it that move with each event; None if there are none."""
        return min((applied_sequence(self._stores, view, self.log) or 0 for view in self.moving), default=None)

    @cached_property
    def moving(self) -> tuple[FeatureView, ...]:
        """The views that move with each event: an answer says whether they have it online."""
        continuous = StreamProcessingMode.CONTINUOUS
        return tuple(view for view in self.views if view.online and view.stream_processing_mode is continuous)


def open_push_log(stores: WorkspaceStores, source: str) -> PushLog:
    """Return the log of a push source of a workspace."""
    path: Path = push_log_path(stores.home, stores.workspace, source)
    return PushLog(path, source, clock=stores.clock)


def applied_sequence(stores: WorkspaceStores, view: FeatureView, log: PushLog) -> int | None:
    """Return up to which number of its source's log a view has it online; None before its first read.

    Of a log that was lost and begun anew a view has nothing until it is followed again, however far it had the old one.
    """
    known = stores.online.checkpoints(stores.online_layout(view)).get(ONLY_PARTITION)
    return None if known is None or known.position is None else log.number_of(known.position)


def event_payloads(records: Any, columns: Callable[[Any], Sequence[Mapping[str, Any]]]) -> list[bytes]:
    """Return Python values as the JSON objects that `POST /ingest` takes.

    Args:
        records: A list of mappings, or a frame.
        columns: Turns a frame into mappings.

    Raises:
        TectonValidationError: A value has no place in JSON (it names the event and the field, not the value).
    """
    rows = records if isinstance(records, list | tuple) else columns(records)
    payloads = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TectonValidationError(f"event {index} is a {type(row).__name__}; give a mapping of field to value")
        event = {}
        for name, value in row.items():
            try:
                event[str(name)] = _plain(value)
            except TypeError:
                kind = "a number that is not finite" if isinstance(value, float) else f"a {type(value).__name__}"
                raise TectonValidationError(f"event {index}: {name} has {kind}, which no event can hold") from None
        payloads.append(_encoded(event))
    return payloads


def _encoded(event: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(event)
    except (UnicodeEncodeError, OverflowError):  # half a character, or a huge integer: the check says so
        return json.dumps(event).encode()


def _plain(value: Any) -> Any:
    """Return a value as JSON has it.

    Raises:
        TypeError: JSON has no such value.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat() if value.tzinfo else value.isoformat()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist") and not isinstance(value, date):  # NumPy's scalars and arrays
        return _plain(value.tolist())
    raise TypeError
