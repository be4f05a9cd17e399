"""SQL of the forms that ours are measured against, one file each."""

from __future__ import annotations

from pathlib import Path


def sql(name: str, **places: str) -> str:
    """Return the text of a peer's file with its `{places}` filled in."""
    return Path(__file__).with_name(f"{name}.sql").read_text().format(**places)
