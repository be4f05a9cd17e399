"""Workspaces, how they are found, and what a handle tells about its feature view."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from featurekit_dagster import FeatureService, Workspace, get_workspace
from featurekit_dagster.errors import NotFoundError, TectonValidationError
from featurekit_dagster.handles import FeatureViewHandle
from tests.support.visits import DAY, FIRST, HOUR, NOW, latest, materialize, totals, visit, workspace_of, write_visits


@pytest.fixture
def handle(tmp_path: Path) -> FeatureViewHandle:
    source = write_visits(tmp_path, [visit(1, 2.5)], delay=HOUR)
    view = totals(source, description="What users spend.", owner="someone@example.com", tags={"team": "shop"})
    return workspace_of(tmp_path, [view, FeatureService(name="all", features=[view])]).get_feature_view("totals")


# ---- properties of the SDK page --------------------------------------------------------------------------------------


def test_a_handle_has_every_property_of_the_page(handle: FeatureViewHandle) -> None:
    assert handle.batch_schedule == DAY
    assert handle.defined_in is not None
    assert "visits.py" in handle.defined_in
    assert handle.description == "What users spend."
    assert handle.entity_names == ["user"]
    assert handle.feature_start_time == FIRST
    assert handle.features == handle.get_feature_columns() == ["sum_1d", "count_3d", "visits_3d", "mean_3d"]
    assert handle.join_keys == ["user"]
    assert handle.max_data_delay == HOUR
    assert handle.name == "totals"
    assert handle.online_serving_index == ("user",)
    assert handle.owner == "someone@example.com"
    assert handle.tags == {"team": "shop"}
    assert handle.timestamp_field == handle.get_timestamp_field() == "ts"
    assert handle.wildcard_join_key is None
    assert handle.workspace == "world"
    assert handle.aggregation_interval == HOUR
    assert repr(handle) == "<feature view 'totals' of workspace 'world'>"


def test_the_id_is_stable_and_differs_between_views_and_workspaces(tmp_path: Path) -> None:
    source = write_visits(tmp_path, [])
    views = [latest(source), totals(source)]
    here, there = (Workspace(name, views, home=tmp_path, clock=NOW) for name in ("here", "there"))
    ids = {w.get_feature_view(v.name).id for w in (here, there, here) for v in views}
    assert len(ids) == 4


def test_a_view_is_as_old_as_its_first_sight(tmp_path: Path) -> None:
    now = [NOW]
    view = latest(write_visits(tmp_path, [visit(1, 2.5)]))
    first = workspace_of(tmp_path, [view], now=lambda: now[0])
    assert first.get_feature_view("newest").created_at == NOW
    now[0] = NOW + timedelta(days=3)
    assert first.get_feature_view("newest").created_at == NOW
    again = workspace_of(tmp_path, [view], now=lambda: now[0])
    materialize(again, "newest")
    assert again.get_feature_view("newest").created_at == NOW


def test_the_url_is_the_page_of_the_asset(handle: FeatureViewHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert handle.url == "http://127.0.0.1:3000/assets/totals"
    monkeypatch.setenv("FEATUREKIT_DAGSTER_URL", "https://dagster.example.com/")
    assert handle.url == "https://dagster.example.com/assets/totals"


def test_a_summary_tells_all_of_it(handle: FeatureViewHandle) -> None:
    summary = handle.summary()
    assert summary["name"] == "totals"
    assert summary["features"] == handle.features
    assert summary["max_data_delay"] == HOUR
    assert {"created_at", "url", "id", "wildcard_join_key", "ttl", "online", "offline", "workspace"} < set(summary)
    assert all(summary[name] == getattr(handle, name) for name in summary)


def test_what_a_view_does_not_have_is_no_attribute(handle: FeatureViewHandle) -> None:
    assert not hasattr(handle, "nothing")
    assert not hasattr(handle, "_nothing")


# ---- workspaces ------------------------------------------------------------------------------------------------------


def test_a_workspace_lists_and_gives_its_views_and_services(handle: FeatureViewHandle, tmp_path: Path) -> None:
    workspace = workspace_of(tmp_path, [handle.declaration, FeatureService(name="all", features=[handle.declaration])])
    assert workspace.list_feature_views() == ["totals"]
    assert workspace.get_feature_view("totals").name == "totals"
    assert workspace.get_feature_service("all").name == "all"
    assert repr(workspace) == "Workspace('world', 1 feature views, 1 feature services)"
    with pytest.raises(NotFoundError, match="no feature view named 'total'; there is totals"):
        workspace.get_feature_view("total")
    with pytest.raises(NotFoundError, match="no feature service named 'some'; there is all"):
        workspace.get_feature_service("some")


def test_stores_are_where_the_arguments_or_the_environment_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Workspace("here", []).home == Path(__file__).resolve().parent / ".featurekit"
    monkeypatch.setenv("FEATUREKIT_HOME", str(tmp_path / "home"))
    assert Workspace("here", []).lake == str(tmp_path / "home" / "lake")
    monkeypatch.setenv("FEATUREKIT_LAKE", "s3://lake")
    assert (Workspace("here", []).home, Workspace("here", []).lake) == (tmp_path / "home", "s3://lake")
    given = Workspace("here", [], home=tmp_path, lake=tmp_path / "lake")
    assert (given.home, given.lake) == (tmp_path, str(tmp_path / "lake"))


def test_the_clock_is_real_fixed_or_a_function() -> None:
    assert abs(Workspace("here", []).now() - datetime.now(UTC)) < timedelta(minutes=1)
    fixed = Workspace("here", [], clock=NOW.replace(tzinfo=None))
    assert fixed.now() == fixed.fixed_now == NOW
    moving = Workspace("here", [], clock=lambda: NOW + HOUR)
    assert moving.now() == NOW + HOUR
    assert moving.fixed_now is None


# ---- get_workspace ---------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project with two workspaces, and a folder inside it as working directory."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.featurekit.workspaces]\ndev = "sdk_project:dev"\nprod = "sdk_project:prod"\nbad = "sdk_project:number"\n'
        'lost = "sdk_nowhere:dev"\n'
    )
    (tmp_path / "sdk_project.py").write_text(
        "from featurekit_dagster import Workspace\ndev, prod, number = Workspace('dev', []), Workspace('prod', []), 5\n"
    )
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("sdk_project", None)


def test_a_workspace_is_found_by_the_table_of_the_nearest_project(project: Path) -> None:
    assert get_workspace("dev").name == "dev"
    assert get_workspace("prod").name == "prod"
    assert get_workspace("dev").home == project / ".featurekit"


def test_a_name_is_needed_where_there_are_several(project: Path) -> None:
    with pytest.raises(TectonValidationError, match="there are several workspaces; name one of dev, prod, bad, lost"):
        get_workspace()
    (project / "pyproject.toml").write_text('[tool.featurekit.workspaces]\ndev = "sdk_project:dev"\n')
    assert get_workspace().name == "dev"


def test_the_environment_names_a_workspace(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATUREKIT_WORKSPACE", "sdk_project:prod")
    assert get_workspace().name == "prod"
    assert get_workspace("dev").name == "dev", "another one is asked for"
    monkeypatch.setenv("FEATUREKIT_WORKSPACE", "dev")
    assert get_workspace().name == "dev"
    (project / "pyproject.toml").write_text("")
    monkeypatch.setenv("FEATUREKIT_WORKSPACE", "sdk_project:prod")
    monkeypatch.syspath_prepend(str(project))
    assert get_workspace("prod").name == "prod", "its own name"


def test_a_project_without_a_table_is_told_what_to_add(project: Path) -> None:
    (project / "pyproject.toml").write_text("")
    for name in (None, "dev"):
        with pytest.raises(
            TectonValidationError, match=r"no workspace is declared in .*; add \[tool.featurekit.workspaces"
        ):
            get_workspace(name)


def test_an_unknown_workspace_is_told_with_those_that_exist(project: Path) -> None:
    with pytest.raises(NotFoundError, match="no workspace named 'test'; there are bad, dev, lost, prod"):
        get_workspace("test")


def test_a_table_that_cannot_be_read_is_told_with_its_file(project: Path) -> None:
    file = project / "pyproject.toml"
    file.write_text("[tool")
    with pytest.raises(TectonValidationError, match=r"pyproject.toml is no TOML: Expected .*; correct it"):
        get_workspace("dev")
    file.write_text("[tool.featurekit]\nworkspaces = 'features:workspace'\n")
    with pytest.raises(TectonValidationError, match=r"workspaces is no table of names and 'module:attribute' texts"):
        get_workspace("dev")


def test_something_that_is_no_workspace_is_told(project: Path) -> None:
    with pytest.raises(
        TectonValidationError, match="'sdk_project:number' is no Workspace; name one as 'module:attribute'"
    ):
        get_workspace("bad")
    with pytest.raises(
        TectonValidationError, match="'sdk_nowhere:dev' names a module that does not exist: sdk_nowhere"
    ):
        get_workspace("lost")
