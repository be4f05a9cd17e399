"""Entities: the things that features describe, and the columns that identify them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurekit_dagster.domain.schema import JOIN_KEY_TYPES, Field
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
        faults = [] if self.name else ["name is empty; give the entity a name"]
        keys = [self.join_keys] if isinstance(self.join_keys, str | Field) else list(self.join_keys)
        if not keys:
            faults.append("join_keys is empty; name the columns that identify one")
        names = [key.name if isinstance(key, Field) else key for key in keys]
        faults += [f"join key {n!r} is given twice" for n in dict.fromkeys(names) if names.count(n) > 1]
        for key in keys:
            if isinstance(key, Field) and (fault := join_key_fault(key)):
                faults.append(fault)
        if faults:
            raise DeclarationError(subject=f"entity {self.name!r}", faults=faults)
        object.__setattr__(self, "join_keys", tuple(keys))

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def key_names(self) -> tuple[str, ...]:
        """Names of the join keys, in order."""
        return tuple(key.name if isinstance(key, Field) else key for key in self.join_keys)


def join_key_fault(key: Field) -> str | None:
    """Return why a column cannot be a join key, or None."""
    if key.dtype in JOIN_KEY_TYPES:
        return None
    why = "floats are not compared exactly" if key.dtype.is_float else "it has no single comparable value"
    return f"join key {key.name!r} is {key.dtype}: {why}; use {', '.join(map(str, JOIN_KEY_TYPES))}"
