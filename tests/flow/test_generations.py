"""A changed view over one lake: refused, built anew beside what is there, or kept; and what reads answer meanwhile."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from featurekit_dagster import Workspace
from featurekit_dagster.errors import ChangedDeclaration, ChangeNotKeepable, NotMaterialized
from featurekit_dagster.execution.materialize import CLAIMED, COMPUTED, WRITTEN_OFFLINE, WRITTEN_ONLINE
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.generations import GenerationState, StoredShape
from tests.conftest import ROOT, SOAK
from tests.support.changing_view import DAY, NOW, START, make_source, run, variants

CURRENT, BUILDING, RETIRED = GenerationState.CURRENT, GenerationState.BUILDING, GenerationState.RETIRED
WHOLE = IntervalSet([Interval(START, NOW)])
Declare = Callable[..., Workspace]


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    make_source(tmp_path)
    return tmp_path


@pytest.fixture
def declare(lake: Path) -> Iterator[Declare]:
    with variants(lake) as make:
        yield make


def offline(workspace: Workspace, feature: str, *, from_source: bool = False) -> list[float]:
    """Return a feature of all keys as of three times, from the offline store unless it is to be computed."""
    times = [START + DAY + n * DAY for n in range(1, 4)]
    keys = [(user, region) for user in range(3) for region in ("north", "south")]
    rows = [{"user_id": user, "region": region, "timestamp": time} for user, region in keys for time in times]
    events = pd.DataFrame(rows)
    handle = workspace.get_feature_view("tiles")
    found = handle.get_features_for_events(events, from_source=from_source).to_pandas()
    return found[f"tiles__{feature}"].tolist()


def online(workspace: Workspace, feature: str) -> list[Any]:
    """Return a feature of all keys now, from the online store."""
    keys = [{"user_id": user, "region": region} for user in range(3) for region in ("north", "south")]
    vectors = workspace.get_feature_view("tiles").get_online_features_many(keys)
    return [vector.to_dict()[feature] for vector in vectors]


def statuses(workspace: Workspace) -> set[str]:
    vector = workspace.get_feature_view("tiles").get_online_features({"user_id": 1, "region": "north"})
    return {status.value for status in vector.statuses.values()}


def states(workspace: Workspace) -> list[GenerationState]:
    return [record.state for record in workspace.stores.ledger.generations("w", "tiles")]


def rebuild(workspace: Workspace) -> int:
    (view,) = workspace.repo.views
    return workspace.stores.ledger.rebuild("w", "tiles", StoredShape.of(view))


def keep(workspace: Workspace) -> int:
    (view,) = workspace.repo.views
    return workspace.stores.ledger.keep("w", "tiles", StoredShape.of(view))


def doubles(values: list[float]) -> list[float]:
    return [2 * value for value in values]


SUM, COUNT, MAX = "amount_sum_1d_1h", "amount_count_1d_1h", "amount_max_1d_1h"


def test_a_changed_transformation_is_refused_everywhere_and_reads_go_on(declare: Declare) -> None:
    old = declare("base")
    assert len(run(old)) == 4
    before = offline(old, SUM), online(old, SUM)
    new = declare("doubled")
    (plan,) = new.plan()
    assert (plan.runs, plan.needs_decision, plan.is_destructive, plan.wanted) == ((), True, True, WHOLE.intervals[0])
    assert plan.reason == ("changed: the transformation's code; waits for `featurekit apply --rebuild or --keep`")
    handle = new.get_feature_view("tiles")
    with pytest.raises(ChangedDeclaration, match="the transformation's code"):
        handle.trigger_materialization_job(START, START + DAY, online=True, offline=True, overwrite=True)
    with pytest.raises(ChangedDeclaration):
        run(new)
    assert [job.state for job in new.jobs()] == ["SUCCESS"] * 4
    assert (offline(new, SUM), online(new, SUM)) == before


def test_a_rebuild_is_written_beside_what_is_there_and_takes_over_at_once(declare: Declare, lake: Path) -> None:
    old = declare("base")
    run(old)
    before = offline(old, SUM), online(old, SUM)
    new = declare("doubled")
    assert rebuild(new) == 2
    (plan,) = new.plan()
    assert (plan.generation, plan.jobs) == (2, 4)
    assert plan.reason == "rebuild as generation 2 (0 of 4 intervals done)"
    run(new, most=3)
    assert new.plan()[0].reason == "rebuild as generation 2 (3 of 4 intervals done)"
    assert {path.name for path in (lake / "home/lake/w/offline/tiles").iterdir()} == {"g1", "g2"}
    assert states(new) == [CURRENT, BUILDING]
    for reader in (old, new):
        assert (offline(reader, SUM), online(reader, SUM)) == before
    run(new)
    assert states(new) == [RETIRED, CURRENT]
    assert (offline(new, SUM), online(new, SUM)) == (doubles(before[0]), doubles(before[1]))
    assert new.plan()[0].reason == f"up to date to {NOW:%Y-%m-%dT%H:%MZ}"
    time.sleep(1.1)  # another process remembers for a second which generation it reads
    assert (offline(old, SUM), online(old, SUM)) == (doubles(before[0]), doubles(before[1]))


POINTS = [(WRITTEN_OFFLINE, 4), (WRITTEN_ONLINE, 4)]
OTHERS = [(CLAIMED, 4), (COMPUTED, 4), *((point, number) for point, _ in POINTS for number in (1, 2, 3))]


@pytest.mark.parametrize(("step", "number"), POINTS + (OTHERS if SOAK else []))
def test_a_rebuild_that_is_killed_and_run_again_is_as_if_nothing_had_happened(
    declare: Declare, lake: Path, step: str, number: int
) -> None:
    old = declare("base")
    run(old)
    before = offline(old, SUM), online(old, SUM)
    rebuild(declare("doubled"))
    command = [sys.executable, "-m", "tests.support.changing_view", str(lake), "doubled", step, str(number), "die"]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, f"{step}\n"), killed.stderr
    new = declare("doubled")
    assert states(new) == [CURRENT, BUILDING]
    assert (offline(new, SUM), online(new, SUM)) == before
    run(new)
    assert states(new) == [RETIRED, CURRENT]
    assert (offline(new, SUM), online(new, SUM)) == (doubles(before[0]), doubles(before[1]))
    assert new.stores.offline.coverage("tiles", 2) == new.stores.online.coverage(
        new.stores.online_layout(new.repo.views[0])
    )


def test_kept_rows_stay_and_only_new_intervals_are_of_the_new_code(declare: Declare) -> None:
    old = declare("base", now=NOW - DAY)
    run(old)
    new = declare("doubled")
    assert keep(new) == 1
    (plan,) = new.plan()
    assert [run.interval for run in plan.runs] == [Interval(NOW - DAY, NOW)]
    run(new)
    assert states(new) == [CURRENT]
    other = declare("base")
    of_old_code = offline(other, SUM, from_source=True)
    expected = [2 * value if number % 3 == 2 else value for number, value in enumerate(of_old_code)]
    assert offline(new, SUM) == offline(other, SUM) == expected
    assert online(new, SUM) == expected[2::3]
    with pytest.raises(ChangedDeclaration):
        run(other)


@pytest.mark.parametrize("variant", ["coarser", "wider", "by_user"])
def test_what_stored_rows_cannot_follow_cannot_be_kept(declare: Declare, variant: str) -> None:
    run(declare("base"))
    with pytest.raises(ChangeNotKeepable):
        keep(declare(variant))


@pytest.mark.parametrize(("variant", "feature"), [("wider", MAX), ("coarser", "amount_sum_1d_2h")])
def test_features_that_are_not_stored_are_unknown_until_they_are_built_and_the_old_code_reads_on(
    declare: Declare, variant: str, feature: str
) -> None:
    old = declare("base")
    run(old)
    before = offline(old, SUM), online(old, SUM)
    new = declare(variant)
    assert statuses(new) == {"UNKNOWN"}
    with pytest.raises(NotMaterialized):
        offline(new, feature)
    rebuild(new)
    run(new, most=2)
    with pytest.raises(NotMaterialized):
        offline(new, feature)
    assert (offline(old, SUM), online(old, SUM)) == before
    run(new)
    assert states(new) == [RETIRED, CURRENT]
    assert statuses(new) == {"PRESENT"}
    assert None not in online(new, feature)
    assert len(offline(new, feature)) == 18


def test_the_code_before_reads_what_it_knows_of_a_wider_generation(declare: Declare) -> None:
    run(declare("base"))
    new = declare("wider")
    rebuild(new)
    run(new)
    old = declare("base")
    assert old.stores.generation(old.repo.views[0], "online") == 2
    assert (offline(old, SUM), online(old, SUM)) == (offline(new, SUM), online(new, SUM))


@pytest.mark.parametrize("variant", ["fewer", "moved", "longer"])
def test_dropped_moved_and_longer_features_need_no_decision(declare: Declare, variant: str) -> None:
    old = declare("base", now=NOW - DAY)
    run(old)
    new = declare(variant)
    assert {run.interval.end for run in new.plan()[0].runs} >= {NOW}
    run(new)
    assert states(new) == [CURRENT]
    assert new.stores.coverage(new.repo.views[0], "online").covers(Interval(START, NOW))
    assert statuses(new) == {"PRESENT"}
    fresh = declare("base")
    if variant == "fewer":
        with pytest.raises(ChangedDeclaration, match="new column sum_amount"):
            run(fresh)
        assert len(set(online(new, COUNT))) >= 1
    else:
        assert (offline(fresh, SUM), online(fresh, COUNT)) == (offline(new, SUM), online(new, COUNT))


def test_a_dropped_column_of_rows_is_written_no_more_and_read_on(declare: Declare) -> None:
    run(declare("rows", now=NOW - DAY))
    fewer = declare("fewer_rows")
    # the code of the two differs, and a person says that the other columns do not
    assert keep(fewer) == 1
    run(fewer)
    assert statuses(fewer) == {"PRESENT"}
    assert None not in online(fewer, "amount")
    assert len(offline(fewer, "amount")) == 18


def test_another_serving_index_has_an_online_prefix_of_its_own(declare: Declare) -> None:
    old = declare("base")
    run(old)
    before = online(old, SUM)
    new = declare("by_user")
    rebuild(new)
    assert (statuses(new), offline(new, SUM)) == ({"UNKNOWN"}, offline(old, SUM))
    run(new, most=2)
    assert (online(old, SUM), offline(new, SUM)) == (before, offline(old, SUM))
    run(new)
    assert (states(new), online(new, SUM)) == ([RETIRED, CURRENT], before)
    matches = new.get_feature_view("tiles").get_online_features({"user_id": 1}).to_dict()
    assert set(map(len, matches.values())) == {2}


def test_coverage_is_kept_under_another_batch_schedule(declare: Declare) -> None:
    run(declare("base", now=NOW - DAY))
    finer = declare("half_days")
    assert [change.text for change in finer.plan()[0].changes] == ["batch_schedule 1d -> 12h"]
    keep(finer)
    assert [task.interval for task in finer.plan()[0].tasks] == [
        Interval(NOW - DAY, NOW - DAY / 2),
        Interval(NOW - DAY / 2, NOW),
    ]
    run(finer, most=1)
    wide = declare("two_days")
    keep(wide)
    ((task,),) = [run.tasks for run in wide.plan()[0].runs]
    # the second of these two days is there; they are written as a whole
    assert (task.interval, task.overwrite) == (Interval(START - DAY, START + DAY), True)
    run(wide)
    covered = wide.stores.coverage(wide.repo.views[0], "offline")
    assert covered == IntervalSet([Interval(START - DAY, NOW - DAY / 2)])
    assert wide.plan()[0].runs == ()


def test_a_rebuild_of_a_manual_view_plans_all_that_was_there(declare: Declare) -> None:
    old = declare("base", now=NOW - DAY)
    run(old)
    new = declare("manual")
    rebuild(new)
    (plan,) = new.plan()
    assert (plan.wanted, plan.jobs) == (None, 3)
    run(new)
    assert states(new) == [RETIRED, CURRENT]
    assert new.plan()[0].runs == ()


def test_a_lake_that_is_gone_takes_nothing_from_the_other_generation(declare: Declare, lake: Path) -> None:
    run(declare("base"))
    new = declare("doubled")
    rebuild(new)
    run(new)
    after = offline(new, SUM)
    shutil.rmtree(lake / "home/lake/w/offline/tiles/g1")
    new.stores.ledger.forget("w", "tiles", 1)
    assert offline(new, SUM) == after
    assert states(new) == [CURRENT]
