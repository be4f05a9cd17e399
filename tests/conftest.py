"""What all tests share: no environment of the user's, counts of the property tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.support.postgres import postgres_server

if TYPE_CHECKING:
    from alembic.config import Config

ROOT = Path(__file__).resolve().parents[1]
SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
# The threads of scikit-learn wait for each other in a loop, for minutes while other processes have the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # a shell's background jobs ignore it; Dagster then ignores SIGTERM as well, and so do the processes that it ends
    signal.signal(signal.SIGINT, signal.default_int_handler)

# how long examples take to be drawn says how busy the machine is
_SHARED = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("quick", max_examples=30, **_SHARED)
settings.register_profile("soak", max_examples=2_000, **_SHARED)
settings.load_profile("soak" if SOAK else "quick")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first, whatever the order of the others."""
    items.sort(key=lambda item: item.get_closest_marker("early") is None)


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of pyproject.toml."""
    return ROOT


@pytest.fixture(scope="session")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server of this test process."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture(scope="session", autouse=True)
def _schema_steps_read_once() -> Iterator[None]:
    """Keep what Alembic knows of a folder: Dagster would load a hundred scripts anew for each run and each instance."""
    from alembic.script import ScriptDirectory

    known: dict[str | None, ScriptDirectory] = {}
    read = ScriptDirectory.from_config

    def remembered(config: Config) -> ScriptDirectory:
        location = config.get_main_option("script_location")
        if location not in known:
            known[location] = read(config)
        return known[location]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptDirectory, "from_config", remembered)
        yield


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a user's stores, workspace and Dagster home out of every test."""
    stores = ("FEATUREKIT_HOME", "FEATUREKIT_LAKE", "FEATUREKIT_LEDGER", "FEATUREKIT_WAREHOUSE")
    stores += ("FEATUREKIT_ONLINE_STORE", "FEATUREKIT_REDIS_URL")
    for name in (*stores, "FEATUREKIT_WORKSPACE", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
