"""How the messages of the declaration rules speak of what was given."""

from __future__ import annotations

from typing import Any

_SHOWN_CHARACTERS = 40


def described(value: Any) -> str:
    """Return a value in few words: None and short texts as they are written, everything else by its type.

    >>> described(3), described(None), described("daily")
    ('an int', 'None', "'daily'")
    """
    if value is None or (isinstance(value, str) and len(value) <= _SHOWN_CHARACTERS):
        return repr(value)
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def text_fault(name: str, value: Any) -> str | None:
    """Return why a value is no text that can name something, or None."""
    if not isinstance(value, str):
        return f"{name} is {described(value)}; give text"
    return None if value else f"{name} is empty; give a name"
