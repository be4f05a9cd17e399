"""Compaction and clean-up change no answer: not at once, and not of any later job or overwrite."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from featurekit_dagster import Workspace
from featurekit_dagster.execution.compaction import clean_up_view, compact_view
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.planning.online_tiles import largest_tile_us
from featurekit_dagster.planning.tasks import ONLINE, Task
from tests.conftest import SOAK
from tests.laws.test_reads_agree import agree, check_online, materialize
from tests.laws.worlds import World, build, worlds
from tests.support.clock import Clock
from tests.support.oracle import utc

EXAMPLES = 1_000 if SOAK else 8
STEPS = st.lists(
    st.sampled_from(["compact", "compact", "clean up", "later", "later", "overwrite"]), min_size=3, max_size=7
)


def nothing_stops() -> None:
    """Go on."""


@contextmanager
def kept(world: World) -> Iterator[tuple[World, Workspace, Clock]]:
    """Yield a workspace that stands two thirds into the events, with all that is complete by then."""
    with tempfile.TemporaryDirectory() as name:
        first, last = min(world.range), utc(world.now)
        clock = Clock(utc(first) + (last - utc(first)) / 3)
        workspace = build(world, Path(name), clock)
        materialize(workspace)
        yield world, workspace, clock
        workspace.stores.online.close()


def vectors(world: World, handle: Any) -> list[list[Any]]:
    return [list(handle.get_online_features(key).to_dict().values()) for key in world.distinct_keys()]


def same(world: World, before: list[list[Any]], after: list[list[Any]]) -> bool:
    keys = world.distinct_keys()
    return all(agree(world, key, a, b) for key, a, b in zip(keys, after, before, strict=True))


def do(step: str, world: World, workspace: Workspace, clock: Clock, share: float) -> None:
    view, stores = workspace.repo.view("view"), workspace.stores
    if step == "later":
        clock.now = clock.now + share * (utc(world.now) - clock.now)
        materialize(workspace)
    elif step == "overwrite":
        covered = list(stores.coverage(view, ONLINE))
        if covered:
            cells = list(covered[-1].split_on_grid(view.batch_schedule))
            cell = cells[int(share * (len(cells) - 1))]
            task = Task(view="view", interval=cell, online=True, offline=True, overwrite=True)
            list(run_tasks(view, [task], stores, trigger="manual"))
    else:
        keep = compact_view if step == "compact" else clean_up_view
        keep(view, stores, holder="law", check=nothing_stops, patience=timedelta(0))


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    world=worlds(kinds=("batch tiles", "batch tiles", "batch events", "batch rows")),
    steps=STEPS,
    share=st.sampled_from([0.2, 0.5, 1.0]),
)
def test_no_step_of_upkeep_changes_an_answer(world: World, steps: list[str], share: float) -> None:
    with kept(world) as (_, workspace, clock):
        handle = workspace.get_feature_view("view")
        for step in [*steps, "compact"]:
            before = vectors(world, handle)
            do(step, world, workspace, clock, share)
            note((step, clock.now))
            if step in ("compact", "clean up"):
                after = vectors(world, handle)
                note((before, after))
                assert same(world, before, after)
            check_online(world, handle, clock.now)
        view = workspace.repo.view("view")
        if list(workspace.stores.coverage(view, ONLINE)):
            assert workspace.stores.online_layout(view).tile_us == largest_tile_us(view)
