"""Dagster's marks of a view's partitions made anew, for a grid that has changed or a view that is declared no more.

Single partitions cannot be taken back in Dagster, so all marks of an asset go and what is covered is reported again.
"""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from featurekit_dagster.orchestration.marks import repair_marks
from featurekit_dagster.orchestration.resources import BoundWorkspace
from featurekit_dagster.orchestration.run import open_instance


def wipe_marks(workspace: BoundWorkspace, names: Sequence[str]) -> int:
    """Forget what Dagster shows of views, and report what is covered of those that are declared; return how many.

    The history of their runs stays.

    Args:
        workspace: Declarations bound to stores and a clock.
        names: Views, which need not be declared any more.
    """
    declared = {view.name: view for view in workspace.repo.views}
    reported = 0
    with open_instance(workspace) as instance:
        instance.wipe_assets([dg.AssetKey([name]) for name in names])
        for name in names:
            repaired = repair_marks(declared[name], workspace, instance) if name in declared else None
            reported += 0 if repaired is None else repaired.reported
    return reported
