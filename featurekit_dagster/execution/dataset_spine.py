"""The spine of a dataset, kept beside it: whatever it comes from, it is read once, piece by piece.

The file has one row group per bucket, so that a bucket of the dataset is made from one read of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from featurekit_dagster.arrow_types import arrow_type
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.engine.arrow import UNCONVERTIBLE, to_arrow
from featurekit_dagster.engine.content_hash import ContentHash
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.storable import storable
from featurekit_dagster.errors import QueryRefused, SourceError, SpineError
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.stores.datasets import Datasets

FILE_SUFFIXES = (".parquet", ".csv")
_BATCH_ROWS = 65_536
_SPINE = "the spine"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpineFacts:
    """What is known about a spine without reading it again.

    Args:
        rows: Number of its rows.
        sha256: Hash of its contents, see `engine.content_hash`.
        first_us: Its earliest time; None where no row has one.
        last_us: Its latest time.
    """

    rows: int
    sha256: str
    first_us: int | None
    last_us: int | None

    @property
    def interval(self) -> Interval | None:
        """The span of its times, the last one included; None where no row has one."""
        if self.first_us is None or self.last_us is None:
            return None
        return Interval(from_us(self.first_us), from_us(self.last_us + 1))

    def as_record(self) -> dict[str, Any]:
        """Return the facts as JSON can hold them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class SpineReader:
    """A spine that is being read.

    Args:
        schema: Its columns.
        batches: Its rows, in order.
        table: All of them, where they are in memory anyway.
    """

    schema: pa.Schema
    batches: Iterable[pa.RecordBatch]
    table: pa.Table | None = None

    @property
    def first_look(self) -> pa.Table:
        """All rows where they are in memory anyway, else none: what can be checked before the spine is read."""
        return pa.Table.from_batches([], schema=self.schema) if self.table is None else self.table


@contextmanager
def opened_spine(given: Any, keys: Sequence[Field]) -> Iterator[SpineReader]:
    """Read a spine during the body of a `with`.

    Args:
        given: pandas, polars or Arrow frame, the path of a .parquet or .csv file, or a query that DuckDB runs.
        keys: The join keys, whose types a CSV file does not say.

    Raises:
        SpineError: A column of a frame holds objects that Arrow has no type for.
        SourceError: The file cannot be read.
        QueryRefused: The query cannot be run.
    """
    if not isinstance(given, str | Path):
        try:
            table = to_arrow(given)
        except UNCONVERTIBLE:
            raise SpineError("a column of the spine holds objects that Arrow has no type for; convert it") from None
        yield SpineReader(table.schema, table.to_batches(_BATCH_ROWS), table)
    elif is_file(given):
        with _opened_file(Path(given), keys) as reader:
            yield reader
    else:
        with _opened_query(str(given)) as reader:
            yield reader


@contextmanager
def _opened_query(query: str) -> Iterator[SpineReader]:
    with connect() as con:
        try:
            statements = con.extract_statements(query)
            if [statement.type for statement in statements] != [duckdb.StatementType.SELECT]:
                raise QueryRefused(view=_SPINE, reason="it is no query of rows; give one SELECT")
            reader = con.sql(query).to_arrow_reader(_BATCH_ROWS)
            yield SpineReader(reader.schema, reader)
        except duckdb.Error as error:
            # of other errors the engine's words may quote a value of a row
            is_known = isinstance(error, duckdb.ParserException | duckdb.BinderException | duckdb.CatalogException)
            reason = str(error).splitlines()[0] if is_known else type(error).__name__
            raise QueryRefused(view=_SPINE, reason=reason) from None


def is_file(given: str | Path) -> bool:
    """Tell whether a spine is given as a file, by its ending; else it is a query."""
    return isinstance(given, Path) or given.strip().lower().endswith(FILE_SUFFIXES)


@contextmanager
def _opened_file(path: Path, keys: Sequence[Field]) -> Iterator[SpineReader]:
    try:
        if path.suffix.lower() == ".parquet":
            with parquet.ParquetFile(path) as file:
                yield SpineReader(file.schema_arrow, file.iter_batches(_BATCH_ROWS))
            return
        types = {key.name: arrow_type(key.dtype) for key in keys}
        with csv.open_csv(path, convert_options=csv.ConvertOptions(column_types=types)) as reader:
            yield SpineReader(reader.schema, reader)
    except FileNotFoundError:
        raise SourceError(source=path.name, reason="there is no such file") from None
    except pa.ArrowInvalid:
        # the reader's own words may quote a row
        listed = ", ".join(map(str, keys))
        reason = f"it is no {path.suffix[1:]} file, or its join keys are not {listed}"
        raise SourceError(source=path.name, reason=reason) from None


def write_spine(
    datasets: Datasets, name: str, reader: SpineReader, *, bucket_rows: int, timestamp_key: str | None
) -> SpineFacts:
    """Keep a spine beside a dataset and return what is known about it.

    Args:
        datasets: Where datasets are kept.
        name: The dataset.
        reader: The spine.
        bucket_rows: Rows of a bucket.
        timestamp_key: Its time column; None for join keys without one.

    Raises:
        UnstorableColumns: A column is of a type that a Delta table does not have.
        SpineError: No row has a time.
    """
    schema = storable(reader.first_look.slice(0, 0)).schema
    content, rows, times = ContentHash(schema), 0, _Times(timestamp_key)
    with datasets.writing_spine(name) as stream, parquet.ParquetWriter(stream, schema, compression="zstd") as writer:
        for piece in _in_pieces(reader, bucket_rows):
            kept = storable(piece).cast(schema)
            content.add(kept)
            times.add(kept)
            rows += kept.num_rows
            writer.write_table(kept, row_group_size=bucket_rows)
    if rows and timestamp_key is not None and times.first_us is None:
        raise SpineError(f"timestamp_key {timestamp_key!r} is empty in every row")
    return SpineFacts(rows=rows, sha256=content.hexdigest(), first_us=times.first_us, last_us=times.last_us)


class _Times:
    """The first and last time of rows that come one after the other."""

    def __init__(self, column: str | None) -> None:
        self._column = column
        self.first_us: int | None = None
        self.last_us: int | None = None

    def add(self, table: pa.Table) -> None:
        """Take in some rows."""
        if self._column is None or table[self._column].null_count == table.num_rows:
            return
        found = pc.min_max(table[self._column])
        first, last = (to_us(found[end].as_py()) for end in ("min", "max"))
        self.first_us = first if self.first_us is None else min(first, self.first_us)
        self.last_us = last if self.last_us is None else max(last, self.last_us)


def _in_pieces(reader: SpineReader, rows: int) -> Iterator[pa.Table]:
    """Yield a spine in tables of as many rows each, the last one of what is left."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for batch in reader.batches:
        rest = batch
        while count + rest.num_rows >= rows:
            taken = rows - count
            yield pa.Table.from_batches([*waiting, rest.slice(0, taken)], reader.schema)
            rest, waiting, count = rest.slice(taken), [], 0
        if rest.num_rows:
            waiting.append(rest)
            count += rest.num_rows
    if waiting:
        yield pa.Table.from_batches(waiting, reader.schema)


def spine_bucket(datasets: Datasets, name: str, bucket: int) -> pa.Table:
    """Return the rows of one bucket of a spine; no rows where the spine has none."""
    with datasets.reading_spine(name) as stream:
        file = parquet.ParquetFile(stream)
        if file.num_row_groups == 0:
            return file.schema_arrow.empty_table()
        return file.read_row_group(bucket)
