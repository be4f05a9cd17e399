"""A ledger that was lost is read back from stores that hold more than one generation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.execution.repair import Repair, repair_coverage
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.generations import GenerationState, StoredShape
from tests.support.changing_view import DAY, NOW, START, close, declared, make_source, run

CURRENT, BUILDING, RETIRED = GenerationState.CURRENT, GenerationState.BUILDING, GenerationState.RETIRED
WHOLE = IntervalSet([Interval(START, NOW)])
Declare = Callable[..., Workspace]


@pytest.fixture
def declare(tmp_path: Path) -> Iterator[Declare]:
    make_source(tmp_path)
    opened: list[Workspace] = []

    def make(variant: str, **more: Any) -> Workspace:
        opened.append(declared(tmp_path, variant, **more))
        return opened[-1]

    yield make
    for workspace in opened:
        close(workspace)


def rebuilt(declare: Declare, variant: str, jobs: int) -> None:
    """Materialize the view, and as many jobs of a rebuild with the code of a variant."""
    run(declare("base"))
    new = declare(variant)
    new.stores.ledger.rebuild("w", "tiles", StoredShape.of(new.repo.views[0]))
    run(new, most=jobs)


def repaired(declare: Declare, variant: str) -> tuple[Workspace, list[Repair]]:
    """Lose the ledger, and read it back with the declaration of a variant."""
    workspace = declare(variant)
    for path in workspace.home.glob("ledger.db*"):
        path.unlink()
    return workspace, list(repair_coverage(workspace.repo.views, workspace.stores))


def states(workspace: Workspace) -> list[tuple[int, GenerationState]]:
    return [(each.generation, each.state) for each in workspace.stores.ledger.generations("w", "tiles")]


def test_the_generation_that_had_taken_over_is_the_current_one_again(declare: Declare) -> None:
    rebuilt(declare, "doubled", jobs=4)
    workspace, found = repaired(declare, "doubled")
    assert {(each.generation, each.store): each.after for each in found} == dict.fromkeys(
        [(1, "offline"), (1, "online"), (2, "offline"), (2, "online")], WHOLE
    )
    assert states(workspace) == [(1, RETIRED), (2, CURRENT)]
    assert workspace.plan()[0].reason == f"up to date to {NOW:%Y-%m-%dT%H:%MZ}"


def test_a_rebuild_that_was_under_way_goes_on(declare: Declare) -> None:
    rebuilt(declare, "doubled", jobs=3)
    workspace, _ = repaired(declare, "doubled")
    assert states(workspace) == [(1, CURRENT), (2, BUILDING)]
    assert workspace.plan()[0].reason == "rebuild as generation 2 (3 of 4 intervals done)"
    run(workspace)
    assert states(workspace) == [(1, RETIRED), (2, CURRENT)]


def test_generations_without_the_declared_columns_are_retired_and_their_numbers_not_used_again(
    declare: Declare,
) -> None:
    rebuilt(declare, "wider", jobs=4)
    workspace, _ = repaired(declare, "wider")
    assert states(workspace) == [(1, RETIRED), (2, CURRENT)]
    workspace, _ = repaired(declare, "coarser")
    assert states(workspace) == [(1, RETIRED), (2, RETIRED)]
    assert workspace.stores.ledger.resolution("w", "tiles", StoredShape.of(workspace.repo.views[0])).write == 3
    run(workspace, most=1)
    assert states(workspace) == [(1, RETIRED), (2, RETIRED), (3, CURRENT)]


def test_a_ledger_that_is_there_keeps_its_generations_and_gets_the_coverage_of_each(declare: Declare) -> None:
    rebuilt(declare, "doubled", jobs=3)
    workspace = declare("doubled")
    ledger, before = workspace.stores.ledger, states(workspace)
    for generation in (1, 2):
        ledger.restore_coverage("w", "tiles", "offline", IntervalSet(), generation)
    list(repair_coverage(workspace.repo.views, workspace.stores))
    assert states(workspace) == before == [(1, CURRENT), (2, BUILDING)]
    assert ledger.coverage("w", "tiles", "offline", 1) == WHOLE
    assert ledger.coverage("w", "tiles", "offline", 2) == IntervalSet([Interval(START, NOW - DAY)])


def test_nothing_stored_is_nothing_known(declare: Declare) -> None:
    workspace, found = repaired(declare, "base")
    assert [each.after for each in found] == [IntervalSet(), IntervalSet()]
    assert states(workspace) == []
