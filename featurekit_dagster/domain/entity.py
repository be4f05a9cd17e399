"""Entities: the things that features describe, and the columns that identify them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurekit_dagster.domain.schema import JOIN_KEY_TYPES, DataType, Field
from featurekit_dagster.domain.wording import described, text_fault
from featurekit_dagster.errors import DeclarationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """A thing that features describe.

    Args:
        name: Unique in the workspace.
        join_keys: The columns that identify one: names (the type then comes from each view's schema) or typed `Field`s.
        description: What the entity is.
        tags: Key-value pairs for people.
        owner: Who maintains it.

    Raises:
        DeclarationError: No join keys, one twice, or one of a type that cannot be a key.
    """

    name: str
    join_keys: Sequence[str | Field]
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    owner: str | None = None

    def __post_init__(self) -> None:
        given = self.join_keys
        keys = list(given) if isinstance(given, list | tuple) else [given]
        faults = [fault for fault in [text_fault("name", self.name)] if fault]
        if not keys:
            faults.append("join_keys is empty; name the columns that identify one")
        for key in keys:
            faults += _key_faults(key)
        names = [key.name if isinstance(key, Field) else key for key in keys if isinstance(key, str | Field)]
        faults += [f"join key {name!r} is given twice; keep one" for name in names if names.count(name) > 1]
        if faults:
            raise DeclarationError(subject=f"entity {self.name!r}", faults=faults)
        object.__setattr__(self, "join_keys", tuple(keys))

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def key_names(self) -> tuple[str, ...]:
        """Names of the join keys, in order."""
        return tuple(key.name if isinstance(key, Field) else key for key in self.join_keys)


def _key_faults(key: object) -> list[str]:
    if not isinstance(key, str | Field):
        return [f"join key is {described(key)}; give a name or Field(name, type)"]
    faults = [text_fault("name of a join key", key.name if isinstance(key, Field) else key)]
    faults += [join_key_fault(key)] if isinstance(key, Field) else []
    return [fault for fault in faults if fault]


def join_key_fault(key: Field) -> str | None:
    """Return why a column cannot be a join key, or None."""
    if not isinstance(key.dtype, DataType):
        return f"join key {key.name!r} has type {described(key.dtype)}; use {', '.join(map(str, JOIN_KEY_TYPES))}"
    if key.dtype in JOIN_KEY_TYPES:
        return None
    why = "floats are not compared exactly" if key.dtype.is_float else "it has no single comparable value"
    return f"join key {key.name!r} is {key.dtype}: {why}; use {', '.join(map(str, JOIN_KEY_TYPES))}"
