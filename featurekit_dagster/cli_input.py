"""What the command line is given, as values: times, join keys, spine files; and frames written to files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from featurekit_dagster.domain.schema import Bool, Bytes, DataType, Field, Int32, Int64, String, Timestamp
from featurekit_dagster.errors import SourceError, Unsupported
from featurekit_dagster.intervals import as_utc

if TYPE_CHECKING:
    import pyarrow as pa

FRAME_SUFFIXES = (".parquet", ".csv")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def parse_time(text: str) -> datetime:
    """Return an ISO time as aware UTC; without an offset it is UTC.

    >>> parse_time("2013-06-01").isoformat()
    '2013-06-01T00:00:00+00:00'

    Raises:
        BadParameter: The text is no ISO time.
    """
    try:
        return as_utc(datetime.fromisoformat(text))
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no ISO time such as 2013-06-01 or 2013-06-01T06:00 (UTC unless it has an offset)"
        ) from None


def parse_keys(pairs: Sequence[str], fields: Sequence[Field]) -> dict[str, Any]:
    """Return `name=value` texts as join keys of their declared types; messages never show a value.

    Args:
        pairs: What was given; `name=` is an empty string.
        fields: Every column that may be given, with its type.

    Raises:
        BadParameter: A pair has no `=`, a name is unknown or given twice, or a value does not fit its type.
    """
    types = {field.name: field.dtype for field in fields}
    keys: dict[str, Any] = {}
    for number, pair in enumerate(pairs, start=1):
        name, sign, text = pair.partition("=")
        if not sign:
            raise typer.BadParameter(f"argument {number} has no '='; give join keys as name=value")
        if name not in types:
            raise typer.BadParameter(f"{name!r} is no join key; those are {', '.join(map(str, fields))}")
        if name in keys:
            raise typer.BadParameter(f"join key {name!r} is given twice")
        try:
            keys[name] = _PARSERS[types[name]](text)
        except ValueError:
            raise typer.BadParameter(f"the value of {name!r} is no {types[name]}; {_FORMS[types[name]]}") from None
    return keys


def _integer(bits: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise ValueError("out of range")
        return value

    return parse


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError("neither true nor false")
    return text.lower() in _TRUE


_PARSERS: Mapping[DataType, Callable[[str], Any]] = {
    String: str,
    Int32: _integer(32),
    Int64: _integer(64),
    Bool: _boolean,
    Bytes: bytes.fromhex,
    Timestamp: lambda text: as_utc(datetime.fromisoformat(text)),
}
_FORMS: Mapping[DataType, str] = {
    Int32: "give a whole number of 32 bits",
    Int64: "give a whole number of 64 bits",
    Bool: "give true or false",
    Bytes: "give bytes as hexadecimal digits",
    Timestamp: "give an ISO time",
}


def frame_path(path: Path | None) -> Path | None:
    """Return the path of a frame if its ending says how to read or write it.

    Raises:
        BadParameter: It ends otherwise, or its folder does not exist.
    """
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(path.parent)!r}")
    if path is not None and path.suffix.lower() not in FRAME_SUFFIXES:
        raise typer.BadParameter(f"{path.name!r} ends in neither {' nor '.join(FRAME_SUFFIXES)}")
    return path


def read_spine(path: Path, fields: Sequence[Field]) -> pa.Table:
    """Return a Parquet or CSV file as a table; in a CSV the types of columns that are no join keys are guessed.

    Args:
        path: The file; its ending decides.
        fields: The join keys with their declared types.

    Raises:
        SourceError: The file is not what its ending says.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    from featurekit_dagster.arrow_types import arrow_type

    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        with path.open("rb") as file:
            names = csv.open_csv(file).schema.names
        types = {field.name: arrow_type(field.dtype) for field in fields if field.name in names}
        return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
    except pa.ArrowInvalid:
        # the reader's own words may quote a row
        kinds = ", ".join(map(str, fields))
        reason = f"it is no {path.suffix[1:]} file, or its join keys are not {kinds}"
        raise SourceError(source=path.name, reason=reason) from None


def write_frame(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet or CSV, by the ending of the path.

    Raises:
        Unsupported: A column with lists or records and a CSV file.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    if path.suffix.lower() == ".parquet":
        parquet.write_table(table, path)
        return
    nested = [field.name for field in table.schema if pa.types.is_nested(field.type)]
    if nested:
        raise Unsupported(f"{path.name}: a CSV file cannot hold the lists of {', '.join(nested)}; write .parquet")
    csv.write_csv(table, path)
