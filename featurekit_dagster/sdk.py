"""Workspaces: declarations bound to a lake, and the handles by which people use them."""

from __future__ import annotations

import importlib
import os
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.online_stores import OnlinePlaces, OnlineStoreConfig
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.errors import NotFoundError, TectonValidationError
from featurekit_dagster.intervals import as_utc
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.planning.partition_limits import too_many_partitions
from featurekit_dagster.planning.planner import check_interval, plan_view, split_tasks
from featurekit_dagster.planning.tasks import LedgerSnapshot, RunPlan, ViewPlan

if TYPE_CHECKING:
    import dagster as dg

    from featurekit_dagster.dataset_handles import Dataset
    from featurekit_dagster.domain.feature_view import FeatureView
    from featurekit_dagster.handles import FeatureViewHandle
    from featurekit_dagster.service_handles import FeatureServiceHandle
    from featurekit_dagster.source_handles import StreamSourceHandle
    from featurekit_dagster.stores.ledger_records import JobRecord
    from featurekit_dagster.stores.workspace_stores import WorkspaceStores
    from featurekit_dagster.table_handles import FeatureTableHandle

Declarations = Iterable[Any] | ModuleType


def utc_now() -> datetime:
    """Return the present time."""
    return datetime.now(UTC)


class Workspace:
    """Declarations bound to a lake.

    Args:
        name: Name of the workspace; also the code location's in messages.
        declarations: Feature views, services, sources and entities, or modules that hold them.
        home: Local directory for the ledger and the online store. Default: `$FEATUREKIT_HOME`, else `.featurekit/`
            beside the file that creates the workspace.
        lake: Root of the offline tables, a path or any URI that delta-rs takes. Default: `$FEATUREKIT_LAKE`, else
            `home/lake`.
        clock: Returns "now" for planning, scheduling, ttl and online reads; a datetime stands still. Default: the real
            time.
        online_store: Where views are served from that name no store: a `RedisConfig`, a `DynamoConfig` or a URL.
            Default: `$FEATUREKIT_ONLINE_STORE`, a URL, else `home/online`.

    Raises:
        DeclarationError: The declarations contradict each other.

    Source: ours; `get_feature_view`, `get_feature_service` and `list_feature_views` as on the SDK page.
    """

    def __init__(
        self,
        name: str,
        declarations: Declarations,
        home: str | Path | None = None,
        lake: str | Path | None = None,
        clock: Callable[[], datetime] | datetime | None = None,
        online_store: OnlineStoreConfig | str | None = None,
    ) -> None:
        caller = sys._getframe(1).f_code.co_filename
        self.name = name
        self.repo = Repository.gather(declarations)
        self.home = Path(home or os.environ.get("FEATUREKIT_HOME") or Path(caller).resolve().parent / ".featurekit")
        self.lake = str(lake or os.environ.get("FEATUREKIT_LAKE") or self.home / "lake")
        self.loaded_at = utc_now()
        stores = {view.name: view.online_store for view in self.repo.views if view.online_store is not None}
        self.online_places = OnlinePlaces.named(online_store, stores)
        self.fixed_now = as_utc(clock) if isinstance(clock, datetime) else None
        self._clock = clock if callable(clock) else utc_now

    def __repr__(self) -> str:
        views, services = len(self.repo.views), len(self.repo.services)
        return f"Workspace({self.name!r}, {views} feature views, {services} feature services)"

    @property
    def dagster_url(self) -> str:
        """Address of the Dagster UI: `$FEATUREKIT_DAGSTER_URL`, else that of `dagster dev` on this machine."""
        return os.environ.get("FEATUREKIT_DAGSTER_URL", "http://127.0.0.1:3000").rstrip("/")

    def now(self) -> datetime:
        """Return the workspace's time, aware UTC."""
        return self.fixed_now or as_utc(self._clock())

    @cached_property
    def stores(self) -> WorkspaceStores:
        """The workspace's ledger, offline and online store."""
        from featurekit_dagster.stores.workspace_stores import WorkspaceStores  # noqa: PLC0415 - planning does without

        return WorkspaceStores(
            workspace=self.name, home=self.home, lake=self.lake, clock=self.now, places=self.online_places
        )

    def definitions(self) -> dg.Definitions:
        """Return the Dagster definitions of all views.

        Raises:
            DeclarationError: A `batch_schedule` that cron cannot put on the epoch grid.
        """
        from featurekit_dagster.orchestration.build import build_definitions  # noqa: PLC0415 - Dagster is loaded on demand

        return build_definitions(self)

    def list_feature_views(self) -> list[str]:
        """Return the names of all feature views, in order of declaration; feature tables are not among them."""
        return [view.name for view in self.repo.views if not view.is_table]

    def list_feature_tables(self) -> list[str]:
        """Return the names of all feature tables, in order of declaration."""
        return [view.name for view in self.repo.views if view.is_table]

    def get_feature_view(self, name: str) -> FeatureViewHandle:
        """Return a feature view, or a feature table, by name.

        Raises:
            NotFoundError: There is none.
        """
        from featurekit_dagster.handles import FeatureViewHandle  # noqa: PLC0415 - planning does without

        view = self.repo.view(name)
        return self.get_feature_table(name) if view.is_table else FeatureViewHandle(self, view)

    def get_feature_table(self, name: str) -> FeatureTableHandle:
        """Return a feature table by name; rows are put into it by its `ingest`.

        Raises:
            NotFoundError: There is none.
        """
        from featurekit_dagster.table_handles import FeatureTableHandle  # noqa: PLC0415 - planning does without

        tables = self.list_feature_tables()
        if name not in tables:
            raise NotFoundError(kind="feature table", name=name, known=tables)
        return FeatureTableHandle(self, self.repo.view(name))

    def get_feature_service(self, name: str) -> FeatureServiceHandle:
        """Return a feature service by name.

        Raises:
            NotFoundError: There is none.
        """
        from featurekit_dagster.service_handles import FeatureServiceHandle  # noqa: PLC0415 - planning does without

        return FeatureServiceHandle(self, self.repo.service(name))

    def get_stream_source(self, name: str) -> StreamSourceHandle:
        """Return a stream source by name; one whose events are pushed takes them by its `ingest`.

        Raises:
            NotFoundError: There is none.
        """
        from featurekit_dagster.source_handles import StreamSourceHandle  # noqa: PLC0415 - planning does without

        return StreamSourceHandle(self, self.repo.stream_source(name))

    def get_dataset(self, name: str) -> Dataset:
        """Return a dataset by name, archived or not.

        Raises:
            NotFoundError: There is none.
        """
        from featurekit_dagster.dataset_handles import Dataset  # noqa: PLC0415 - planning does without

        return Dataset(self, name)

    def list_datasets(self, include_archived: bool = False) -> list[str]:
        """Return the names of all datasets that are there, in order of their names."""
        datasets = self.stores.datasets
        return [name for name in datasets.names() if include_archived or not datasets.is_archived(name)]

    def snapshot(self) -> LedgerSnapshot:
        """Return what the ledger knows now; nothing where none exists yet."""
        return self.stores.ledger.snapshot(self.name, self.shapes()) if self._has_ledger() else LedgerSnapshot()

    def shapes(self) -> dict[str, StoredShape]:
        """Return what the declaration of each view stores."""
        return {view.name: StoredShape.of(view) for view in self.repo.views}

    def jobs(
        self, view_name: str | None = None, states: Sequence[str] | None = None, limit: int | None = None
    ) -> list[JobRecord]:
        """Return the jobs of all views, or of one, newest first; none where there is no ledger yet."""
        return self.stores.ledger.jobs(self.name, view_name, states, limit) if self._has_ledger() else []

    def _has_ledger(self) -> bool:
        return self.stores.has_ledger

    def plan(self, views: Iterable[str] | None = None) -> tuple[ViewPlan, ...]:
        """Return what has to be done so that views are materialized up to now; changes nothing.

        Args:
            views: Names of feature views; all of them by default.

        Raises:
            NotFoundError: A name is not known.
        """
        chosen = self.repo.views if views is None else [self.repo.view(name) for name in views]
        snapshot, now = self.snapshot(), self.now()
        return tuple(plan_view(view, snapshot, now) for view in chosen)

    def check_partitions(self, views: Iterable[FeatureView]) -> None:
        """Refuse views that have too many partitions for Dagster and of which nothing is materialized yet.

        Raises:
            TooManyPartitions: There is one.
        """
        snapshot, now = self.snapshot(), self.now()
        for view in views:
            refused = too_many_partitions(view, snapshot, now)
            if refused is not None:
                raise refused

    def plan_interval(self, view_name: str, start_time: datetime, end_time: datetime, *, overwrite: bool) -> RunPlan:
        """Return the run for an interval that a person asks for, in every store that the view writes.

        Args:
            view_name: The feature view.
            start_time: First instant inside, on the grid of `batch_schedule`; naive is UTC.
            end_time: First instant after, on the grid; at most the end of the last complete interval.
            overwrite: Whether what is there may be replaced.

        Raises:
            NotFoundError: The view is not known.
            PlanError: The interval is refused.
        """
        view = self.repo.view(view_name)
        interval = check_interval(view, start_time, end_time, self.now())
        tasks = split_tasks(view, interval, online=view.online, offline=view.offline, overwrite=overwrite)
        return RunPlan(view=view.name, interval=interval, tasks=tasks)


