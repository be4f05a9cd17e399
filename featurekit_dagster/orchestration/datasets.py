"""The public job `dataset_generation`, and how a dataset is asked for, from wherever that is done."""

# No `from __future__ import annotations`: Dagster wants the types of its fields as objects.

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureReference
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.domain.schema import Field
from featurekit_dagster.errors import TectonValidationError
from featurekit_dagster.execution.dataset import (
    PATIENCE,
    DatasetReader,
    check_free,
    dataset_lease,
    generate_dataset,
)
from featurekit_dagster.execution.dataset_spine import SpineFacts, SpineReader, opened_spine, write_spine
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.orchestration.chores import Chore, ChoreRun
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.dataset_request import BUCKET_ROWS, DatasetFeatures, DatasetKind, DatasetRequest
from featurekit_dagster.planning.job_state import MANAGED, RetryPolicy
from featurekit_dagster.serving.dataset_rows import DatasetRows, checked_dataset_spine, references_of, stored_views
from featurekit_dagster.serving.historical import entity_keys
from featurekit_dagster.stores.ledger_records import DATASET_GENERATION, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

JOB_NAME = "dataset_generation"
DATASET = "dataset"


def queue_dataset(
    workspace: BoundWorkspace,
    stores: WorkspaceStores,
    request: DatasetRequest,
    spine: Any,
    *,
    trigger: str,
    policy: RetryPolicy = MANAGED,
) -> JobRecord:
    """Keep the spine, ask for a dataset, and return its job, which waits for its turn.

    Args:
        workspace: Declarations bound to stores and a clock.
        stores: Where rows and record are kept.
        request: What it is to hold.
        spine: A frame, the path of a .parquet or .csv file, or a query that DuckDB runs here and now. For a time range
            a frame of join keys, or None.
        trigger: What asked for it.
        policy: How often it is tried.

    Raises:
        DatasetExists: The name is taken.
        SpineError: A column of the spine is missing, or cannot be used.
        SourceError: The file cannot be read.
        QueryRefused: The query cannot be run.
        ReadError: A view cannot be read as is asked for.
        UnstorableColumns: A column of the spine cannot be kept.
        LeaseHeld: Somebody makes or removes a dataset of that name.
    """
    references = references_of(request, workspace.repo)
    stored_views(request, workspace.repo, stores)
    with stores.ledger.lease(dataset_lease(stores.workspace, request.name), holder=trigger, wait=PATIENCE):
        check_free(stores, request.name)
        try:
            asked, facts = _with_spine(stores, request, references, spine)
        except BaseException:
            stores.datasets.remove(request.name)
            raise
        now_us = to_us(workspace.now())
        span = None if facts is None else facts.interval
        if asked.start_us is not None and asked.end_us is not None:
            span = Interval(from_us(asked.start_us), from_us(asked.end_us))
        about = {"service": request.service} if request.service else {"view": request.view}
        job = stores.ledger.queue_chore(
            workspace=stores.workspace,
            view=request.view,
            kind=DATASET_GENERATION,
            trigger=trigger,
            interval=span or Interval(from_us(now_us), from_us(now_us + 1)),
            request={DATASET: request.name, "reads": str(request.kind), **about},
            policy=policy,
        )
        record = {
            "job_id": job.id,
            "spine": None if facts is None else facts.as_record(),
            "request": asked.as_record(),
        }
        stores.datasets.write_request(request.name, record)
    return job


def _with_spine(
    stores: WorkspaceStores, request: DatasetRequest, references: Sequence[FeatureReference], spine: Any
) -> tuple[DatasetRequest, SpineFacts | None]:
    """Keep the spine and return the request with its time column, and what is known about the spine."""
    rows = request.bucket_rows
    if request.kind is not DatasetKind.EVENTS:
        keys = entity_keys(references[0].view, spine)
        if keys is None:
            return request, None
        reader = SpineReader(keys.schema, keys.to_batches())
        return request, write_spine(stores.datasets, request.name, reader, bucket_rows=rows, timestamp_key=None)
    with opened_spine(spine, spine_fields(references)) as reader:
        checked = checked_dataset_spine(references, reader.first_look, request)
        asked = request.with_timestamp_key(checked.timestamp_key)
        facts = write_spine(
            stores.datasets, request.name, reader, bucket_rows=rows, timestamp_key=checked.timestamp_key
        )
    return asked, facts


