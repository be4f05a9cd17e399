"""Batch intervals as partitions: cron on the epoch grid, keys, ranges, and schedules that cannot be."""

from __future__ import annotations

import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from rich.console import Console

from featurekit_dagster import DeclarationError, Workspace
from featurekit_dagster.cli_materialize import carry_out, missing_runs, queue_runs
from featurekit_dagster.errors import TooManyPartitions
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


def five_minute_workspace(folder: Path, now: datetime) -> Workspace:
    """Return the payments with `spending` on a schedule of 5 minutes."""
    return payments_workspace(folder, now=now, batch_schedule=5 * MINUTE, aggregation_interval=5 * MINUTE)


def test_many_partitions_are_warned_about_and_too_many_refused(tmp_path: Path) -> None:
    first = day(0)  # the widest window before the feature start
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        five_minute_workspace(tmp_path, first + 20_000 * 5 * MINUTE).definitions()
    with pytest.warns(UserWarning, match="batch_schedule 5m makes 20,001 partitions"):
        five_minute_workspace(tmp_path, first + 20_001 * 5 * MINUTE).definitions()
    with pytest.warns(UserWarning, match="makes 100,000 partitions"):
        five_minute_workspace(tmp_path, first + 100_000 * 5 * MINUTE).definitions()
    with pytest.raises(DeclarationError, match="takes at most 100,000"):
        five_minute_workspace(tmp_path, first + 100_001 * 5 * MINUTE).definitions()


def test_five_minutes_over_two_years_are_refused_and_only_warned_about_where_they_exist(tmp_path: Path) -> None:
    workspace = five_minute_workspace(tmp_path, day(1 + 731))
    (plan,) = workspace.plan(["spending"])
    assert plan.partitions > 210_000
    with pytest.raises(DeclarationError) as refused:
        workspace.definitions()
    (fault,) = refused.value.faults
    assert fault == (
        "feature view spending: batch_schedule 5m makes 210,816 partitions; Dagster gets slow above 20,000 and takes "
        "at most 100,000; give a longer batch_schedule (aggregation_interval may stay short), or a later "
        "feature_start_time"
    )
    view = workspace.get_feature_view("spending")
    with pytest.raises(TooManyPartitions, match="210,816 partitions"):
        view.trigger_materialization_job(day(1), day(2), online=True, offline=True)
    work = missing_runs([view.declaration], workspace.snapshot(), workspace.now())
    with pytest.raises(TooManyPartitions):
        queue_runs(workspace, work)
    with pytest.raises(TooManyPartitions):
        carry_out(workspace, work, Console(), quiet=True)
    assert workspace.jobs() == []

    facts = {"workspace": "payments", "view": "spending", "online": True, "offline": True, "trigger": "backfill"}
    job = workspace.stores.ledger.claim(interval=Interval(day(1), day(2)), **facts)
    workspace.stores.ledger.succeed(job.id, stats={})
    with pytest.warns(UserWarning, match="makes 210,816 partitions"):
        workspace.definitions()
    assert view.trigger_materialization_job(day(2), day(3), online=True, offline=True)


def test_keys_of_two_years_of_five_minutes_name_the_interval_that_they_came_from(tmp_path: Path) -> None:
    view = five_minute_workspace(tmp_path, day(732)).repo.view("spending")
    partitions = partitions_of(view, day(732))
    assert partitions.get_num_partitions() == 210_816
    assert interval_of_keys(view, key_range(view, Interval(day(1), day(732)))) == Interval(day(1), day(732))
