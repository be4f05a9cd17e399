"""Column types and fields of declarations.

Standard library only: how a type looks in Arrow, DuckDB or an online record is decided where rows are computed or
stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DataType:
    """A column type, written as users write it (`String`, `Array(Int64)`).

    Args:
        name: The type's name in declarations and messages.
        children: Element types of an Array (one) or a Map (key, value).
        fields: Members of a Struct.
    """

    name: str
    children: tuple[DataType, ...] = ()
    fields: tuple[Field, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether values are whole numbers (`Int32`, `Int64`)."""
        return self in (Int32, Int64)

    @property
    def is_float(self) -> bool:
        """Whether values are binary floating point numbers (`Float32`, `Float64`)."""
        return self in (Float32, Float64)

    @property
    def is_numeric(self) -> bool:
        """Whether sums and means make sense (integers and floats; not `Bool`)."""
        return self.is_integer or self.is_float

    @property
    def is_nested(self) -> bool:
        """Whether a value holds other values (`Array`, `Map`, `Struct`)."""
        return bool(self.children or self.fields)

    def __str__(self) -> str:
        if self.fields:
            return f"{self.name}([{', '.join(map(str, self.fields))}])"
        if self.children:
            return f"{self.name}({', '.join(map(str, self.children))})"
        return self.name


@dataclass(frozen=True, slots=True)
class Field:
    """A named, typed column.

    Args:
        name: Column name, exactly as the transformation returns it.
        dtype: One of the types of this module.
    """

    name: str
    dtype: DataType

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}"


String = DataType("String")
Int32 = DataType("Int32")
Int64 = DataType("Int64")
Float32 = DataType("Float32")
Float64 = DataType("Float64")
Bool = DataType("Bool")
Bytes = DataType("Bytes")
Timestamp = DataType("Timestamp")

JOIN_KEY_TYPES = (String, Int32, Int64, Bytes, Bool, Timestamp)


def Array(element: DataType) -> DataType:  # noqa: N802 - the seeds' spelling
    """Return the type of a list whose elements are all of one type."""
    return DataType("Array", (element,))


def Map(key: DataType, value: DataType) -> DataType:  # noqa: N802 - the seeds' spelling
    """Return the type of a mapping from one type to another."""
    return DataType("Map", (key, value))


def Struct(fields: Sequence[Field]) -> DataType:  # noqa: N802 - the seeds' spelling
    """Return the type of a record with named members."""
    return DataType("Struct", fields=tuple(fields))


def parse_type(text: str) -> DataType:
    """Return the type that a text such as `Array(Int64)` or `Struct([a: String])` says, as `str` writes types.

    >>> parse_type("Struct([a: Array(Int64), b: Map(String, Float64)])") == Struct(
    ...     [Field("a", Array(Int64)), Field("b", Map(String, Float64))]
    ... )
    True

    Raises:
        ValueError: The text is no type.
    """
    found, rest = _parsed(text)
    if rest:
        raise ValueError(f"{text!r} is no type: {rest!r} is left over")
    return found


def _parsed(text: str) -> tuple[DataType, str]:
    """Return the type that a text begins with, and what follows it."""
    start = re.match(r"\w+", text)
    if start is None:
        raise ValueError(f"{text!r} does not begin with a type")
    name, rest = start.group(), text[start.end() :]
    if rest.startswith("(["):
        fields: list[Field] = []
        while not rest.startswith("])"):
            label, _, rest = rest[2:].partition(": ")
            dtype, rest = _parsed(rest)
            fields.append(Field(label, dtype))
        return DataType(name, fields=tuple(fields)), rest[2:]
    children: list[DataType] = []
    while rest.startswith(("(", ", ")) and (children or rest.startswith("(")):
        child, rest = _parsed(rest.removeprefix("(").removeprefix(", "))
        children.append(child)
        if rest.startswith(")"):
            return DataType(name, tuple(children)), rest[1:]
    if children:
        raise ValueError(f"the type {text!r} has no end")
    return DataType(name), rest
