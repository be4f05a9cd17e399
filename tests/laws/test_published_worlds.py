"""What is published is what a range says, of every kind of view, with every function, type and NULL among the keys."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from featurekit_dagster import FeatureView, PublishFeaturesConfig
from featurekit_dagster.execution.materialize import run_tasks
from featurekit_dagster.execution.publish import Published, publish
from featurekit_dagster.intervals import Interval, to_us
from featurekit_dagster.planning.tasks import OFFLINE, Task
from featurekit_dagster.serving.published import changes_in
from featurekit_dagster.serving.ranges import features_in_range
from featurekit_dagster.serving.stored import StoredRows
from featurekit_dagster.stores.ledger_records import FEATURE_EXPORT
from featurekit_dagster.stores.workspace_stores import WorkspaceStores
from tests.conftest import SOAK
from tests.laws.test_reads_agree import materialize
from tests.laws.worlds import World, build, worlds


@settings(max_examples=300 if SOAK else 2, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(
    world=worlds(),
    share=st.sampled_from([None, None, 0.3]),
    places=st.lists(st.sampled_from([0.0, 0.4, 1.0]), max_size=2),
)
def test_published_rows_of_any_view_are_what_a_range_says(
    world: World, share: float | None, places: list[float]
) -> None:
    first = None if share is None else world.range[0] + share * (world.range[1] - world.range[0])
    options = {**world.options, "publish_features_config": PublishFeaturesConfig(publish_start_time=first)}
    with tempfile.TemporaryDirectory() as folder:
        workspace = build(replace(world, options=options), Path(folder))
        view, stores = workspace.repo.view("view"), workspace.stores
        materialize(workspace)
        export(view, stores)
        overwrite(view, stores, places)
        export(view, stores)
        published = Published.of(view, stores)
        windows = published.publishable()
        assert published.windows() == windows
        if windows:
            with published.warehouse.session() as session:
                found = session.run('SELECT * FROM laws."view"')
            wanted = expected(published, first)
            note((windows, found, wanted))
            assert sorted(map(repr, shown(found))) == sorted(map(repr, shown(wanted)))
        stores.online.close()


def export(view: FeatureView, stores: WorkspaceStores) -> None:
    """Publish what is asked for."""
    stored = StoredRows.choose(view, stores, from_source=False)

    def changes(span: Interval, is_continued: bool) -> Any:
        return changes_in(stored, span.start_us, span.end_us, is_continued=is_continued)

    for waiting in reversed(stores.ledger.unfinished_chores(stores.workspace, FEATURE_EXPORT)):
        job = stores.ledger.begin(waiting.id, run_id=None)
        stats = publish(Published.of(view, stores), job, changes, lambda: None)
        stores.ledger.finish_chore(job.id, stats=stats)


def overwrite(view: FeatureView, stores: WorkspaceStores, places: list[float]) -> None:
    """Overwrite some batch intervals, which have to be published again."""
    cells = [cell for run in stores.coverage(view, OFFLINE) for cell in run.split_on_grid(view.batch_schedule)]
    for cell in {cells[int(place * (len(cells) - 1))] for place in places} if cells else ():
        task = Task(view=view.name, interval=cell, online=False, offline=True, overwrite=True)
        list(run_tasks(view, [task], stores, trigger="manual"))


def expected(published: Published, first: datetime | None) -> list[tuple[Any, ...]]:
    """Return what reads say of the times for which windows are published."""
    stored = StoredRows.choose(published.view, published.stores, from_source=False)
    rows: list[tuple[Any, ...]] = []
    for windows in published.publishable():
        span = published.rules.shown(windows)
        start_us = span.start_us if first is None else max(span.start_us, to_us(first))
        if start_us < span.end_us:
            table = features_in_range(stored, start_us, span.end_us)
            rows += zip(*(column.to_pylist() for column in table.columns), strict=True)
    return rows


def shown(cell: Any) -> Any:
    """Return a cell so that a time is the same in whatever zone, and NaN is NaN."""
    if isinstance(cell, datetime):
        return to_us(cell)
    return [shown(each) for each in cell] if isinstance(cell, list | tuple) else repr(cell)
