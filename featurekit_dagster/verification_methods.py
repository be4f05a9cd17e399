"""The methods of a feature view by which people test its pipeline and compare its stores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import ReadError

if TYPE_CHECKING:
    from featurekit_dagster.execution.integration_report import IntegrationReport
    from featurekit_dagster.sdk import Workspace
    from featurekit_dagster.serving.consistency import ConsistencyReport


class VerificationMethods:
    """What a feature view of a workspace offers for being tested.

    Source: Job Types, Integration Test; ours for `check_consistency`.
    """

    _workspace: Workspace
    declaration: FeatureView

    def run_integration_test(
        self,
        events: Any = None,
        *,
        kind: str | None = None,
        stream_events: Sequence[bytes] | None = None,
        from_source: bool = False,
        seed: int = 0,
    ) -> IntegrationReport:
        """Test the view end to end in a workspace that is thrown away, and return the report of its steps.

        Its real asset, stores and stream loop run on test events; nothing of its own stores is read or written.

        Args:
            events: Frames by parameter of the view's function, or one frame where it has one parameter. What is not
                given is made up from the columns of the source.
            kind: `batch` or `stream`; a stream view is tested as one by default, and as `batch` only its batch side.
            stream_events: Records of the stream, where they look otherwise than the rows of its batch side.
            from_source: Whether the newest complete intervals of the view's own sources are taken.
            seed: Another one makes up other events.

        Raises:
            ReadError: The view cannot be tested so: a feature table, a batch view as a stream, unknown parameters.
            EventsNotUsable: Given events lack a column, times or rows.

        Source: Job Types, Integration Test.
        """
        from featurekit_dagster.orchestration.integration_test import run_integration_test

        return run_integration_test(
            self._workspace,
            self.declaration.name,
            kind=kind,
            events=events,
            stream_events=stream_events,
            from_source=from_source,
            seed=seed,
        )

    def check_consistency(self, sample: int = 1_000, seed: int = 0) -> ConsistencyReport:
        """Compare online answers with offline ones for a sample of join keys, in this process, and return what differs.

        The job that tells of it is among `list_jobs`, and the asset check of the view says the same.

        Args:
            sample: How many join keys are drawn from each of both stores.
            seed: Another one makes another choice.

        Raises:
            ReadError: The view is not written online.
            UnsettledView: Jobs kept writing the view meanwhile.
            ComparisonFailed: It could not be made for another reason.
        """
        from featurekit_dagster.errors import ComparisonFailed
        from featurekit_dagster.orchestration.consistency import compare_in_process
        from featurekit_dagster.orchestration.run import failure_text, open_instance

        name = self.declaration.name
        if not self.declaration.online:
            raise ReadError(f"{name} is not materialized online (online=False), so there is nothing to compare")
        reports: list[ConsistencyReport] = []
        with open_instance(self._workspace) as instance:
            result = compare_in_process(self._workspace, [name], instance, reports.append, sample=sample, seed=seed)
        failure = failure_text(result)
        if failure is not None:
            raise ComparisonFailed(reason=failure)
        return reports[0]
