"""The public job `delete_keys`: join keys are taken out of the stores of a feature view.

Keys come as the path of a file and wait in one of ours; they are in no configuration, tag or log.
"""

# No `from __future__ import annotations`: Dagster wants the types of its fields as objects.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import KeysRefused
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.deletion_request import keys_of_file, request_deletion
from featurekit_dagster.orchestration.chores import Chore, ChoreRun
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.planner import stores_of
from featurekit_dagster.stores.ledger_records import DELETION, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

JOB_NAME = "delete_keys"
_CONFIG = {
    "view": dg.Field(str, is_required=False, description="Needed: name of a feature view or feature table."),
    "keys_file": dg.Field(
        str,
        is_required=False,
        description="Needed: path of a .parquet or .csv file with exactly the join keys, 10,000 at most.",
    ),
    "online": dg.Field(bool, default_value=True, description="Whether they are deleted online."),
    "offline": dg.Field(bool, default_value=True, description="Whether they are deleted offline."),
    "permanent": dg.Field(bool, default_value=False, description="Whether what comes later of them is refused, too."),
    "vacuum": dg.Field(
        bool,
        default_value=False,
        description="Delete the replaced files at once. Reads under way, and of former versions, fail then.",
    ),
}


def _queue(
    workspace: BoundWorkspace, stores: WorkspaceStores, config: Mapping[str, Any], trigger: str
) -> list[JobRecord]:
    """Hide the keys of a file and return the job that deletes them; none where nothing was ever materialized.

    Raises:
        KeysRefused: The configuration lacks something, or the file does not fit.
        NotFoundError: There is no such view.
        SourceError: The file cannot be read.
    """
    missing = [f"give {name}" for name in ("view", "keys_file") if not config.get(name)]
    if missing:
        raise KeysRefused(view=config.get("view", JOB_NAME), faults=missing)
    view = workspace.repo.view(config["view"])
    flags = {name: config[name] for name in ("online", "offline", "permanent", "vacuum")}
    keys = keys_of_file(view, Path(config["keys_file"]))
    job = request_deletion(view, keys, stores, trigger=trigger, **flags)
    return [] if job is None else [job]


def _carry_out(run: ChoreRun) -> Mapping[str, int]:
    view: FeatureView = run.workspace.repo.view(run.job.view)
    return KeyRemoval(view, run.stores, run.job, run.check).carry_out()


KEY_DELETION = Chore(
    kind=DELETION,
    job_name=JOB_NAME,
    description="Take join keys out of the online and the offline store, so that nothing brings them back.",
    config=_CONFIG,
    names={"view": lambda workspace: (view.name for view in workspace.repo.views if stores_of(view))},
    queue=_queue,
    carry_out=_carry_out,
)