def spine_fields(references: Sequence[FeatureReference]) -> list[Field]:
    """Return the columns of a spine that hold join keys, each once, with their types."""
    found = {
        column: Field(column, key.dtype)
        for reference in references
        for column, key in zip(reference.spine_keys, reference.view.join_keys, strict=True)
    }
    return list(found.values())


def dataset_reader(request: DatasetRequest, repo: Repository, stores: WorkspaceStores) -> DatasetReader:
    """Return how the rows of a dataset are read.

    Raises:
        NotFoundError: A view is declared no more.
        ReadError: A view cannot be read as was asked for.
    """
    return DatasetReader(
        views=stored_views(request, repo, stores), rows=lambda pinned: DatasetRows(request, repo, pinned).of_bucket
    )


def _queue(
    workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
) -> list[JobRecord]:
    """Ask for the dataset of a run's configuration."""
    missing = [name for name in ("name", "spine") if not config.get(name)]
    if missing or bool(config.get("service")) == bool(config.get("view")):
        raise TectonValidationError(
            "a dataset needs a name, a spine, and either a service or a view; given are "
            f"{', '.join(sorted(name for name, value in config.items() if value)) or 'none of them'}"
        )
    service = config.get("service")
    if service:
        references = workspace.repo.service(service).references
    else:
        references = (FeatureReference(view=workspace.repo.view(config["view"])),)
    request = DatasetRequest(
        name=config["name"],
        kind=DatasetKind.EVENTS,
        references=tuple(map(DatasetFeatures.of, references)),
        service=service or None,
        timestamp_key=config.get("timestamp_key") or None,
        from_source=config.get("from_source"),
        allow_gaps=config["allow_gaps"],
        bucket_rows=config["bucket_rows"],
    )
    return [queue_dataset(workspace, stores, request, config["spine"], trigger=trigger)]


def _carry_out(run: ChoreRun) -> Mapping[str, int]:
    """Make the dataset of a job."""
    repo, stores = run.workspace.repo, run.stores
    read = partial(dataset_reader, repo=repo, stores=stores)

    def report(counts: Mapping[str, int]) -> None:
        stores.ledger.report_chore(run.job.id, stats=counts)

    name = run.request[DATASET]
    return generate_dataset(name, run.job.id, repo, stores, read, check=run.check, log=run.log, report=report)


_CONFIG = {
    "name": dg.Field(str, is_required=False, description="Needed: name of the dataset, unique in the workspace."),
    "service": dg.Field(
        str, is_required=False, description="Needed, or else a view: the feature service whose features are wanted."
    ),
    "view": dg.Field(str, is_required=False, description="A feature view, instead of a service."),
    "spine": dg.Field(
        str,
        is_required=False,
        description="Needed: a .parquet or .csv file, or a query that DuckDB runs, with join keys and times.",
    ),
    "timestamp_key": dg.Field(str, is_required=False, description="Time column of the spine, if there are several."),
    "from_source": dg.Field(
        bool, is_required=False, description="Compute the features, or read the store; the store by default if written."
    ),
    "allow_gaps": dg.Field(bool, default_value=False, description="NULL where something is not materialized."),
    "bucket_rows": dg.Field(
        int, default_value=BUCKET_ROWS, description="Rows of the spine whose features are in memory at a time."
    ),
}

DATASETS = Chore(
    kind=DATASET_GENERATION,
    job_name=JOB_NAME,
    description="Join features with given examples, as of the time of each, and keep the result as a named dataset.",
    config=_CONFIG,
    names={
        "service": lambda workspace: (service.name for service in workspace.repo.services),
        "view": lambda workspace: (view.name for view in workspace.repo.views),
    },
    queue=_queue,
    carry_out=_carry_out,
)
