"""How a commit to a Delta table is carried out while other writers commit, too: looked at anew and tried again.

Every commit opens the table itself, so that what it was decided on is what it is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ParamSpec, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from featurekit_dagster.stores.delta_files import writer_properties
from featurekit_dagster.stores.offline_rows import PARTITION_COLUMN

_P = ParamSpec("_P")
_T = TypeVar("_T")
TRIES = 20


def redone(tries: int, commit: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what a commit returns, done again from its beginning while another writer's came first.

    Raises:
        CommitFailedError: Another writer came first each time; nothing was written.
    """
    retrying = Retrying(
        retry=retry_if_exception_type(CommitFailedError),
        wait=wait_random_exponential(multiplier=0.05, max=2),
        stop=stop_after_attempt(tries),
        reraise=True,
    )
    return retrying(commit, *args, **kwargs)


def create_table(
    location: str, rows: pa.Table, options: Mapping[str, str] | None, properties: CommitProperties
) -> DeltaTable:
    """Write the first commit of a partitioned table and return the table as of it.

    Args:
        location: Path or URI of the table.
        rows: Its first rows, with the partition column.
        options: Credentials and endpoint of a remote location.
        properties: Those of the commit, without retries: the library's retry appends to the winner's rows.

    Raises:
        CommitFailedError: Another writer created the table since it was looked for.
    """
    storage_options = dict(options) if options else None
    try:
        write_deltalake(
            location,
            rows,
            mode="error",
            partition_by=[PARTITION_COLUMN],
            storage_options=storage_options,
            commit_properties=properties,
            writer_properties=writer_properties(rows.schema),
        )
    except DeltaError as error:
        # "Already exists" comes as the base class: another writer created the table since we looked.
        if isinstance(error, CommitFailedError) or not DeltaTable.is_deltatable(location, storage_options):
            raise
        raise CommitFailedError("another writer created the table") from error
    return DeltaTable(location, version=0, storage_options=storage_options)
