"""`featurekit integration-test`: the pipeline of a feature view, end to end, in a workspace that is thrown away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import AsJson, WorkspaceName, open_workspace

if TYPE_CHECKING:
    from featurekit_dagster.domain.feature_view import FeatureView
    from featurekit_dagster.execution.integration_report import IntegrationReport

integration_test = typer.Typer(
    name="integration-test",
    no_args_is_help=True,
    help="Test a feature view end to end. The workspace for it is thrown away.",
)
_View = Annotated[str, typer.Argument(metavar="VIEW", help="Feature view.")]
_Events = Annotated[
    list[str] | None,
    typer.Option(
        "--events",
        metavar="[NAME=]FILE",
        help="Rows of a source, .parquet or .csv; NAME is the parameter of the function. Made up if not given.",
    ),
]
_FromSource = Annotated[
    bool, typer.Option("--from-source", help="Take the newest complete intervals of the view's own sources.")
]
_Seed = Annotated[int, typer.Option(help="Another one makes up other events.")]
_Junit = Annotated[Path | None, typer.Option(dir_okay=False, help="Write the report as JUnit XML, too.")]


@integration_test.command("batch")
def batch(
    view: _View,
    events: _Events = None,
    from_source: _FromSource = False,
    seed: _Seed = 0,
    junit: _Junit = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Test the batch pipeline of a view.

    That is sources, transformation, both stores, reads, and online beside offline. The exit code is 1 where a step
    fails. Nothing of the workspace's own stores is read or written.
    """
    given = {"events": events, "from_source": from_source, "seed": seed}
    _tested(workspace, view, "batch", given, junit, json=json)


@integration_test.command("stream")
def stream(
    view: _View,
    events: _Events = None,
    stream_events: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Records of the stream, one a line, where they look otherwise than rows of the batch side.",
        ),
    ] = None,
    seed: _Seed = 0,
    junit: _Junit = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Test the stream pipeline of a view.

    That is the real loop, its freshness, and what it makes beside what the batch side makes. The events of Kafka,
    Kinesis and Redis go through the log of a push source, in place of the broker. The exit code is 1 where a step
    fails. Nothing of the workspace's own stores is read or written.
    """
    records = None if stream_events is None else stream_events.read_bytes().splitlines()
    given = {"events": events, "stream_events": records, "seed": seed}
    _tested(workspace, view, "stream", given, junit, json=json)


def _tested(
    workspace: str | None, name: str, kind: str, given: dict[str, Any], junit: Path | None, *, json: bool
) -> None:
    from featurekit_dagster.cli_output import print_json
    from featurekit_dagster.orchestration.integration_test import run_integration_test

    bound = open_workspace(workspace)
    given["events"] = _frames(bound.repo.view(name), given["events"] or [])
    report = run_integration_test(bound, name, kind=kind, **given)
    if junit is not None:
        report.write_junit(junit)
    if json:
        print_json(report.record())
    else:
        _print_report(report)
    if not report.passed:
        raise typer.Exit(1)


def _frames(view: FeatureView, given: list[str]) -> dict[str, Any]:
    """Return the files of `--events` as frames, by parameter."""
    from featurekit_dagster.cli_input import frame_path, read_spine
    from featurekit_dagster.execution.integration_events import input_parameters

    names, frames = list(input_parameters(view)), {}
    for text in given:
        name, sign, file = text.partition("=")
        if not sign:
            if len(names) > 1:
                raise typer.BadParameter(f"{view.name} has several sources; give --events NAME=FILE for each")
            name, file = names[0], text
        path = frame_path(Path(file))
        if path is None or not path.is_file():
            raise typer.BadParameter(f"there is no file {file!r}")
        frames[name] = read_spine(path, view.join_keys)
    return frames


def _print_report(report: IntegrationReport) -> None:
    from featurekit_dagster.cli_output import open_console, print_line, print_table

    console = open_console()
    print_table(console, ("Step", "State", "Found"), [(s.name, s.state.value, s.detail) for s in report.steps])
    failed = f"failed at {', '.join(report.failed)}" if report.failed else "passed"
    print_line(console, f"Integration test ({report.kind}) of {report.view}: {failed}.")
