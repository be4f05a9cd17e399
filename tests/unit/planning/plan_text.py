"""A plan as text for people: what the golden files hold."""

from __future__ import annotations

from featurekit_dagster.planning.tasks import RunPlan, Task, ViewPlan

_SHOWN = 3


def plan_text(plan: ViewPlan) -> str:
    """Return a plan with every run, and the first and last jobs of each."""
    counts = f"{plan.partitions} partitions, {plan.jobs} jobs, {plan.queries} queries, {len(plan.runs)} runs"
    lines = [f"{plan.view}: {plan.reason}", f"wanted {plan.wanted}", counts]
    for run in plan.runs:
        lines += ["", f"run {run.interval}", *_jobs(run)]
    return "\n".join([*lines, *(f"\nwarning: {warning}" for warning in plan.warnings)]) + "\n"


def _jobs(run: RunPlan) -> list[str]:
    lines = [_job(task) for task in run.tasks]
    left_out = len(lines) - 2 * _SHOWN
    return lines if left_out <= 0 else [*lines[:_SHOWN], f"  {left_out} more", *lines[-_SHOWN:]]


def _job(task: Task) -> str:
    stores = " ".join(store for store, written in (("offline", task.offline), ("online", task.online)) if written)
    return f"  job {task.interval} {stores}{' overwrite' if task.overwrite else ''}"
