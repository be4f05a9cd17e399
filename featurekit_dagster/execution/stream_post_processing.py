"""The `post_processor` of a stream source: a function of the user's from what came to rows of the source.

One record that it cannot take never holds up the others: it is found by halving and refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurekit_dagster.arrow_types import arrow_schema
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.engine.arrow import to_arrow
from featurekit_dagster.engine.transform import to_pandas
from featurekit_dagster.errors import TectonValidationError

VALUE = "value"
"""The column in which the records of a stream that is read come, as text."""

IntArray = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Processed:
    """What became of records.

    Args:
        rows: Rows of the source.
        places: The record that each row was made of.
        refused: Records that the function cannot take, with the reason.
    """

    rows: pa.Table
    places: IntArray
    refused: Sequence[tuple[int, str]]


class PostProcessor:
    """Applies a function to records.

    Args:
        function: The function: of one record, or of a frame of them.
        fields: The columns of the source; others that the function returns are left out.
        by_row: Whether it takes one record, a dict, and returns a dict or None; else a pandas frame, of which it may
            leave rows out as long as it keeps the index.
    """

    def __init__(self, function: Callable[..., Any], fields: Sequence[Field], *, by_row: bool) -> None:
        self._function, self._by_row = function, by_row
        self._schema = arrow_schema(fields)

    def apply(self, records: pa.Table) -> Processed:
        """Return the rows of records, in order."""
        made: list[tuple[pa.Table, IntArray]] = []
        refused: list[tuple[int, str]] = []
        waiting = [(0, records.num_rows)] if records.num_rows else []
        while waiting:
            start, end = waiting.pop()
            try:
                rows, places = self._made(records.slice(start, end - start))
            except Exception as error:  # noqa: BLE001 - whatever the user's function raises, the stream goes on
                if end - start > 1:
                    middle = (start + end) // 2
                    waiting += [(middle, end), (start, middle)]
                else:
                    refused.append((start, f"the post_processor raised {type(error).__name__}"))
                continue
            made.append((rows, places + start))
        tables = [self._schema.empty_table(), *(rows for rows, _ in made)]
        places = np.concatenate([np.zeros(0, np.int64), *(places for _, places in made)])
        return Processed(pa.concat_tables(tables), places, refused)

    def _made(self, records: pa.Table) -> tuple[pa.Table, IntArray]:
        """Return the rows that the function makes of some records, and of which ones."""
        if self._by_row:
            found = [self._function(record) for record in records.to_pylist()]
            places = np.array([at for at, row in enumerate(found) if row is not None], np.int64)
            return self._conformed(pa.Table.from_pylist([row for row in found if row is not None])), places
        frame = to_pandas(records)
        answer = self._function(frame)
        table = to_arrow(answer)
        if table.num_rows == records.num_rows:
            return self._conformed(table), np.arange(records.num_rows)
        if records.num_rows == 1:
            return self._conformed(table), np.zeros(table.num_rows, np.int64)
        places = np.asarray(getattr(answer, "index", ()))
        if len(places) != table.num_rows or not set(places.tolist()) <= set(frame.index.tolist()):
            raise TectonValidationError("the rows are not those of the frame")  # one by one it is plain whose they are
        return self._conformed(table), places.astype(np.int64)

    def _conformed(self, table: pa.Table) -> pa.Table:
        """Return the columns of the source in their types; what is missing is NULL."""
        columns = []
        for field in self._schema:
            if field.name not in table.column_names:
                columns.append(pa.nulls(table.num_rows, field.type))
                continue
            column = table[field.name]
            if pa.types.is_timestamp(column.type) and column.type.tz is None:
                column = column.cast(pa.timestamp("us"))
            columns.append(column.cast(field.type))
        return pa.table(columns, schema=self._schema)


def texts_of(payloads: Sequence[bytes]) -> tuple[pa.Table, IntArray]:
    """Return the payloads that are text as a column `value`, and their places."""
    texts, places = [], []
    for place, payload in enumerate(payloads):
        try:
            texts.append(payload.decode())
        except UnicodeDecodeError:
            continue
        places.append(place)
    return pa.table({VALUE: pa.array(texts, pa.string())}), np.array(places, np.int64)
