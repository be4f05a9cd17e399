"""Arguments of the methods about materialization jobs: refused, with what is wanted, where their type is another."""

from __future__ import annotations

from datetime import datetime, timedelta

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import PlanError, WrongJobArgument
from featurekit_dagster.planning.planner import stores_of


def check_times(view: str, **times: object) -> None:
    """Refuse times that are no datetimes; a `date`, a text and a missing time of pandas are none.

    Raises:
        WrongJobArgument: One of them is something else.
    """
    for name, given in times.items():
        if not isinstance(given, datetime) or given != given:  # noqa: PLR0124 - a missing time does not equal itself
            rule = "give a datetime such as datetime(2024, 1, 31), which is UTC without a zone"
            raise WrongJobArgument(view=view, argument=name, given=given, rule=rule)


def check_flags(view: str, **flags: object) -> None:
    """Refuse flags that are no booleans: a text such as "False" would count as True.

    Raises:
        WrongJobArgument: One of them is something else.
    """
    for name, given in flags.items():
        if not isinstance(given, bool):
            raise WrongJobArgument(view=view, argument=name, given=given, rule="give True or False")


def check_timeout(view: str, timeout: object) -> None:
    """Refuse a timeout that is no timedelta: of a number nobody knows the unit.

    Raises:
        WrongJobArgument: It is something else.
    """
    if timeout is not None and not isinstance(timeout, timedelta):
        rule = "give a timedelta such as timedelta(minutes=10), or None to wait for ever"
        raise WrongJobArgument(view=view, argument="timeout", given=timeout, rule=rule)


def check_job_id(view: str, job_id: object) -> None:
    """Refuse a job id that is no text.

    Raises:
        WrongJobArgument: It is something else.
    """
    if not isinstance(job_id, str):
        rule = "give the id of a job, which trigger_materialization_job returns and list_jobs shows"
        raise WrongJobArgument(view=view, argument="job_id", given=job_id, rule=rule)


def check_stores(view: FeatureView, *, online: bool, offline: bool) -> None:
    """Refuse a choice of stores in which there is none, or one that the view does not write.

    Raises:
        PlanError: The choice is refused.
    """
    if not (online or offline):
        raise PlanError(f"{view.name}: online=False and offline=False; a job writes one of the stores, or both")
    asked = {"online": online, "offline": offline}
    refused = [store for store, wanted in asked.items() if wanted and store not in stores_of(view)]
    if refused:
        raise PlanError(
            f"{view.name}: {' and '.join(refused)}=True, but it writes {' and '.join(stores_of(view))} only; "
            "leave the other out or declare it"
        )
