"""Laws of the comparison of stores: after jobs of any view nothing differs and all is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from featurekit_dagster import Workspace
from featurekit_dagster.serving.consistency import check_consistency
from tests.laws.test_reads_agree import materialize
from tests.laws.worlds import World, build, worlds

EXAMPLES = max(settings.default.max_examples // 4, 8)


@contextmanager
def built(world: World) -> Iterator[Workspace]:
    with tempfile.TemporaryDirectory() as folder:
        workspace = build(world, Path(folder))
        try:
            yield workspace
        finally:
            workspace.stores.online.close()


@pytest.mark.slow
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(worlds(kinds=("batch tiles", "batch rows", "batch events")))
def test_nothing_differs_after_jobs_of_any_view(world: World) -> None:
    with built(world) as workspace:
        materialize(workspace)
        view = workspace.repo.view("view")
        report = check_consistency(view, workspace.stores, sample=10)
        assert report.is_consistent, report.record()
        assert not any(feature.unknown for feature in report.features)
