"""Runs that write one store or both: a partition is told as materialized when, and only when, every store has it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import dagster as dg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.materializations import (
    ADOPTED,
    BACKFILL,
    MaterializationRequest,
    covered_everywhere,
    materializations,
)
from featurekit_dagster.orchestration.partitions import keys_of
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from tests.flow.payments import day, key, payments_workspace

DAYS = 6
LOG = logging.getLogger("partial stores")
EXAMPLES = 150 if os.environ.get("FEATUREKIT_SOAK") else 12
RUNS = st.lists(
    st.tuples(
        st.sampled_from([ADOPTED, BACKFILL]),
        st.sampled_from([(True, False), (False, True), (True, True)]),
        st.integers(0, DAYS - 1),
        st.integers(1, DAYS),
    ),
    min_size=1,
    max_size=5,
)


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(RUNS)
def test_a_run_tells_the_partitions_that_now_have_every_store(
    tmp_path_factory: pytest.TempPathFactory, runs: list[tuple[str, tuple[bool, bool], int, int]]
) -> None:
    workspace = payments_workspace(Path(tmp_path_factory.mktemp("stores")), now=day(DAYS))
    view, stores = workspace.repo.view("spending"), workspace.stores
    has: dict[str, set[int]] = {OFFLINE: set(), ONLINE: set()}
    for number, (trigger, (online, offline), first, count) in enumerate(runs):
        asked = set(range(first, min(first + count, DAYS)))
        chosen = [ONLINE] * online + [OFFLINE] * offline
        # who fills gaps leaves alone what every chosen store has; a run that is adopted does it again
        done = asked if trigger == ADOPTED else {n for n in asked if any(n not in has[store] for store in chosen)}
        for store in chosen:
            has[store] |= done
        interval = Interval(day(min(asked)), day(max(asked) + 1))
        request = MaterializationRequest(
            interval=interval, trigger=trigger, run_id=f"run {number}", online=online, offline=offline
        )
        told = [event.partition for event in materializations(view, dg.AssetKey("spending"), request, stores, LOG)]
        both = has[OFFLINE] & has[ONLINE]
        assert sorted(map(str, told)) == [key(n) for n in sorted(done & both)]
        for store, days in has.items():
            assert list(keys_of(view, stores.coverage(view, store))) == [key(n) for n in sorted(days)]
        assert list(keys_of(view, covered_everywhere(view, stores))) == [key(n) for n in sorted(both)]
