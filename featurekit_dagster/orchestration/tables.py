"""Feature tables in Dagster: an asset that nothing materializes, an event for each ingest, and a job that ingests.

Most ingests are calls in some process without Dagster. The sensor tells Dagster of them by the ledger, and starts the
job where one of them was interrupted.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import FeatureKitError, safe_reason
from featurekit_dagster.execution.table_ingest import finish_ingests, ingest_rows, unfinished_ingests
from featurekit_dagster.orchestration.chores import counts_in_words
from featurekit_dagster.orchestration.launchpad import some_of
from featurekit_dagster.orchestration.resources import BoundWorkspace, FeatureStores, resource_key
from featurekit_dagster.orchestration.translator import KIND, VIEW, table_spec, view_key
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.stores.ledger_records import INGEST, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

SECONDS_BETWEEN_LOOKS = 30
_MOST_TOLD = 100
_TAGS = {KIND: INGEST, "dagster/max_retries": "0"}


def tables_of(workspace: BoundWorkspace) -> list[FeatureView]:
    """Return the feature tables of a workspace that keep rows."""
    return [view for view in workspace.repo.views if view.is_table and stores_of(view)]


def table_definitions(workspace: BoundWorkspace, prefix: str | None = None) -> dg.Definitions:
    """Return what Dagster shows of the feature tables of a workspace; nothing where there are none.

    Args:
        workspace: Declarations bound to stores and a clock.
        prefix: First part of every asset key and name, if wanted.
    """
    tables = tables_of(workspace)
    if not tables:
        return dg.Definitions()
    job = ingest_job(workspace, prefix)
    assets = [table_spec(view, workspace, prefix) for view in tables]
    return dg.Definitions(assets=assets, jobs=[job], sensors=[tables_sensor(workspace, job, prefix)])


def ingest_event(view: FeatureView, job: JobRecord, prefix: str | None = None) -> dg.AssetMaterialization:
    """Return what Dagster is told of one ingest: counts and the days of its rows, never a value."""
    metadata: dict[str, Any] = {
        "featurekit/job": job.id,
        "featurekit/window_start": dg.MetadataValue.timestamp(job.interval.start),
        "featurekit/window_end": dg.MetadataValue.timestamp(job.interval.end),
        "featurekit/ingested_at": dg.MetadataValue.timestamp(job.updated_at),
        **{f"featurekit/{name}": count for name, count in job.stats.items()},
    }
    return dg.AssetMaterialization(view_key(view, prefix), metadata=metadata)


def ingest_job(workspace: BoundWorkspace, prefix: str | None = None) -> dg.JobDefinition:
    """Return the job that puts a Parquet file into a feature table, or finishes what was interrupted.

    Args:
        workspace: A workspace with feature tables.
        prefix: First part of every name, if wanted.
    """
    name, resource = _name("ingest", prefix), resource_key(prefix)
    tables = {view.name: view for view in tables_of(workspace)}
    schema = {
        "table": dg.Field(str, description=f"Name of the feature table: {some_of(tables)}."),
        "file": dg.Field(
            str,
            is_required=False,
            description="Parquet file with its rows, as a path or URI that the run can read. Without one only ingests "
            "that were interrupted are finished.",
        ),
    }
    description = "Put the rows of a Parquet file into a feature table."

    @dg.op(name=f"{name}_rows", config_schema=schema, required_resource_keys={resource}, description=description)
    def put(context: dg.OpExecutionContext) -> None:
        opened: FeatureStores = getattr(context.resources, resource)
        given, stores = context.op_config, opened.open(workspace)
        view = tables.get(given["table"])
        if view is None:
            refusal = f"no feature table named {given['table']!r}; there is {some_of(tables)}"
            raise dg.Failure(description=refusal, allow_retries=False)
        context.instance.add_run_tags(context.run_id, {VIEW: view.name})
        for job in _done(view, stores, given.get("file"), context.run_id):
            if job.state == JobState.SUCCESS:
                context.log_event(ingest_event(view, job, prefix))
            outcome = f"{job.state}, {job.reason}" if job.reason else counts_in_words(job.stats)
            context.log.info(f"{view.name}: job {job.id} ({job.kind}): {outcome}")

    @dg.config_mapping(config_schema=schema)
    def of_op(given: Mapping[str, Any]) -> dict[str, Any]:
        return {"ops": {f"{name}_rows": {"config": dict(given)}}}

    @dg.job(name=name, config=of_op, tags=_TAGS, executor_def=dg.in_process_executor, description=description)
    def job() -> None:
        put()

    return job


def _done(view: FeatureView, stores: WorkspaceStores, file: str | None, run_id: str) -> Sequence[JobRecord]:
    """Carry out what a run was asked for and return its jobs.

    Raises:
        dagster.Failure: The rows were refused, or could not be read or written; no value is in its text.
    """
    try:
        finished = finish_ingests(view, stores, run_id=run_id)
        if file is None:
            return finished
        rows = pq.read_table(file, partitioning=None)
        return [*finished, ingest_rows(view, rows, stores, trigger="dagster_ui", run_id=run_id)]
    except (FeatureKitError, OSError) as error:
        failure = dg.Failure(description=f"{view.name}: {safe_reason(error)}", allow_retries=False)
    raise failure  # outside of `except`: Dagster stores the text of every exception in the chain


def tables_sensor(workspace: BoundWorkspace, job: dg.JobDefinition, prefix: str | None = None) -> dg.SensorDefinition:
    """Return the sensor that shows ingests in Dagster, and has those finished that were interrupted.

    Args:
        workspace: A workspace with feature tables.
        job: Its `ingest_job`.
        prefix: First part of every name, if wanted.
    """
    resource, tables = resource_key(prefix), tables_of(workspace)

    @dg.sensor(
        name=_name("follow_feature_tables", prefix),
        job_name=job.name,
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        required_resource_keys={resource},
        description="Shows what was ingested into feature tables, and finishes ingests that were interrupted.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        opened: FeatureStores = getattr(context.resources, resource)
        stores = opened.open(workspace)
        told: dict[str, str] = json.loads(context.cursor or "{}")
        events: list[dg.AssetMaterialization] = []
        requests: list[dg.RunRequest] = []
        if stores.has_ledger:
            stores.ledger.abandon_dead(workspace.name)
            for view in tables:
                new = _new_ingests(view, stores, told.get(view.name))
                # one that a run did was told by the run
                events += [ingest_event(view, each, prefix) for each in new if each.attempts[-1].run_id is None]
                told |= {view.name: new[-1].id} if new else {}
                requests += _requests(view, stores)
        quiet = None if events or requests else "nothing was ingested, and nothing was interrupted"
        return dg.SensorResult(asset_events=events, run_requests=requests, cursor=json.dumps(told), skip_reason=quiet)

    return look


def _new_ingests(view: FeatureView, stores: WorkspaceStores, last_told: str | None) -> list[JobRecord]:
    """Return the ingests since the one that was told last, oldest first; of very many the newest."""
    done = stores.ledger.jobs(stores.workspace, view.name, [JobState.SUCCESS.value], limit=_MOST_TOLD)
    new = takewhile(lambda job: job.id != last_told, (job for job in done if job.kind == INGEST))
    return list(new)[::-1]


def _requests(view: FeatureView, stores: WorkspaceStores) -> list[dg.RunRequest]:
    """Return the request of a run that finishes the ingests whose next attempt is due; its key names the attempt."""
    now = stores.clock()
    left = unfinished_ingests(view, stores)
    due = [job for job in left if job.next_attempt_at is not None and job.next_attempt_at <= now]
    if not due:
        return []
    key = f"{due[0].id}:{len(due[0].attempts)}"
    return [dg.RunRequest(run_key=key, run_config={"table": view.name}, tags={VIEW: view.name})]


def _name(name: str, prefix: str | None) -> str:
    return f"{prefix}_{name}" if prefix else name