def get_workspace(name: str | None = None) -> Workspace:
    """Return a workspace of this project.

    `FEATUREKIT_WORKSPACE` ("module:attr") decides when it is set and `name` is not given or is that workspace's own;
    otherwise the table `[tool.featurekit.workspaces]` of the nearest pyproject.toml above the working directory, of
    which `FEATUREKIT_WORKSPACE` may also name a key.

    Args:
        name: A key of the table; may be left out when there is only one.

    Raises:
        NotFoundError: There is no such workspace.
        TectonValidationError: None is declared, several are and none was named, or it is no workspace.

    Source: Manually Trigger Materialization (`tecton.get_workspace("dev")`).
    """
    targets, root = _declared_workspaces()
    override = os.environ.get("FEATUREKIT_WORKSPACE")
    if override and ":" in override:
        workspace = _load(override, root)
        if name in (None, workspace.name):
            return workspace
    if not targets:
        raise TectonValidationError(
            f"no workspace is declared in {root} or above it; add [tool.featurekit.workspaces] with "
            "dev = 'module:attribute' to pyproject.toml, or set FEATUREKIT_WORKSPACE=module:attribute"
        )
    if override and ":" not in override and name is None:
        name = override
    if name is None and len(targets) > 1:
        raise TectonValidationError(f"there are several workspaces; name one of {', '.join(targets)}")
    wanted = name or next(iter(targets))
    if wanted not in targets:
        raise NotFoundError(kind="workspace", name=wanted, known=list(targets))
    return _load(targets[wanted], root)


