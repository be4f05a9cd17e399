"""`featurekit check-consistency`: do the two stores of feature views answer the same?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from featurekit_dagster.cli_options import AsJson, ViewNames, WorkspaceName, open_workspace
from featurekit_dagster.errors import ComparisonFailed, StoresDiffer

if TYPE_CHECKING:
    from featurekit_dagster.serving.consistency import ConsistencyReport


def check_consistency(
    views: ViewNames = None,
    sample: Annotated[int, typer.Option(min=1, help="Draw so many join keys from each of both stores.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Another one makes another choice.")] = 0,
    workspace: WorkspaceName = None,
    json: AsJson = False,
) -> None:
    """Compare online answers with offline ones.

    This is done for a sample of join keys. The Dagster job online_offline_consistency does the same every week; this is
    one run of it, in this process. The exit code is 1 where an answer differs.
    """
    from featurekit_dagster.cli_output import open_console, print_json, print_line
    from featurekit_dagster.orchestration.consistency import compare_in_process
    from featurekit_dagster.orchestration.run import failure_text, open_instance

    bound = open_workspace(workspace)
    names = [bound.repo.view(name).name for name in dict.fromkeys(views or ())]
    reports: list[ConsistencyReport] = []
    with open_instance(bound) as instance:
        result = compare_in_process(bound, names, instance, reports.append, sample=sample, seed=seed)
    if json:
        print_json(report.record() for report in reports)
    elif reports:
        _print_reports(reports)
    else:
        print_line(open_console(), "There is no feature view that is written online.")
    failure = failure_text(result)
    if failure is not None:
        raise ComparisonFailed(reason=failure)
    differing = [report for report in reports if not report.is_consistent]
    if differing:
        raise StoresDiffer(views=[report.view for report in differing])


def _print_reports(reports: Sequence[ConsistencyReport]) -> None:
    from featurekit_dagster.cli_output import open_console, print_notes, print_table

    print_notes(open_console(), [(report.view, report.note) for report in reports if report.note])
    titles = ("Feature view", "As of", "Keys", "Answers", "Different", "Only offline", "Only online", "Unknown")
    rows = []
    for report in (each for each in reports if each.time is not None):
        stats = report.stats()
        counts = [stats[name] for name in ("compared", "mismatched", "missing", "extra", "unknown")]
        rows.append((report.view, report.time, stats["keys"], *counts))
    print_table(open_console(), titles, rows)
    wrong = [(f"{r.view}.{f.feature}", f) for r in reports for f in r.features if f.total]
    if wrong:
        found = [(name, f.compared, f.mismatched, f.missing, f.extra) for name, f in wrong]
        print_table(open_console(), ("Feature", "Answers", "Different", "Only offline", "Only online"), found)
