"""The commands about datasets: make one, list them, look at one, make it again to compare, archive and delete it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import AsJson, WorkspaceName, open_workspace

if TYPE_CHECKING:
    from featurekit_dagster.dataset_handles import Dataset
    from featurekit_dagster.sdk import Workspace

DatasetName = Annotated[str, typer.Argument(metavar="NAME", help="The dataset.")]
_BARS = " ▁▂▃▄▅▆▇█"

dataset = typer.Typer(name="dataset", no_args_is_help=True, help="Keep features of given examples as named datasets.")


@dataset.command()
def create(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Name of the dataset, unique in the workspace.")],
    spine: Annotated[
        str, typer.Option(metavar="FILE|SQL", help="Join keys and times: .parquet, .csv, or a query that DuckDB runs.")
    ],
    service: Annotated[str | None, typer.Option(metavar="NAME", help="Feature service.")] = None,
    view: Annotated[str | None, typer.Option(metavar="NAME", help="Feature view, instead of a service.")] = None,
    timestamp_key: Annotated[str | None, typer.Option(help="Time column of the spine, when it has several.")] = None,
    from_source: Annotated[
        bool | None, typer.Option("--from-source/--from-store", help="Where the values come from.")
    ] = None,
    allow_gaps: Annotated[
        bool, typer.Option("--allow-gaps", help="NULL where something is not materialized, instead of an error.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Make it here and now, or leave it to the daemon.")
    ] = True,
    workspace: WorkspaceName = None,
) -> None:
    """Join features with a spine, and keep the result.

    Each row gets them as of its own time. The rows are made and stored bucket by bucket. A job that was cancelled or
    has failed goes on at the next bucket: featurekit retry.
    """
    if (service is None) == (view is None):
        raise typer.BadParameter("give either --service or --view")
    bound = open_workspace(workspace)
    handle: Any = bound.get_feature_view(view) if view is not None else bound.get_feature_service(str(service))
    job = handle.create_dataset(name, spine, timestamp_key, from_source, allow_gaps=allow_gaps)
    if not wait:
        typer.echo(f"{name}: job {job.id} waits")
        return
    job.complete()
    made = bound.get_dataset(name)
    typer.echo(f"{name}: {made.row_count:,} rows, {len(made.features)} features (job {job.id})")


@dataset.command("list")
def list_all(
    archived: Annotated[bool, typer.Option("--archived", help="List archived ones, too.")] = False,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """List datasets, and those that are being made."""
    from featurekit_dagster.cli_output import open_console, print_json, print_table

    bound = open_workspace(workspace)
    found = [bound.get_dataset(name) for name in bound.list_datasets(include_archived=archived)]
    begun = [_begun(bound, name) for name in bound.stores.datasets.begun()]
    if json:
        print_json([*map(_record, found), *begun])
        return
    if not found and not begun:
        typer.echo("There are no datasets.")
        return
    rows: list[tuple[object, ...]] = [
        (each.name, _made_of(each), each.row_count, len(each.features), "archived" if each.is_archived else "ready")
        for each in found
    ]
    rows += [(b["name"], b["of"], b["rows"], None, f"{b['state']}, {b['buckets']} of {b['of_buckets']}") for b in begun]
    print_table(open_console(), ("Dataset", "Of", "Rows", "Features", "State"), rows)


@dataset.command()
def show(name: DatasetName, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Show what a dataset was made of and what its features look like."""
    from featurekit_dagster.cli_output import open_console, print_json, print_line, print_table, short_time

    found = open_workspace(workspace).get_dataset(name)
    if json:
        print_json({**found.manifest, "storage_location": found.storage_location, "is_archived": found.is_archived})
        return
    console, manifest = open_console(), found.manifest
    made_at = short_time(datetime.fromisoformat(manifest["created_at"]))
    print_line(console, f"Dataset {name} of {_made_of(found)}", style="bold")
    print_line(console, f"{found.row_count:,} rows, made at {made_at} by job {manifest['job_id']}")
    for view, version in manifest["versions"].items():
        shown = "nothing stored" if version["version"] is None else f"version {version['version']}"
        print_line(console, f"read from {view}: {shown} of generation {version['generation']}")
    console.print()
    titles = ("Feature", "Type", "NULL", "Least", "Median", "Mean", "Greatest", "Distinct", "Histogram")
    features = [column for column in manifest["columns"] if column["is_feature"]]
    print_table(console, titles, [_statistics_row(column) for column in features])


