"""Stream sources of a workspace, as people use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.stream_sources import StreamSource
from featurekit_dagster.engine.arrow import to_arrow
from featurekit_dagster.errors import EventsRefused
from featurekit_dagster.execution.ingest import IngestResult, PushSource, event_payloads

if TYPE_CHECKING:
    import pandas as pd

    from featurekit_dagster.execution.ingest_drain import DrainReport
    from featurekit_dagster.sdk import Workspace

VISIBLE_TIME = timedelta(seconds=2)
"""How long events that are sent are waited for by default, until CONTINUOUS views have them online."""


class StreamSourceHandle:
    """A stream source of a workspace."""

    def __init__(self, workspace: Workspace, source: StreamSource) -> None:
        self._workspace = workspace
        self.declaration = source

    def __repr__(self) -> str:
        return f"<stream source {self.name!r} of workspace {self._workspace.name!r}>"

    @property
    def name(self) -> str:
        """Name of the source."""
        return self.declaration.name

    def ingest(self, records: Any, *, dry_run: bool = False, wait: timedelta = VISIBLE_TIME) -> IngestResult:
        """Send events of a push source, all of them or none, by the rules of `POST /ingest`.

        They are on disk when this returns, and CONTINUOUS views have them online: whoever follows the source has
        applied them, or else this process has. Other views have them at their next commit.

        Args:
            records: A mapping, a list of them, or a pandas, polars or Arrow frame; fields as in the source's schema.
                Times without a zone are UTC.
            dry_run: Only check; what does not fit is in the result.
            wait: How long to wait until CONTINUOUS views have the events online; zero only logs them.

        Raises:
            EventsRefused: Some events do not fit the schema, so none was taken (not in a dry run).
            NotAPushSource: Events cannot be sent to this source.
            TectonValidationError: A value has no place in JSON.
        """
        given = [records] if isinstance(records, Mapping) else records
        result = self._push.ingest(event_payloads(given, _rows), dry_run=dry_run)
        if result.refused and not dry_run:
            faults = [(each.index, each.field, each.rule) for each in result.refused]
            raise EventsRefused(source=self.name, refused=faults)
        if result.sequence is None or not wait:
            return result
        from featurekit_dagster.execution.push_applier import make_visible

        return replace(result, visible=make_visible(self._push, self._workspace.stores, result.sequence, wait))

    def drain(self, *, keep: timedelta | None = None) -> DrainReport:
        """Take what was sent to the source's own Delta table, each event once, and trim the log.

        Args:
            keep: How long an event stays in the log at least; twice the longest `batch_schedule` by default.

        Raises:
            NotAPushSource: The source's batch side is no Delta table.
        """
        from featurekit_dagster.execution.ingest_drain import drain_push_log

        workspace = self._workspace
        return drain_push_log(self.declaration, workspace.repo.views, workspace.stores, keep=keep)

    def dead_letters(self) -> pd.DataFrame:
        """Return the events that were accepted, but did not fit the changed schema any more when they were drained.

        Returns:
            Columns as those of a view's `dead_letters`.
        """
        from featurekit_dagster.execution.ingest_drain import dead_letters_of

        return dead_letters_of(self.declaration, self._workspace.stores).read().to_pandas()

    @cached_property
    def _push(self) -> PushSource:
        return PushSource(self.declaration, self._workspace.repo.views, self._workspace.stores)


def _rows(frame: Any) -> Sequence[Mapping[str, Any]]:
    rows: list[dict[str, Any]] = to_arrow(frame).to_pylist()
    return rows
