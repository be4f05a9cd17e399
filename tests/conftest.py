"""What all tests share: no environment of the user's, counts of the property tests, the conformance cases."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).resolve().parents[1]
SOAK = bool(os.environ.get("FEATUREKIT_SOAK"))

os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"

settings.register_profile("quick", max_examples=50, deadline=None, print_blob=True)
settings.register_profile(
    "soak", max_examples=2_000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("soak" if SOAK else "quick")


def conformance_dir() -> Path:
    """Return the folder of the conformance cases, there or not; a relative one is below the project root."""
    return (ROOT / os.environ.get("FEATUREKIT_CONFORMANCE_DIR", "../shared/conformance")).resolve()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes `conformance_case` once per case; without cases it runs once, and fails."""
    if "conformance_case" in metafunc.fixturenames:
        cases = sorted(path.parent for path in conformance_dir().glob("*/case.json"))
        if cases:
            metafunc.parametrize("conformance_case", cases, ids=[case.name for case in cases], indirect=True)
        else:
            metafunc.parametrize("conformance_case", [None], ids=["no-cases-found"], indirect=True)


@pytest.fixture
def conformance_case(request: pytest.FixtureRequest) -> Path:
    """The folder of one conformance case."""
    if request.param is None:
        pytest.fail(
            f"no conformance cases (*/case.json) in {conformance_dir()}; put the folder there, "
            "or set FEATUREKIT_CONFORMANCE_DIR to where it is",
            pytrace=False,
        )
    return request.param


@pytest.fixture(scope="session")
def project_root() -> Path:
    """The folder of pyproject.toml."""
    return ROOT


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a user's stores, workspace and Dagster home out of every test."""
    for name in ("FEATUREKIT_HOME", "FEATUREKIT_LAKE", "FEATUREKIT_WORKSPACE", "DAGSTER_HOME"):
        monkeypatch.delenv(name, raising=False)
