"""The public jobs `integration_test_batch` and `integration_test_stream`.

A job of the ledger tests one view, in a workspace that is thrown away. A test that fails is a job that fails.
"""

# No `from __future__ import annotations`: Dagster wants the type of `context` as an object, not as text.

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import IntegrationTestFailed, ReadError
from featurekit_dagster.orchestration.chores import Chore, ChoreRun
from featurekit_dagster.orchestration.consistency import newest_interval
from featurekit_dagster.orchestration.integration_test import BATCH, STREAM, run_integration_test
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.planning.job_state import ONCE
from featurekit_dagster.stores.ledger_records import INTEGRATION_TEST_BATCH, INTEGRATION_TEST_STREAM, JobRecord
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

_CONFIG = {
    "views": dg.Field(
        [str], default_value=[], description="Names of feature views; all that can be tested by default."
    ),
    "from_source": dg.Field(
        bool, default_value=False, description="Whether events are taken from the views' sources, not made up."
    ),
    "seed": dg.Field(int, default_value=0, description="Another one makes up other events."),
}


def _is_testable(view: FeatureView, kind: str) -> bool:
    return view.is_stream if kind == STREAM else bool(view.inputs) and not view.is_table


def _names(workspace: BoundWorkspace, kind: str) -> Iterable[str]:
    return (view.name for view in workspace.repo.views if _is_testable(view, kind))


def _queue(
    workspace: BoundWorkspace,
    stores: WorkspaceStores,
    config: Mapping[str, Any],
    trigger: str,
    *,
    kind: str,
    ledger_kind: str,
) -> list[JobRecord]:
    named = [workspace.repo.view(name) for name in dict.fromkeys(config["views"])]
    wrong = [view.name for view in named if not _is_testable(view, kind)]
    if wrong:
        raise ReadError(f"{', '.join(wrong)}: there is no {kind} pipeline to test; name other views")
    chosen = named or [view for view in workspace.repo.views if _is_testable(view, kind)]
    return [
        stores.ledger.queue_chore(
            workspace=workspace.name,
            view=view.name,
            kind=ledger_kind,
            trigger=trigger,
            interval=newest_interval(view, workspace),
            request={"from_source": config["from_source"], "seed": config["seed"]},
            generation=stores.generation(view),
            policy=ONCE,
        )
        for view in chosen
    ]


def _carry_out(run: ChoreRun, *, kind: str) -> Mapping[str, int]:
    report = run_integration_test(
        run.workspace,
        run.job.view,
        kind=kind,
        from_source=bool(run.request["from_source"]),
        seed=int(run.request["seed"]),
    )
    for step in report.steps:
        run.log(f"{report.view}: {step.name} {step.state.value}: {step.detail}")
    if not report.passed:
        raise IntegrationTestFailed(view=report.view, failed=report.failed)
    return report.stats()


def _chore(kind: str, ledger_kind: str) -> Chore:
    return Chore(
        kind=ledger_kind,
        job_name=f"integration_test_{kind}",
        description=f"Test the {kind} pipelines of feature views end to end, in a workspace that is thrown away.",
        config=_CONFIG,
        names={"views": partial(_names, kind=kind)},
        queue=partial(_queue, kind=kind, ledger_kind=ledger_kind),
        carry_out=partial(_carry_out, kind=kind),
    )


INTEGRATION_TEST_OF_BATCH = _chore(BATCH, INTEGRATION_TEST_BATCH)
INTEGRATION_TEST_OF_STREAM = _chore(STREAM, INTEGRATION_TEST_STREAM)
