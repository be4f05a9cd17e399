"""The commands about single jobs: list them, look at one, wait for it, cancel it, do it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.errors import TectonValidationError

if TYPE_CHECKING:
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.stores.ledger_records import AttemptRecord, JobRecord

JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job; its first characters will do.")]


def add_job_commands(app: typer.Typer) -> None:
    """Add the commands about single jobs."""
    for command in (jobs, job, wait, cancel, retry):
        app.command()(command)


def jobs(
    views: ViewNames = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many.")] = 20,
    state: Annotated[str | None, typer.Option(help="Only jobs in this state, such as FAILURE.")] = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """List jobs, newest first."""
    from featurekit_dagster.cli_output import open_console, print_json, print_table, short_interval, short_time
    from featurekit_dagster.cli_reports import job_record
    from featurekit_dagster.stores.ledger_records import BATCH

    bound = open_workspace(workspace)
    names, states = [bound.repo.view(name).name for name in views or ()], _states(state)
    if len(names) > 1:
        found = [each for each in bound.jobs(None, states) if each.view in names][:limit]
    else:
        found = bound.jobs(names[0] if names else None, states, limit)
    if json:
        print_json(job_record(each) for each in found)
        return
    if not found:
        typer.echo("There are no such jobs.")
        return
    is_due = any(each.next_attempt_at for each in found)
    is_mixed = any(each.kind != BATCH for each in found)
    rows = [
        (
            each.id[:8],
            each.view,
            *([each.kind] if is_mixed else ()),
            short_interval(each.interval),
            each.state,
            len(each.attempts),
            *([short_time(each.next_attempt_at) if each.next_attempt_at else None] if is_due else ()),
        )
        for each in found
    ]
    titles = ["Job", "Feature view", *(["Kind"] if is_mixed else ()), "Window", "State", "Attempts"]
    titles += ["Next attempt"] if is_due else []
    print_table(open_console(), titles, rows)


def job(job_id: JobId, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Show one job with its attempts."""
    bound = open_workspace(workspace)
    _show(bound, _found(bound, job_id), json=json)


def wait(
    job_id: JobId,
    timeout: Annotated[int | None, typer.Option(min=1, metavar="SECONDS", help="Give up after so long.")] = None,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Wait until a job has succeeded.

    Where no daemon runs it is carried out here. The exit code is 1 when it will not succeed by itself or the time is
    over.
    """
    from featurekit_dagster.job_waiting import wait_for_job

    bound = open_workspace(workspace)
    found = _found(bound, job_id)
    limit = None if timeout is None else timedelta(seconds=timeout)
    wait_for_job(bound, found.id, limit)
    _show(bound, _found(bound, found.id), json=json)


def cancel(job_id: JobId, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Cancel a job; its window is left alone until asked for."""
    _change(workspace, job_id, lambda bound, found: bound.stores.ledger.cancel(found.id), json=json)


def retry(job_id: JobId, workspace: WorkspaceName = None, json: AsJson = False) -> None:
    """Do a job that has ended again.

    It has all its attempts again, and replaces what is there.
    """
    _change(workspace, job_id, lambda bound, found: bound.stores.ledger.retry(found.id), json=json)


def _change(
    workspace: str | None, job_id: str, change: Callable[[Workspace, JobRecord], JobRecord], *, json: bool
) -> None:
    bound = open_workspace(workspace)
    _show(bound, change(bound, _found(bound, job_id)), json=json)


def _show(workspace: Workspace, found: JobRecord, *, json: bool) -> None:
    from featurekit_dagster.cli_output import open_console, print_json, print_line, print_table, short_interval
    from featurekit_dagster.cli_reports import job_record
    from featurekit_dagster.stores.ledger_records import BATCH

    if json:
        print_json({**job_record(found), "attempts": [_attempt(workspace, each) for each in found.attempts]})
        return
    console = open_console()
    print_line(console, f"Job {found.id}: {found.state}", style="bold")
    kind = "" if found.kind == BATCH else found.kind
    window = " ".join(filter(None, (kind, found.view, short_interval(found.interval))))
    facts = [
        ", ".join(filter(None, (window, " and ".join(found.stores)))),
        f"asked for by {found.trigger}" + (", may replace what is there" if found.overwrite else ""),
    ]
    facts += [f"reason: {found.reason}"] if found.reason else []
    facts += [f"next attempt at {found.next_attempt_at:%Y-%m-%dT%H:%M:%SZ}"] if found.next_attempt_at else []
    for fact in [*facts, *(_counts(found.stats) if found.request is None else _chore_counts(found.stats))]:
        print_line(console, fact, indent="  ")
    if found.attempts:
        console.print()
        rows = [
            (f"Attempt {each.number}", each.state, each.created_at, each.updated_at, _run_url(workspace, each))
            for each in found.attempts
        ]
        print_table(console, ("", "State", "Began", "Ended or changed", "Run"), rows)


def _counts(stats: Mapping[str, int]) -> Iterator[str]:
    """Yield what a job has written, a line per store."""
    from featurekit_dagster.cli_output import count_of

    if "rows_offline" in stats:
        yield f"offline: wrote {count_of(stats['rows_offline'], 'row')} in place of {stats['rows_replaced']:,}"
    if "rows_online" in stats:
        skipped, cleared = stats.get("rows_online_skipped", 0), stats.get("keys_cleared", 0)
        line = f"online: wrote {count_of(stats['rows_online'], 'row')}"
        line += f", left out {skipped:,} that have newer ones" if skipped else ""
        yield line + (f", cleared {count_of(cleared, 'key')} that vanished" if cleared else "")


def _chore_counts(stats: Mapping[str, int]) -> Iterator[str]:
    """Yield what a chore has counted, a line each."""
    for name, count in stats.items():
        yield f"{name.replace('_', ' ')}: {count:,}"


def _attempt(workspace: Workspace, attempt: AttemptRecord) -> dict[str, Any]:
    from featurekit_dagster.intervals import format_time

    return {
        "number": attempt.number,
        "state": attempt.state,
        "created_at": format_time(attempt.created_at),
        "updated_at": format_time(attempt.updated_at),
        "run_url": _run_url(workspace, attempt),
    }


def _run_url(workspace: Workspace, attempt: AttemptRecord) -> str | None:
    return None if attempt.run_id is None else f"{workspace.dagster_url}/runs/{attempt.run_id}"


def _found(workspace: Workspace, job_id: str) -> JobRecord:
    """Return the job of an id, or of the beginning of one.

    Raises:
        TectonValidationError: No job begins so, or several do.
    """
    stores = workspace.stores
    found = stores.ledger.jobs(workspace.name, id_start=job_id, limit=2) if stores.has_ledger else []
    if len(found) == 1:
        return found[0]
    what = "several jobs begin" if found else "no job begins"
    raise TectonValidationError(f"{what} with {job_id!r}; featurekit jobs lists them, give one id")


def _states(given: str | None) -> list[str] | None:
    from featurekit_dagster.planning.job_state import JobState

    states = [state.value for state in JobState]
    if given is not None and given.upper() not in states:
        raise typer.BadParameter(f"{given!r} is no state; give one of {', '.join(states)}", param_hint="--state")
    return None if given is None else [given.upper()]
