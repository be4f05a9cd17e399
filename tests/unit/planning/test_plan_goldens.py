from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from featurekit_dagster.domain.feature_view import Aggregation, BatchTriggerType
from featurekit_dagster.domain.stream_sources import PushConfig, StreamSource
from featurekit_dagster.domain.windows import LifetimeWindow, TimeWindow
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.planning.planner import plan_view
from featurekit_dagster.planning.tasks import LedgerSnapshot, ViewPlan
from tests.conftest import ROOT
from tests.unit.domain.declared import DAY, START, aggregated, file_source, plain, streamed
from tests.unit.planning.plan_text import plan_text
from tests.unit.planning.test_planner import EMPTY, MAY_1_2023, NOW, covered, seed_view, span, view_of

GOLDEN = ROOT / "tests" / "golden" / "plan"
MONTHS = (Aggregation("amount", "sum", TimeWindow(30 * DAY, offset=-DAY)), Aggregation("amount", "mean", 7 * DAY))
ONLINE_BEHIND = LedgerSnapshot(
    covered={
        ("spending", "offline"): IntervalSet([span(0, 8)]),
        ("spending", "online"): IntervalSet([span(0, 3), span(5, 6)]),
    },
    running={"spending": IntervalSet([span(9, 10)])},
)
CASES: dict[str, Callable[[], ViewPlan]] = {
    "incremental_backfill": lambda: plan_view(seed_view(incremental_backfills=True), EMPTY, MAY_1_2023),
    "optimized_backfill": lambda: plan_view(seed_view(), EMPTY, MAY_1_2023),
    "cut_backfill": lambda: plan_view(seed_view(max_backfill_interval="50d"), EMPTY, MAY_1_2023),
    "widest_window": lambda: plan_view(aggregated(aggregations=[*MONTHS]), EMPTY, NOW),
    "online_behind": lambda: plan_view(view_of(), ONLINE_BEHIND, NOW),
    "moved_start": lambda: plan_view(view_of(feature_start_time=START - 5 * DAY), covered(span(0, 9)), NOW),
    "manual": lambda: plan_view(view_of(batch_trigger=BatchTriggerType.MANUAL), EMPTY, NOW),
    "lifetime": lambda: plan_view(
        aggregated(aggregations=[Aggregation("amount", "sum", LifetimeWindow())], lifetime_start_time=START - 40 * DAY),
        EMPTY,
        NOW,
    ),
    "stream": lambda: plan_view(streamed(), EMPTY, NOW),
    "stream_without_batch_side": lambda: plan_view(
        streamed(source=StreamSource(name="payments", stream_config=PushConfig())), EMPTY, NOW
    ),
    "data_delay": lambda: plan_view(plain(sources=[file_source(delay=timedelta(hours=30))]), EMPTY, NOW),
}


@pytest.mark.parametrize("case", CASES)
def test_a_plan_reads_as_it_is_written_in_its_golden_file(case: str) -> None:
    assert plan_text(CASES[case]()) == (GOLDEN / f"{case}.txt").read_text(encoding="utf-8")


def test_every_golden_plan_has_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(CASES)
