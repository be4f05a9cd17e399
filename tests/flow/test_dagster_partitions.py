"""Batch intervals as partitions: cron on the epoch grid, keys, ranges, and schedules that cannot be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from featurekit_dagster import DeclarationError
from featurekit_dagster.intervals import Interval, is_aligned
from featurekit_dagster.orchestration.partitions import cron_of, interval_of_keys, key_range, keys_of, partitions_of
from tests.flow.payments import day, payments_workspace

MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
WIDTHS = [MINUTE, 5 * MINUTE, 30 * MINUTE, HOUR, 6 * HOUR, 12 * HOUR, 24 * HOUR, 7 * 24 * HOUR]


@pytest.mark.parametrize("width", WIDTHS, ids=str)
def test_cron_points_lie_on_the_epoch_grid(width: timedelta) -> None:
    start = datetime(2023, 12, 30, tzinfo=UTC)
    definition = dg.TimeWindowPartitionsDefinition(
        start=start, end=start + 40 * width, fmt="%Y-%m-%dT%H:%MZ", cron_schedule=cron_of(width), timezone="UTC"
    )
    starts = [datetime.strptime(k, "%Y-%m-%dT%H:%MZ").replace(tzinfo=UTC) for k in definition.get_partition_keys()]
    assert len(starts) >= 39
    assert all(is_aligned(time, width) for time in starts)
    assert {b - a for a, b in zip(starts, starts[1:], strict=False)} == {width}


@pytest.mark.parametrize(
    ("width", "delay", "cron"),
    [
        (timedelta(days=1), HOUR, "0 1 * * *"),
        (timedelta(days=1), timedelta(days=2, hours=3, minutes=30), "30 3 * * *"),
        (timedelta(days=7), timedelta(days=1, hours=2), "0 2 * * 5"),
        (timedelta(days=7), timedelta(days=4), "0 0 * * 1"),
        (6 * HOUR, 90 * MINUTE, "30 1-23/6 * * *"),
        (HOUR, 75 * MINUTE, "15 * * * *"),
        (15 * MINUTE, 5 * MINUTE, "5-59/15 * * * *"),
        (15 * MINUTE, timedelta(seconds=30), "1-59/15 * * * *"),
        (MINUTE, timedelta(seconds=30), "* * * * *"),
        (timedelta(days=1), timedelta(hours=23, minutes=59, seconds=1), "0 0 * * *"),
    ],
)
def test_schedule_ticks_at_interval_end_plus_delay_rounded_up_to_the_minute(
    width: timedelta, delay: timedelta, cron: str
) -> None:
    assert cron_of(width, delay) == cron


def test_keys_and_intervals_are_two_names_of_one_thing(tmp_path: Path) -> None:
    view = payments_workspace(tmp_path, now=day(10)).repo.view("spending")
    interval = Interval(day(2), day(5))
    keys = key_range(view, interval)
    assert (keys.start, keys.end) == ("2023-01-03T00:00Z", "2023-01-05T00:00Z")
    assert interval_of_keys(view, keys) == interval
    assert list(keys_of(view, [interval])) == partitions_of(view, day(10)).get_partition_keys_in_range(keys)
    assert list(keys_of(view, [Interval(day(2) + HOUR, day(4))])) == ["2023-01-04T00:00Z"]


def test_partitions_end_with_the_last_ready_interval_of_a_fixed_clock(tmp_path: Path) -> None:
    delayed = payments_workspace(tmp_path, now=day(10), data_delay=HOUR).repo.view("spending")
    assert partitions_of(delayed, day(10)).get_last_partition_key() == "2023-01-09T00:00Z"
    assert partitions_of(delayed, day(-10)).get_num_partitions() == 0


def test_schedule_that_cron_cannot_express_is_refused_with_the_allowed_ones(tmp_path: Path) -> None:
    workspace = payments_workspace(tmp_path, now=day(10), batch_schedule=timedelta(days=3))
    with pytest.raises(DeclarationError) as refused:
        workspace.definitions()
    (fault,) = refused.value.faults
    assert fault.startswith("feature view 'spending': batch_schedule 3d cannot be partitions")
    assert fault.endswith("1, 2, 3, 4, 6, 8, 12 hours, 1 day or 7 days")


def test_many_partitions_are_warned_about_and_too_many_refused(tmp_path: Path) -> None:
    quarter = {"batch_schedule": 15 * MINUTE, "aggregation_interval": 15 * MINUTE}
    workspace = payments_workspace(tmp_path, now=day(365), **quarter)
    with pytest.warns(UserWarning, match="makes 35,040 partitions"):
        workspace.definitions()
    workspace = payments_workspace(tmp_path, now=day(3 * 365), **quarter)
    with pytest.raises(DeclarationError, match="takes at most 100,000"):
        workspace.definitions()
