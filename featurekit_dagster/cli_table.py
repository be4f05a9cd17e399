"""The command that puts rows into a feature table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurekit_dagster.cli_input import frame_path, read_spine
from featurekit_dagster.cli_options import WorkspaceName, open_workspace
from featurekit_dagster.domain.schema import Timestamp
from featurekit_dagster.errors import SourceError, TectonValidationError


def ingest_table(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="A feature table.")],
    file: Annotated[
        Path | None,
        typer.Option(
            callback=frame_path,
            exists=True,
            dir_okay=False,
            help="Its rows: .parquet or .csv. Without a file only ingests that were interrupted are finished.",
        ),
    ] = None,
    workspace: WorkspaceName = None,
) -> None:
    """Put the rows of a file into a feature table.

    It takes all of them or none.
    """
    handle = open_workspace(workspace).get_feature_table(table)
    if file is None:
        finished = handle.finish_ingests()
        for job in finished:
            typer.echo(f"{table}: job {job.id} is {job.state}" + (f", {job.reason}" if job.reason else ""))
        if not finished:
            typer.echo(f"{table}: no ingest was interrupted.")
        return
    try:
        # times are left to the reader of CSV, which takes them with and without a zone only so
        typed = [c for c in handle.declaration.columns if not (c.dtype.is_nested or c.dtype == Timestamp)]
        rows = read_spine(file, typed)
    except SourceError:
        what = f"it is no {file.suffix[1:]} file with the columns of feature table {table}"
        raise TectonValidationError(f"{file.name}: {what}") from None
    done = handle.ingest(rows)
    counts = [f"{done.stats['rows']:,} rows"]
    if "rows_offline" in done.stats:
        counts.append(f"{done.stats['rows_replaced']:,} of them in place of others")
    if "rows_online" in done.stats:
        counts.append(f"{done.stats['rows_online']:,} newest online")
    typer.echo(f"{table}: {', '.join(counts)} (job {done.id})")
