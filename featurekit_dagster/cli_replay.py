"""The commands that look at streams: a live table of one, and a replay of events from a file."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurekit_dagster.cli_input import frame_path, parse_time
from featurekit_dagster.cli_options import WorkspaceName, open_workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from featurekit_dagster.execution.replay import ReplayStep


_WITHOUT_LOOP = timedelta(seconds=2)


def run_stream(
    view: Annotated[str, typer.Argument(metavar="VIEW", help="Stream feature view.")],
    rows: Annotated[int, typer.Option(min=1, help="How many of the newest rows to show.")] = 20,
    limit: Annotated[int | None, typer.Option(min=1, help="End after so many rows.")] = None,
    workspace: WorkspaceName = None,
) -> None:
    """Show the rows that a view makes of its stream.

    They are shown as they come, until interrupted. A live table on a terminal, else one JSON object per row. The
    features themselves are untouched.
    """
    from featurekit_dagster.cli_output import plain
    from featurekit_dagster.execution.stream_preview import StreamPreview

    bound = open_workspace(workspace)
    preview = StreamPreview(bound.repo.view(view), bound.stores)
    left = sys.maxsize if limit is None else limit
    with _interruptible() as is_interrupted, _shown(view, rows) as show:
        while left > 0 and not is_interrupted():
            found = preview.poll().slice(0, left).to_pylist()
            left -= len(found)
            show([{name: plain(value) for name, value in row.items()} for row in found])
    preview.close()


def replay(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Push source.")],
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            callback=frame_path,
            exists=True,
            dir_okay=False,
            help="Its events: .parquet or .csv, with its fields.",
        ),
    ],
    speed: Annotated[float, typer.Option(min=0.001, help="Seconds of event time in a second.")] = 1.0,
    start: Annotated[
        datetime | None,
        typer.Option(parser=parse_time, metavar="TIME", help="First event; behind the last one sent by default."),
    ] = None,
    end: Annotated[
        datetime | None, typer.Option(parser=parse_time, metavar="TIME", help="First instant after; ISO.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Whether to follow the views of the source meanwhile.")
    ] = True,
    workspace: WorkspaceName = None,
) -> None:
    """Send the events of a file to a push source.

    They are sent in event time, and it is told how soon they are online. Views that a Dagster run follows already are
    left to it.
    """
    from contextlib import nullcontext

    from featurekit_dagster.execution.ingest import PushSource
    from featurekit_dagster.execution.replay import PATIENCE, Replay, followed

    bound = open_workspace(workspace)
    push = PushSource(bound.repo.stream_source(source), bound.repo.views, bound.stores)
    with followed(push, bound.stores) if follow else nullcontext():
        events = Replay(push, file, start=start, end=end)
        patience = PATIENCE if follow else _WITHOUT_LOOP
        sent = events.run(speed, lambda step: typer.echo(step_text(step)), patience=patience)
    typer.echo(f"{sent:,} events sent to {source}")


def step_text(step: ReplayStep) -> str:
    """Return where a replay stands in words."""
    text = f"{step.event_time:%Y-%m-%d %H:%M:%S}  {step.events:>7,} events"
    if not step.delays:
        return text
    ordered = sorted(step.delays)
    middle, worst = ordered[len(ordered) // 2] * 1e3, ordered[-1] * 1e3
    return f"{text}, online after {middle:,.0f} ms (at most {worst:,.0f} ms)"


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Turn Ctrl-C into an answer, so that what was polled is still shown."""
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _shown(title: str, most: int) -> Iterator[Any]:
    """Give what shows rows: in a live table on a terminal, else line by line."""
    import json

    from featurekit_dagster.cli_output import open_console

    console = open_console()
    if not console.is_terminal:
        yield lambda rows: sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    from rich.live import Live

    newest: deque[dict[str, Any]] = deque(maxlen=most)
    with Live(_table(title, ()), console=console, auto_refresh=False) as live:

        def show(rows: Sequence[dict[str, Any]]) -> None:
            newest.extend(rows)
            live.update(_table(title, newest), refresh=True)

        yield show


def _table(title: str, rows: Any) -> Table:
    from rich.table import Table
    from rich.text import Text

    from featurekit_dagster.cli_output import cell

    table = Table(title=title)
    names = list(rows[0]) if rows else ["waiting for events"]
    for name in names:
        table.add_column(name)
    for row in rows:
        table.add_row(*(Text(cell(row[name])) for name in names))  # values are no markup
    return table