@dataset.command()
def verify(name: DatasetName, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Make a dataset again, and compare contents.

    It is made from the versions that it was made of, and not stored. The exit code is 1 where they differ, or where the
    versions are gone.
    """
    from featurekit_dagster.cli_output import print_json

    outcome = open_workspace(workspace).get_dataset(name).reproduce()
    if json:
        print_json(
            {
                "is_equal": outcome.is_equal,
                "recorded": outcome.recorded,
                "stored": outcome.stored,
                "reproduced": outcome.reproduced,
            }
        )
    elif outcome.is_equal:
        typer.echo(f"{name}: the same rows, {outcome.recorded[:16]}")
    else:
        what = "the stored rows are" if outcome.stored != outcome.recorded else "the rows made again are"
        typer.echo(f"{name}: {what} not those of the manifest")
    raise typer.Exit(0 if outcome.is_equal else 1)


@dataset.command()
def archive(
    name: DatasetName,
    undo: Annotated[bool, typer.Option("--undo", help="Show it in lists again.")] = False,
    workspace: WorkspaceName = None,
) -> None:
    """Leave a dataset out of lists.

    Its rows stay, and its name stays taken.
    """
    found = open_workspace(workspace).get_dataset(name)
    if undo:
        found.unarchive()
    else:
        found.archive()
    typer.echo(f"{name} is {'shown in lists again' if undo else 'archived'}.")


@dataset.command()
def delete(name: DatasetName, workspace: WorkspaceName = None) -> None:
    """Delete a dataset.

    Deleted is also what a job has left of one that ended without success.
    """
    from featurekit_dagster.execution.dataset import remove_dataset

    remove_dataset(open_workspace(workspace).stores, name)
    typer.echo(f"{name} is deleted.")


def _made_of(found: Dataset) -> str:
    request = found.manifest["request"]
    return str(request["service"] or request["references"][0]["view"])


def _record(found: Dataset) -> dict[str, Any]:
    return {
        "name": found.name,
        "of": _made_of(found),
        "rows": found.row_count,
        "state": "archived" if found.is_archived else "ready",
        "storage_location": found.storage_location,
        "content_sha256": found.manifest["content_sha256"],
    }


def _begun(workspace: Workspace, name: str) -> dict[str, Any]:
    """Return what is known about a dataset that is not there yet."""
    from featurekit_dagster.dataset_handles import DatasetJob
    from featurekit_dagster.errors import NotFoundError
    from featurekit_dagster.execution.dataset import open_request

    found = open_request(workspace.stores.datasets, name)
    if found is None:
        return {"name": name, "of": None, "rows": 0, "state": "gone", "buckets": 0, "of_buckets": 0}
    job_id, request, _ = found
    job = DatasetJob(workspace, job_id, name)
    try:
        state = job.state
    except NotFoundError:
        state = "of an unknown job"
    done, total = job.progress
    rows = workspace.stores.datasets.row_count(name)
    of = request.service or request.view
    return {"name": name, "of": of, "rows": rows, "state": state, "buckets": done, "of_buckets": total}


def _statistics_row(column: Mapping[str, Any]) -> tuple[object, ...]:
    statistics = column["statistics"]
    quantiles = statistics.get("quantiles")
    return (
        column["name"],
        column["type"],
        f"{column['null_rate']:.1%}",
        _number(statistics.get("min", statistics.get("min_length"))),
        _number(quantiles[len(quantiles) // 2] if quantiles else None),
        _number(statistics.get("mean", statistics.get("mean_length"))),
        _number(statistics.get("max", statistics.get("max_length"))),
        statistics.get("distinct"),
        _bars(statistics["histogram"]["counts"]) if "histogram" in statistics else None,
    )


def _number(value: Any) -> Any:
    return f"{value:,.4g}" if isinstance(value, float) else value


def _bars(counts: list[int]) -> str:
    """Return a histogram as one line of text; a bin that has something never looks empty.

    >>> _bars([0, 1, 50, 100])
    ' ▁▄█'
    """
    most = max(counts, default=0)
    last = len(_BARS) - 1
    return "".join(_BARS[0 if count == 0 else max(1, count * last // most)] for count in counts)
