"""A Delta table whose log was cleaned up: a checkpoint is left, and the commit that it stands for."""

from __future__ import annotations

from pathlib import Path

from deltalake import DeltaTable

_KEEP_NOTHING = {
    "delta.logRetentionDuration": "interval 0 days",
    "delta.deletedFileRetentionDuration": "interval 0 days",
}


def forget_log(location: str) -> int:
    """Set the retention of a table's log to 0, write a checkpoint and clean up; return how many commits are left.

    The property is set by a commit without our metadata, so the newest commit is nobody's of ours.
    """
    table = DeltaTable(location)
    table.alter.set_table_properties(_KEEP_NOTHING)
    table.create_checkpoint()
    table.cleanup_metadata()
    return len(list(Path(location).glob("_delta_log/*.json")))
