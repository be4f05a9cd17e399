"""The commands that delete join keys, lift that, and tell of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from featurekit_dagster.cli_input import frame_path
from featurekit_dagster.cli_options import AsJson, WorkspaceName, open_workspace

ViewName = Annotated[str, typer.Argument(metavar="VIEW", help="A feature view or feature table.")]
KeysFile = Annotated[
    Path,
    typer.Option(
        "--keys",
        callback=frame_path,
        exists=True,
        dir_okay=False,
        help="Exactly its join keys: .parquet or .csv, 10,000 rows at most.",
    ),
]


def add_deletion_commands(app: typer.Typer) -> None:
    """Add the commands about deleted keys."""
    app.command("delete-keys")(delete_keys)
    app.command("allow-keys")(allow_keys)
    app.command("deletion-status")(deletion_status)


def delete_keys(
    view: ViewName,
    keys: KeysFile,
    online: Annotated[bool, typer.Option("--online/--no-online", help="Delete them online.")] = True,
    offline: Annotated[bool, typer.Option("--offline/--no-offline", help="Delete them offline.")] = True,
    permanent: Annotated[bool, typer.Option("--permanent", help="Refuse what comes later of them, too.")] = False,
    vacuum: Annotated[
        bool,
        typer.Option("--vacuum", help="Delete the files that held them at once; reads under way fail then."),
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the job has succeeded.")] = True,
    workspace: WorkspaceName = None,
) -> None:
    """Delete join keys from the stores.

    No job, stream or ingest brings them back. Reads do not find them from the first moment on. The job then writes the
    files again that hold a row of them.
    """
    from featurekit_dagster.execution.deletion_request import keys_of_file, request_deletion
    from featurekit_dagster.job_waiting import wait_for_job

    bound = open_workspace(workspace)
    declared = bound.repo.view(view)
    asked = keys_of_file(declared, keys)
    job = request_deletion(
        declared,
        asked,
        bound.stores,
        online=online,
        offline=offline,
        permanent=permanent,
        vacuum=vacuum,
        tell=typer.echo,
    )
    if job is None:
        return
    count = (job.request or {})["keys"]
    typer.echo(f"{view}: {count:,} key{'' if count == 1 else 's'} hidden from every read (job {job.id})")
    if not wait:
        return
    done = wait_for_job(bound, job.id, None)
    stats = done.stats
    facts = [f"{stats['rows_online']:,} rows gone online"] if online and "rows_online" in stats else []
    if "rows_offline" in stats:
        facts.append(f"{stats['rows_offline']:,} rows gone offline, {stats['files_rewritten']:,} files written again")
    if "rows_published" in stats:
        facts.append(f"{stats['rows_published']:,} rows gone from the warehouse")
    if "files_deleted" in stats:
        facts.append(f"{stats['files_deleted']:,} files deleted")
    typer.echo(f"{view}: {', '.join(facts)}")
    names = (done.request or {}).get("datasets", [])
    if names:
        typer.echo(f"{view}: these datasets have a row of a deleted key: {', '.join(names)}")


def allow_keys(view: ViewName, keys: KeysFile, workspace: WorkspaceName = None) -> None:
    """Let deleted join keys be stored again from now on."""
    from featurekit_dagster.execution.deletion_request import allow, keys_of_file

    bound = open_workspace(workspace)
    declared = bound.repo.view(view)
    lifted = allow(declared, keys_of_file(declared, keys), bound.stores)
    typer.echo(f"{view}: {lifted:,} deleted key{'' if lifted == 1 else 's'} may be stored again")


def deletion_status(
    view: ViewName,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many.")] = 20,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """List the deletions of a view, newest first.

    With each is said what it has done, and which datasets have such keys.
    """
    from featurekit_dagster.cli_output import open_console, print_json, print_table, short_time
    from featurekit_dagster.cli_reports import job_record
    from featurekit_dagster.stores.ledger_records import DELETION

    bound = open_workspace(workspace)
    own = bound.jobs(bound.repo.view(view).name)
    found = [job for job in own if job.kind == DELETION and job.request is not None][:limit]
    if json:
        print_json({**job_record(job), "datasets": (job.request or {}).get("datasets", [])} for job in found)
        return
    if not found:
        typer.echo(f"{view}: nothing was deleted.")
        return
    rows = [
        (
            job.id[:8],
            short_time(job.created_at),
            job.state,
            (job.request or {}).get("keys"),
            job.stats.get("rows_online"),
            job.stats.get("rows_offline"),
            ", ".join((job.request or {}).get("datasets", [])) or None,
        )
        for job in found
    ]
    titles = ("Job", "Asked for", "State", "Keys", "Rows online", "Rows offline", "In datasets")
    print_table(open_console(), titles, rows)
