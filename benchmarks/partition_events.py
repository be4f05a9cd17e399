"""Dagster's side of a long history: an asset that only reports partitions, and an instance that knows many of them.

Reporting tens of thousands of partitions would take a quarter of an hour, so their events are copies of the first ones.
"""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator

import dagster as dg
from partition_history import FIRST, STEP, VIEW, at, holes_of

from featurekit_dagster import Workspace

FORMAT = "%Y-%m-%dT%H:%MZ"
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def fill_dagster(workspace: Workspace, instance: dg.DagsterInstance, partitions: int) -> None:
    """Let Dagster show everything but the holes as materialized by one run, and know it as an earlier tick left it."""
    holes = holes_of(partitions)
    keys = [at(n).strftime(FORMAT) for n in range(partitions) if n not in holes]
    dg.materialize([bare_asset(VIEW, keys[:1])], instance=instance, partition_key=keys[0], run_config=QUIET)
    with sqlite3.connect(workspace.home / "dagster/history/runs/index.db") as events:
        events.execute("CREATE TEMP TABLE keys (key TEXT)")
        events.executemany("INSERT INTO keys VALUES (?)", [(key,) for key in keys[1:]])
        columns = "dagster_event_type, run_id, timestamp, step_key, asset_key"
        for kind in ("ASSET_MATERIALIZATION_PLANNED", "ASSET_MATERIALIZATION"):
            events.execute(
                f"INSERT INTO event_logs (event, partition, {columns}) SELECT replace(event, ?, key), key, {columns} "
                "FROM event_logs, keys WHERE dagster_event_type = ?",
                (keys[0], kind),
            )
    instance.report_runless_asset_event(dg.AssetMaterialization(VIEW, partition=keys[-1]))
    known = instance.get_materialized_partitions(dg.AssetKey(VIEW))
    if known != set(keys):
        raise SystemExit(f"Dagster knows {len(known):,} partitions instead of {len(keys):,}")
    asset = workspace.definitions().resolve_assets_def(VIEW)
    instance.get_status_by_partition(asset.key, keys[:1], asset.partitions_def)


def bare_asset(name: str, keys: list[str]) -> dg.AssetsDefinition:
    """Return an asset that does nothing but report partitions, with as much metadata as ours have."""
    partitions = dg.TimeWindowPartitionsDefinition(
        start=FIRST, end=FIRST + 2 * len(keys) * STEP, fmt=FORMAT, cron_schedule="*/5 * * * *", timezone="UTC"
    )

    def body() -> Iterator[dg.AssetMaterialization]:
        for number, key in enumerate(keys):
            metadata = {
                "dagster/row_count": number,
                "featurekit/window_start": dg.MetadataValue.timestamp(at(number)),
                "featurekit/window_end": dg.MetadataValue.timestamp(at(number + 1)),
                "featurekit/job": "0" * 32,
            }
            yield dg.AssetMaterialization(name, partition=key, metadata=metadata)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        spec = dg.AssetSpec(name, partitions_def=partitions, skippable=True)
        return dg.multi_asset(specs=[spec], name=name, backfill_policy=dg.BackfillPolicy.single_run())(body)
