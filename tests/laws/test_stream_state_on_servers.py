"""The law of `test_stream_state.py`, of views that are served from servers."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings

from tests.laws import test_stream_state
from tests.laws.test_stream_state import Play, plays
from tests.support.online_servers import drop_dynamodb_tables, dynamodb_config, valkey_url

SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))
SLOW: Any = [HealthCheck.too_slow, HealthCheck.data_too_large]
judge = test_stream_state.test_online_is_the_oracle_whatever_the_order_the_batches_and_the_interruptions.hypothesis.inner_test  # type: ignore[attr-defined]  # noqa: E501


@pytest.mark.slow
@settings(max_examples=300 if SOAK else 4, suppress_health_check=SLOW)
@given(play=plays())
def test_online_on_valkey_is_the_oracle(play: Play) -> None:
    redis.Redis.from_url(valkey_url()).flushdb()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FEATUREKIT_ONLINE_STORE", valkey_url())
        judge(play)


@pytest.mark.slow
@settings(max_examples=25 if SOAK else 1, suppress_health_check=SLOW)
@given(play=plays())
def test_online_on_dynamodb_is_the_oracle(play: Play) -> None:
    drop_dynamodb_tables()
    url = f"dynamodb://us-east-1/t{uuid.uuid4().hex}?endpoint_url={dynamodb_config().endpoint_url}"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FEATUREKIT_ONLINE_STORE", url)
        judge(play)
