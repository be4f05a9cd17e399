"""What is published is what reads answer, whatever was materialized, overwritten and published in whatever order."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from featurekit_dagster.execution.publish import Published, queue_range
from featurekit_dagster.intervals import Interval
from tests.conftest import SOAK
from tests.support.published import (
    BEGIN,
    DAYS,
    HOUR,
    KINDS,
    Event,
    day,
    export,
    materialize,
    published_view,
    rows_expected,
    rows_published,
    workspace_of,
    write_events,
)

EVENTS = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 24 * DAYS - 1), st.none() | st.integers(0, 2)), max_size=25
)
DAY_RANGES = st.tuples(st.integers(0, DAYS - 1), st.integers(1, DAYS)).map(lambda r: (r[0], min(r[0] + r[1], DAYS)))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("materialize"), DAY_RANGES),
        st.tuples(st.just("overwrite"), DAY_RANGES, EVENTS),
        st.tuples(st.just("publish"), st.just(())),
        st.tuples(st.just("again"), DAY_RANGES),
    ),
    min_size=2,
    max_size=7,
)


@settings(
    max_examples=400 if SOAK else 5,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=list(Phase) if SOAK else [Phase.explicit, Phase.reuse, Phase.generate],
)
@given(st.sampled_from(KINDS), EVENTS, STEPS, st.none() | st.integers(50, 150))
def test_published_rows_are_what_reads_answer(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    events: list[Event],
    steps: list[tuple[object, ...]],
    start_hour: int | None,
) -> None:
    folder = Path(tmp_path_factory.mktemp("published"))
    file = folder / "events.parquet"
    write_events(file, events)
    start = None if start_hour is None else BEGIN + start_hour * HOUR
    workspace = workspace_of(folder, published_view(kind, file, start=start))
    view, stores = workspace.repo.view("seen"), workspace.stores
    for what, *about in [("materialize", (0, 4)), *steps]:
        if what == "overwrite":
            inside = range(24 * about[0][0], 24 * about[0][1])
            events = [e for e in events if e[1] not in inside] + [e for e in about[1] if e[1] in inside]
            write_events(file, events)
        if what in ("materialize", "overwrite"):
            materialize(workspace, *about[0])
        elif what == "publish":
            export(workspace)
        else:
            asked = Interval(day(about[0][0]), day(about[0][1]))
            if Published.of(view, stores).publishable().overlaps(asked):
                queue_range(view, stores, asked, trigger="test")
    export(workspace)
    published = Published.of(view, stores)
    windows = published.publishable()
    assert published.windows() == windows
    if windows:
        assert published.warehouse.published(published.table) == windows
        assert rows_published(workspace) == rows_expected(workspace, windows)
