"""`make demo`: from flights to features, through Dagster, to a model, to vectors served online and to fresh ones.

Every step is one that a user would take; nothing here is special to the demo but its order and its words.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from featurekit_dagster.cli_materialize import carry_out, missing_runs
from featurekit_dagster.cli_output import open_console, print_line, print_table, value_text
from featurekit_dagster.cli_plan import PlanReview, print_plan
from featurekit_dagster.cli_reports import print_outcomes

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from examples.flights.model import Comparison
    from featurekit_dagster import FeatureVector, Workspace

SPINE_ROWS = 100_000
VECTORS = 5
KEYS = ("origin", "carrier", "tailnum")
SHOWN = (
    "origin_traffic.flights_count_1d_1h",
    "carrier_delays.late_mean_30d_1d",
    "origin_weather.visibility",
)
AIRPORTS = ("EWR", "JFK", "LGA")
CONGESTION = ("departures_count_1h_continuous", "delay_mean_1h_continuous")
REPLAY_FROM = datetime(2013, 12, 20, 12, tzinfo=UTC)
REPLAYED, REPLAY_SPEED = timedelta(hours=3), 3_600.0
T = TypeVar("T")


@dataclass
class Steps:
    """The steps of the demo, with the time each of them took."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, title: str, work: Callable[[], T]) -> T:
        """Say what is done, do it, and keep the time."""
        print_line(self.console, "")
        print_line(self.console, f"{len(self.seconds) + 1}. {title}", style="bold cyan")
        started = time.perf_counter()
        answer = work()
        self.seconds[title] = time.perf_counter() - started
        return answer


def main() -> int:
    """Run the demo; return the exit code, 1 when a job failed or a vector is empty."""
    console = open_console()
    steps = Steps(console)
    workspace = steps.run("Load the declarations and the data of 2013", _load)
    if not steps.run("Plan, then backfill every view through Dagster", lambda: _backfill(workspace, console)):
        return 1
    training_set = steps.run(
        f"Build a training set for {SPINE_ROWS:,} flights", lambda: _training_set(workspace, console)
    )
    comparison = steps.run("Train a model with and without the features", lambda: _train(training_set))
    _print_comparison(console, comparison)
    vectors = steps.run(f"Read {VECTORS} vectors online", lambda: _vectors(workspace, training_set))
    present = _print_vectors(console, vectors)
    steps.run("Follow departures as they happen", lambda: _follow(workspace, console))
    _print_end(console, steps)
    if not present:
        print_line(console, "A vector has no PRESENT feature: the online store does not serve.", style="bold red")
    return 0 if present else 1


def _load() -> Workspace:
    from examples.flights.features import workspace

    return workspace


def _backfill(workspace: Workspace, console: Console) -> bool:
    views, now = workspace.repo.views, workspace.now()
    print_plan(console, PlanReview.of(workspace, None), advice="Doing it now:")
    work = missing_runs(views, workspace.snapshot(), now)
    outcomes = carry_out(workspace, work, console, quiet=False)
    print_line(console, "")
    if outcomes:
        print_outcomes(console, outcomes)
    else:
        print_line(console, "Everything is materialized already; this run only reads.")
    return all(outcome.is_success for outcome in outcomes)


def _training_set(workspace: Workspace, console: Console) -> pd.DataFrame:
    from examples.flights.data import spine
    from examples.flights.model import TIME

    asked = spine(SPINE_ROWS)
    service = workspace.get_feature_service("flight_delay")
    answer = service.get_features_for_events(asked, timestamp_key=TIME).to_pandas()
    features = [name for name in answer.columns if name not in asked.columns]
    filled = float(answer[features].notna().to_numpy().mean())
    print_line(
        console, f"{len(answer):,} rows in, {len(answer):,} rows out, {len(features)} features, {filled:.0%} filled"
    )
    return answer


def _train(training_set: pd.DataFrame) -> Comparison:
    from examples.flights.model import compare

    return compare(training_set)


def _print_comparison(console: Console, comparison: Comparison) -> None:
    rows = [
        ("schedule only", f"{comparison.base:.3f}"),
        (f"schedule and {len(comparison.features)} features", f"{comparison.full:.3f}"),
        ("difference", f"{comparison.gain:+.3f}"),
    ]
    print_table(console, ("The model knows", "AUC"), rows)
    sizes = (
        f"trained on the {comparison.train_rows:,} earlier flights, judged on the {comparison.test_rows:,} later ones"
    )
    print_line(console, f"Will a flight be 15 minutes late? Asked two hours before departure; {sizes}.")


def _vectors(workspace: Workspace, training_set: pd.DataFrame) -> list[tuple[tuple[str, ...], FeatureVector]]:
    service = workspace.get_feature_service("flight_delay")
    newest = training_set.drop_duplicates(list(KEYS), keep="last").tail(VECTORS)
    asked = [tuple(map(str, row)) for row in newest[list(KEYS)].itertuples(index=False)]
    return [(keys, service.get_online_features(dict(zip(KEYS, keys, strict=True)))) for keys in asked]


def _print_vectors(console: Console, vectors: list[tuple[tuple[str, ...], FeatureVector]]) -> bool:
    """Print some of the features of each vector, and tell whether every vector has one that is PRESENT."""
    rows = []
    for keys, vector in vectors:
        values, present = vector.to_dict(), vector.slo_info["PRESENT"]
        rows.append((" ".join(keys), *(value_text(values[name]) for name in SHOWN), f"{present} of {len(values)}"))
    titles = ("Flight", *(name.split(".")[1] for name in SHOWN), "Present")
    print_table(console, titles, rows)
    return all(vector.slo_info["PRESENT"] for _, vector in vectors)


def _follow(workspace: Workspace, console: Console) -> None:
    """Replay some hours of departures, and print what an airport looks like when the last one has left."""
    from examples.flights.data import data_dir
    from featurekit_dagster.cli_replay import step_text
    from featurekit_dagster.execution.ingest import PushSource
    from featurekit_dagster.execution.replay import Replay, followed

    push = PushSource(workspace.repo.stream_source("departures"), workspace.repo.views, workspace.stores)
    # a second demo goes on where the first one ended
    start = None if push.log.newest() else REPLAY_FROM
    replay = Replay(push, data_dir() / "flights.parquet", start=start, span=REPLAYED)
    with followed(push, workspace.stores):
        replay.run(REPLAY_SPEED, lambda step: print_line(console, step_text(step)))
    view = workspace.get_feature_view("origin_congestion")
    rows = []
    for origin in AIRPORTS:
        values = view.get_online_features({"origin": origin}).to_dict()
        rows.append((origin, *(value_text(values[name]) for name in CONGESTION)))
    print_table(console, ("Airport", *CONGESTION), rows)


def _print_end(console: Console, steps: Steps) -> None:
    print_line(console, "")
    rows = [(title, f"{seconds:.1f}") for title, seconds in steps.seconds.items()]
    print_table(console, ("Step", "Seconds"), rows, ("all", f"{sum(steps.seconds.values()):.1f}"))
    print_line(console, "")
    print_line(console, "Next:", style="bold")
    print_line(console, "  make dev      the same in the Dagster UI, on http://127.0.0.1:3000")
    print_line(console, "  make demo     again: it says what is covered and does only what is missing")
    print_line(console, "  .venv/bin/featurekit get carrier_delays carrier=UA")