def _declared_workspaces() -> tuple[dict[str, str], Path]:
    for folder in _upwards(Path.cwd()):
        file = folder / "pyproject.toml"
        if file.is_file():
            targets = _workspaces_in(file)
            if targets:
                return targets, folder
    return {}, Path.cwd()


def _workspaces_in(file: Path) -> dict[str, str]:
    try:
        tool = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except tomllib.TOMLDecodeError as error:
        raise TectonValidationError(f"{file} is no TOML: {error}; correct it") from error
    targets = tool.get("featurekit", {}).get("workspaces", {})
    if not isinstance(targets, dict) or not all(isinstance(target, str) for target in targets.values()):
        raise TectonValidationError(
            f"{file}: tool.featurekit.workspaces is no table of names and 'module:attribute' texts; write dev = "
            "'features:workspace' under [tool.featurekit.workspaces]"
        )
    return targets


def _upwards(folder: Path) -> Iterator[Path]:
    yield folder
    yield from folder.parents


def _load(target: str, root: Path) -> Workspace:
    module, _, attribute = target.partition(":")
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    try:
        workspace = getattr(importlib.import_module(module), attribute or "workspace", None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise TectonValidationError(f"{target!r} names a module that does not exist: {error.name}") from error
    if not isinstance(workspace, Workspace):
        raise TectonValidationError(f"{target!r} is no Workspace; name one as 'module:attribute'")
    return workspace
