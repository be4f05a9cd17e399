"""How a ledger of an older schema becomes one of today's; every step keeps all rows.

Steps are Alembic operations inside the transaction that opens the ledger, so a ledger is never half migrated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from sqlalchemy import BigInteger, Column, Connection, Integer, String, Text, update

from featurekit_dagster.stores.ledger_tables import SCHEMA_VERSION, facts

if TYPE_CHECKING:
    from alembic.operations import Operations

Step = Callable[["Operations"], None]


def _add_retries(operations: Operations) -> None:
    """Version 2: a job knows how often it may be tried, and which jobs are started together."""
    operations.add_column("jobs", Column("max_attempts", Integer, nullable=False, server_default="1"))
    operations.add_column("jobs", Column("attempts_used", Integer, nullable=False, server_default="1"))
    operations.add_column("jobs", Column("batch", String))
    operations.create_index("ix_jobs_batch", "jobs", ["batch"])
    operations.execute("UPDATE jobs SET process = '' WHERE state IN ('SUCCESS', 'FAILURE')")


def _add_generations(operations: Operations) -> None:
    """Version 3: what each generation stores, and which code a job is for; all that is there is generation 1."""
    moments = BigInteger().with_variant(Integer(), "sqlite")
    operations.add_column("jobs", Column("code_version", String))
    operations.add_column("views", Column("code_version", String))
    operations.add_column("views", Column("deployed_us", moments))
    operations.create_table(
        "generations",
        Column("workspace", String, primary_key=True),
        Column("view", String, primary_key=True),
        Column("generation", Integer, primary_key=True),
        Column("state", String, nullable=False),
        Column("shape", Text),
        Column("created_us", moments, nullable=False),
        Column("changed_us", moments, nullable=False),
    )
    operations.execute(
        "INSERT INTO generations (workspace, view, generation, state, created_us, changed_us) "
        "SELECT workspace, view, generation, 'CURRENT', min(created_us), max(updated_us) FROM jobs "
        "GROUP BY workspace, view, generation"
    )


def _add_chores(operations: Operations) -> None:
    """Version 4: jobs that claim no range and say what was asked for."""
    operations.add_column("jobs", Column("request", Text))


STEPS: Mapping[str, tuple[str, Step]] = MappingProxyType(
    {"1": ("2", _add_retries), "2": ("3", _add_generations), "3": ("4", _add_chores)}
)
"""From each version to the next one."""


def migrate(connection: Connection, version: str) -> bool:
    """Bring a ledger of a version to today's; False where no steps lead there, and nothing was changed."""
    if version == SCHEMA_VERSION:
        return True
    path, found = [], version
    while found != SCHEMA_VERSION:
        if found not in STEPS:
            return False
        found, step = STEPS[found]
        path.append(step)
    from alembic.migration import MigrationContext  # loaded for a migration only: it takes a sixth of a second
    from alembic.operations import Operations

    operations = Operations(MigrationContext.configure(connection))
    for step in path:
        step(operations)
    connection.execute(update(facts).where(facts.c.name == "schema_version").values(value=SCHEMA_VERSION))
    return True
