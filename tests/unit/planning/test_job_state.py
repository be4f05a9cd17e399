"""What may happen to a job, every state and every event, and when a failed one is tried again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.planning.job_state import (
    MANAGED,
    ONCE,
    TRANSITIONS,
    JobEvent,
    JobState,
    RetryPolicy,
    next_state,
)

NOW = datetime(2024, 1, 1, tzinfo=UTC)
# One row per state: what START SUCCEED FAIL GIVE_UP STOP CANCEL DRAIN RETRY make of it; "-" is refused.
SHORT = {
    "R": JobState.RUNNING,
    "G": JobState.DRAINING,
    "D": JobState.DRAINED,
    "M": JobState.MANUAL_RETRY,
    "Q": JobState.MANUAL_CANCELLATION_REQUESTED,
    "C": JobState.MANUALLY_CANCELLED,
    "F": JobState.FAILURE,
    "S": JobState.SUCCESS,
}
WANTED = {
    "R": "R S R F C Q G -",
    "M": "R - - - C Q G M",
    "Q": "- S C C C Q Q -",
    "G": "- S D D D Q G -",
    "D": "- - - - - D D M",
    "C": "- - - - - C C M",
    "F": "- - - - - F F M",
    "S": "- - - - - S S M",
}
CELLS = [
    (SHORT[row], event, SHORT.get(cell))
    for row, text in WANTED.items()
    for event, cell in zip(JobEvent, text.split(), strict=True)
]


@pytest.mark.parametrize(("state", "event", "wanted"), CELLS, ids=str)
def test_every_event_in_every_state_does_what_the_table_says(
    state: JobState, event: JobEvent, wanted: JobState | None
) -> None:
    assert next_state(state, event) is wanted


def test_the_table_of_this_test_is_complete() -> None:
    assert {(state, event) for state, event, _ in CELLS} == set(product(JobState, JobEvent))
    assert set(TRANSITIONS) <= set(product(JobState, JobEvent))


def test_only_a_retry_leaves_a_final_state() -> None:
    for (state, event), after in TRANSITIONS.items():
        assert not state.is_final or event is JobEvent.RETRY or after is state


def test_every_state_can_reach_an_end_and_every_end_can_be_retried() -> None:
    for state in JobState:
        ends = {after for (before, _), after in TRANSITIONS.items() if before is state and after.is_final}
        assert state.is_final or ends
        assert not state.is_final or next_state(state, JobEvent.RETRY) is JobState.MANUAL_RETRY


@given(events=st.lists(st.sampled_from(JobEvent), max_size=30))
def test_a_cancelled_job_writes_nothing_more_until_somebody_retries_it(events: list[JobEvent]) -> None:
    state, cancelled = JobState.RUNNING, False
    for event in events:
        after = next_state(state, event)
        if after is None:
            continue
        if cancelled and event is not JobEvent.RETRY:
            assert after is JobState.MANUALLY_CANCELLED
        state, cancelled = after, after is JobState.MANUALLY_CANCELLED


def test_waits_double_from_five_minutes_and_end_after_ten_attempts() -> None:
    waits = [MANAGED.next_attempt(NOW, attempts, lost=False, permanent=False) for attempts in range(1, 12)]
    minutes = [None if at is None else (at - NOW) / timedelta(minutes=1) for at in waits]
    assert minutes == [5, 10, 20, 40, 80, 160, 320, 640, 1280, None, None]


def test_a_lost_process_is_replaced_at_once_up_to_a_hundred_times() -> None:
    assert MANAGED.next_attempt(NOW, 99, lost=True, permanent=False) == NOW
    assert MANAGED.next_attempt(NOW, 100, lost=True, permanent=False) is None


def test_a_permanent_error_and_a_job_without_retries_are_given_up() -> None:
    assert MANAGED.next_attempt(NOW, 1, lost=False, permanent=True) is None
    assert ONCE.next_attempt(NOW, 1, lost=False, permanent=False) is None
    assert ONCE.next_attempt(NOW, 1, lost=True, permanent=False) is None


@given(attempts=st.integers(1, 200), most=st.integers(2, 500))
def test_no_wait_is_longer_than_the_longest(attempts: int, most: int) -> None:
    policy = RetryPolicy(max_attempts=most)
    at = policy.next_attempt(NOW, attempts, lost=False, permanent=False)
    assert (at is None) == (attempts >= most)
    assert at is None or timedelta(0) < at - NOW <= policy.longest_wait
