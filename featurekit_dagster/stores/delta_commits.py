"""How a commit to a Delta table is carried out while other writers commit, too: looked at anew and tried again.

Every commit opens the table itself, so that what it was decided on is what it is judged by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ParamSpec, TypeVar

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, Schema, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
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


def opened(location: str, options: Mapping[str, str] | None = None) -> DeltaTable | None:
    """Return a table as of now; None where there is none, be it that its first commit is still being written."""
    try:
        return DeltaTable(location, storage_options=_given(options))
    except TableNotFoundError:
        return None


def created(
    location: str,
    schema: pa.Schema,
    options: Mapping[str, str] | None = None,
    configuration: Mapping[str, str | None] | None = None,
) -> DeltaTable:
    """Return a table, made without rows where there is none; of those who make it at once one does, for all.

    Args:
        location: Path or URI of the table.
        schema: Its columns.
        options: Credentials and endpoint of a remote location.
        configuration: Properties of a table that is made here.

    Raises:
        CommitFailedError: Other writers came first each time, and yet there is no table.
    """
    return redone(TRIES, _created, location, schema, options, configuration)


def _created(
    location: str,
    schema: pa.Schema,
    options: Mapping[str, str] | None,
    configuration: Mapping[str, str | None] | None,
) -> DeltaTable:
    found = opened(location, options)
    if found is not None:
        return found
    try:
        return DeltaTable.create(
            location,
            Schema.from_arrow(schema),
            mode="error",
            configuration=configuration,
            storage_options=_given(options),
            # with its retries the library makes the table again over the winner's, properties included
            commit_properties=CommitProperties(max_commit_retries=0),
            raise_if_key_not_exists=False,
        )
    except DeltaError as error:
        raise _conflict(error, location, options) from error


def create_table(
    location: str,
    rows: pa.Table,
    options: Mapping[str, str] | None,
    properties: CommitProperties,
    partition_by: Sequence[str] = (PARTITION_COLUMN,),
) -> DeltaTable:
    """Write the first commit of a table and return the table as of it.

    Args:
        location: Path or URI of the table.
        rows: Its first rows, with the columns of `partition_by`.
        options: Credentials and endpoint of a remote location.
        properties: Those of the commit, without retries: the library's retry appends to the winner's rows.
        partition_by: Columns that it is partitioned by.

    Raises:
        CommitFailedError: Another writer created the table since it was looked for.
    """
    try:
        write_deltalake(
            location,
            rows,
            mode="error",
            partition_by=list(partition_by),
            storage_options=_given(options),
            commit_properties=properties,
            writer_properties=writer_properties(rows.schema),
        )
    except DeltaError as error:
        raise _conflict(error, location, options) from error
    return DeltaTable(location, version=0, storage_options=_given(options))


def _conflict(error: DeltaError, location: str, options: Mapping[str, str] | None) -> DeltaError:
    """Return what to raise when a table was not created: "already exists" comes as the base class of conflicts."""
    if isinstance(error, CommitFailedError) or opened(location, options) is None:
        return error
    return CommitFailedError("another writer created the table")


def _given(options: Mapping[str, str] | None) -> dict[str, str] | None:
    return dict(options) if options else None
