"""The smallest code location worth looking at: one partitioned asset."""

from __future__ import annotations

import dagster as dg


@dg.asset(
    partitions_def=dg.DailyPartitionsDefinition("2013-01-01", end_date="2013-01-11"),
    group_name="harness",
    kinds={"deltalake", "duckdb"},
    description="Shown by the test of the harness itself.",
)
def tiny_daily_asset() -> None:
    """Do nothing."""


defs = dg.Definitions(assets=[tiny_daily_asset])
