"""Where events go that could not become rows: one Delta table per view, with why and with the event as it came.

Nothing else ever shows their contents.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import pyarrow as pa
from deltalake import CommitProperties, Transaction, write_deltalake

from featurekit_dagster.stores.delta_commits import TRIES, create_table, opened, redone
from featurekit_dagster.stores.stream_state import DeadLetter

_SCHEMA = pa.schema(
    [
        ("partition", pa.string()),
        ("number", pa.int64()),
        ("refused_at", pa.timestamp("us", "UTC")),
        ("reason", pa.string()),
        ("payload", pa.binary()),
    ]
)
_REASONS = pa.schema(
    [
        ("reason", pa.string()),
        ("events", pa.int64()),
        ("first", pa.timestamp("us", "UTC")),
        ("last", pa.timestamp("us", "UTC")),
    ]
)


class DeadLetters:
    """The dead letters of one view.

    Args:
        location: Where the table is: a local path or any URI that delta-rs takes.
    """

    def __init__(self, location: str) -> None:
        self.location = location

    def append(self, letters: Sequence[DeadLetter], refused_at: datetime) -> None:
        """Keep dead letters of one source partition, in order of their numbers; those that are there are left out.

        Args:
            letters: At least one.
            refused_at: When they were refused.

        Raises:
            CommitFailedError: Other writers came first each time; nothing was written.
        """
        redone(TRIES, self._append, letters, refused_at)

    def _append(self, letters: Sequence[DeadLetter], refused_at: datetime) -> None:
        # what is there is looked up anew each time: another loop may have moved the same letters
        name = f"dead letters of {letters[0].partition}"
        table = opened(self.location)
        kept = None if table is None else table.transaction_version(name)
        new = [letter for letter in letters if kept is None or letter.number > kept]
        if not new:
            return
        rows = [(letter.partition, letter.number, refused_at, letter.reason, letter.payload) for letter in new]
        columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _SCHEMA, strict=True)]
        found = pa.table(columns, schema=_SCHEMA)
        # without the library's retries, which add a first commit's rows to those of the commit that came before it
        properties = CommitProperties(app_transactions=[Transaction(name, new[-1].number)], max_commit_retries=0)
        if table is None:
            create_table(self.location, found, None, properties, partition_by=())
        else:
            write_deltalake(table, found, mode="append", commit_properties=properties)

    def by_reason(self) -> pa.Table:
        """Return how often each reason was given: `reason`, `events`, `first`, `last`; the most frequent one first."""
        table = opened(self.location)
        if table is None:
            return _REASONS.empty_table()
        told = table.to_pyarrow_table(columns=["reason", "refused_at"])
        counted = told.group_by("reason").aggregate(
            [("refused_at", "count"), ("refused_at", "min"), ("refused_at", "max")]
        )
        counted = counted.rename_columns(_REASONS.names)
        return counted.sort_by([("events", "descending"), ("reason", "ascending")])

    def read(self) -> pa.Table:
        """Return all of them: source partition, number, time, reason, payload."""
        table = opened(self.location)
        if table is None:
            return _SCHEMA.empty_table()
        return table.to_pyarrow_table().sort_by([("partition", "ascending"), ("number", "ascending")])
