"""Which warehouse a workspace publishes to: a DuckDB file in its home, or what `$FEATUREKIT_WAREHOUSE` names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from featurekit_dagster.errors import Unsupported
from featurekit_dagster.stores.warehouse import Warehouse

if TYPE_CHECKING:
    from featurekit_dagster.stores.warehouse_duckdb import Connect

WAREHOUSE_VARIABLE = "FEATUREKIT_WAREHOUSE"
_POSTGRES = ("postgresql", "postgres")


def warehouse_file(home: Path) -> Path | None:
    """Return the DuckDB file that is published to; None where it is a database."""
    given = os.environ.get(WAREHOUSE_VARIABLE)
    if not given:
        return home / "warehouse.duckdb"
    return None if "://" in given else Path(given).absolute()


def open_warehouse(home: Path, connect_to: Callable[[Path], Connect] | None = None) -> Warehouse:
    """Return the warehouse of a workspace.

    Args:
        home: The workspace's home.
        connect_to: Returns what opens a DuckDB file; by default the file is opened by the store itself.

    Raises:
        Unsupported: `$FEATUREKIT_WAREHOUSE` is the URL of something else than PostgreSQL.
    """
    file = warehouse_file(home)
    if file is not None:
        from featurekit_dagster.stores.warehouse_duckdb import DuckDBWarehouse

        return DuckDBWarehouse(file, None if connect_to is None else connect_to(file))
    url = os.environ[WAREHOUSE_VARIABLE]
    scheme = url.partition("://")[0]
    if scheme not in _POSTGRES:
        raise Unsupported(
            f"{WAREHOUSE_VARIABLE} is a {scheme} URL; features are published in a DuckDB file or in PostgreSQL; give "
            "a path or a postgresql:// URL"
        )
    from featurekit_dagster.stores.warehouse_postgres import PostgresWarehouse

    return PostgresWarehouse(url)
