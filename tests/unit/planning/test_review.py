"""What a person is told about a plan: news without a decision, what a rebuild would take, what may be removed when."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from featurekit_dagster import FeatureView, Field, Int64
from featurekit_dagster.intervals import Interval, IntervalSet
from featurekit_dagster.planning.generations import Change, GenerationRecord, GenerationState, StoredShape
from featurekit_dagster.planning.review import NEW, RetiredGeneration, retired_generations, review_view
from featurekit_dagster.planning.tasks import LedgerSnapshot
from tests.unit.cli_shop import DAY, FIRST_DAY, NOW, shop_workspace

VIEWS = {view.name: view for view in shop_workspace(Path(__file__).parent).repo.views}
SPEND, LAST = VIEWS["spend"], VIEWS["last_purchase"]
CODE = (Change(what="transformation", text="the transformation's code", keepable=True),)
COLUMN = Change(what="column c", text="new column c: Int64", keepable=False)


def record(generation: int, state: GenerationState, view: FeatureView | None = SPEND) -> GenerationRecord:
    shape = None if view is None else StoredShape.of(view)
    return GenerationRecord(generation=generation, state=state, shape=shape, created_at=FIRST_DAY, changed_at=NOW)


CURRENT = record(1, GenerationState.CURRENT)


@pytest.mark.parametrize(
    ("changes", "news"),
    [
        ({}, ()),
        ({"description": "d"}, ()),
        (
            {"feature_start_time": FIRST_DAY + 5 * DAY},
            ("materialization start 2024-01-01T00:00Z -> 2024-01-03T00:00Z",),
        ),
        ({"online": False}, ("no longer online",)),
        ({"aggregates": SPEND.aggregates[:2]}, ("column count_amount is no longer declared",)),
    ],
    ids=str,
)
def test_what_changed_without_a_decision_is_told(changes: dict[str, Any], news: tuple[str, ...]) -> None:
    review = review_view(replace(SPEND, **changes), LedgerSnapshot(generation={"spend": 1}), [CURRENT], NOW)
    assert review.news == news
    assert (review.rebuild, review.stored) == (None, None)


def test_a_store_that_is_written_from_now_on_is_told() -> None:
    offline = record(1, GenerationState.CURRENT, replace(SPEND, online=False))
    assert review_view(SPEND, LedgerSnapshot(generation={"spend": 1}), [offline], NOW).news == ("now online, too",)


def test_a_view_of_which_nothing_is_known_is_new_and_one_older_than_generations_is_not() -> None:
    assert review_view(SPEND, LedgerSnapshot(), [], NOW).news == (NEW,)
    covered = {("spend", "offline"): IntervalSet([Interval(FIRST_DAY, NOW)])}
    assert review_view(SPEND, LedgerSnapshot(covered=covered), [], NOW).news == ()
    assert review_view(SPEND, LedgerSnapshot(), [record(1, GenerationState.CURRENT, None)], NOW).news == ()


def test_a_rebuild_takes_all_that_is_wanted_and_all_that_was_there() -> None:
    old = IntervalSet([Interval(FIRST_DAY, FIRST_DAY + 4 * DAY)])
    snapshot = LedgerSnapshot(
        covered={("last_purchase", "offline"): old, ("spend", "offline"): old},
        running={"last_purchase": IntervalSet([Interval(FIRST_DAY, FIRST_DAY + DAY)])},
        generation={"last_purchase": 1},
        changes={"last_purchase": CODE},
    )
    records = [record(n, s, LAST) for n, s in ((1, GenerationState.CURRENT), (4, GenerationState.RETIRED))]
    review = review_view(LAST, snapshot, records, NOW)
    assert review.plan.runs == ()
    assert (review.stored, dict(review.covered), review.keepable) == (1, {"offline": old}, True)
    rebuild = review.rebuild
    assert rebuild is not None
    # a MANUAL view wants nothing by itself, two days a job
    assert (rebuild.generation, rebuild.partitions, rebuild.jobs, len(rebuild.runs)) == (5, 4, 2, 1)
    assert rebuild.tasks[0].interval == Interval(FIRST_DAY, FIRST_DAY + 2 * DAY)
    # a snapshot is a value: nothing of it was changed
    assert review_view(LAST, snapshot, records, NOW) == review


def test_one_change_that_rows_cannot_follow_is_enough_to_refuse_keeping() -> None:
    snapshot = LedgerSnapshot(changes={"spend": (*CODE, COLUMN)}, generation={"spend": 1})
    assert not review_view(SPEND, snapshot, [CURRENT], NOW).keepable


def test_replaced_generations_are_kept_for_an_hour() -> None:
    records = {"spend": [record(1, GenerationState.RETIRED), record(2, GenerationState.CURRENT)], "other": []}
    hour = timedelta(hours=1)
    assert retired_generations(records) == (RetiredGeneration(view="spend", generation=1, removable_at=NOW + hour),)
    assert retired_generations(records, kept=DAY)[0].removable_at == NOW + DAY


def test_join_keys_are_no_news_but_a_decision() -> None:
    other = replace(SPEND, join_keys=(Field("shop_id", Int64),))
    assert review_view(other, LedgerSnapshot(generation={"spend": 1}), [CURRENT], NOW).news == ()
