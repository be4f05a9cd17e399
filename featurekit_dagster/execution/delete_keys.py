"""The job that deletes join keys: hidden first, then out of the offline tables, the warehouse and the online store.

Every commit takes the view's lease for itself, so that batch jobs have their turn. What is left is seen in the stores,
so an attempt that was killed is gone on with by the next one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta

import pyarrow as pa

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.errors import KeysGone
from featurekit_dagster.execution.deletion_request import (
    DeletionRequest,
    folder_of,
    forget_keys,
    hide,
    kept_keys,
    remove_online,
    removed_before,
)
from featurekit_dagster.execution.publish import is_in_warehouse, unpublish_keys
from featurekit_dagster.execution.stored_generations import generations_of
from featurekit_dagster.execution.turns import PATIENCE, Turns
from featurekit_dagster.stores.hidden_rows import with_cutoffs
from featurekit_dagster.stores.ledger_records import JobRecord
from featurekit_dagster.stores.offline import KeyDeletion
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

HIDDEN, REWRITTEN, FINISHED, CLEANED, TOLD = "hidden", "rewritten", "finished", "cleaned", "told"
DATASETS = "datasets"
OnStep = Callable[[str], None]
Check = Callable[[], None]


def _ignore(step: str) -> None:
    """Do nothing at a step."""


@dataclass(slots=True)
class KeyRemoval:
    """One attempt of a job that deletes keys.

    Args:
        view: The feature view.
        stores: Where rows and record are kept.
        job: The job.
        check: Called before each commit; what it raises ends the attempt.
        wait: How long to wait for the view's lease each time.
        on_step: Called after each step.
    """

    view: FeatureView
    stores: WorkspaceStores
    job: JobRecord
    check: Check
    wait: timedelta = PATIENCE
    on_step: OnStep = _ignore
    _counts: dict[str, int] = field(default_factory=dict)

    def carry_out(self) -> Mapping[str, int]:
        """Delete the keys wherever the request says, and return counts of what was done in each store.

        The names of datasets that have a row of a key are left in the job's request under `datasets`.

        Raises:
            KeysGone: The file that the keys waited in is gone.
            LeaseHeld: A job writes the view all the time; what was done stays.
            JobStopped: The job was told to end; what was done stays.
        """
        asked = DeletionRequest.of(self.job)
        keys = kept_keys(asked, self.stores)
        if keys is None:
            if DATASETS in (self.job.request or {}):
                return self.job.stats  # all was done, but nobody has recorded it
            raise KeysGone(view=self.view.name, job_id=self.job.id, folder=str(folder_of(self.stores)))
        before = removed_before(asked, self.stores)
        self._counts = {"keys": keys.num_rows} | self._former()
        removed = hide(self.view, keys, asked, self.stores)
        self._add(keys_online=max(before.keys, removed.keys), rows_online=before.rows + removed.rows)
        self.on_step(HIDDEN)
        if asked.offline:
            self._remove_offline(keys, asked)
        if asked.online and self.view.online:
            self.check()
            removed = remove_online(self.view, keys, self.stores)
            self._add(rows_online=removed.rows)
        self._tell(keys, asked)
        forget_keys(asked, self.stores)
        return self._counts

    def _former(self) -> dict[str, int]:
        """Return the counts of commits that former attempts have made."""
        names = ("rows_offline", "files_rewritten", "bytes_rewritten", "rows_published")
        return {name: count for name, count in self.job.stats.items() if name in names}

    def _add(self, **counts: int) -> None:
        for name, count in counts.items():
            self._counts[name] = self._counts.get(name, 0) + count

    def _remove_offline(self, keys: pa.Table, asked: DeletionRequest) -> None:
        """Take the keys out of the table of every generation, and out of what is published."""
        registered = self.stores.tombstones.load(self.view.name)
        hidden = keys.slice(0, 0) if registered is None else keys
        if registered is not None:
            hidden = with_cutoffs(keys, self.view.join_keys, registered.offline)
        self._add(rows_offline=0, files_rewritten=0, bytes_rewritten=0)
        for generation in generations_of(self.view, self.stores) if hidden.num_rows else ():
            if self.stores.offline.exists(self.view.name, generation):
                self._rewrite(generation, hidden, asked)
        self.stores.tombstones.finish(self.view.name, asked.request)
        self.on_step(FINISHED)
        if hidden.num_rows and is_in_warehouse(self.view, self.stores):
            self.check()
            published = unpublish_keys(self.view, self.stores, hidden.select(list(self.view.key_names)), self.wait)
            self._add(rows_published=published)

    def _rewrite(self, generation: int, hidden: pa.Table, asked: DeletionRequest) -> None:
        """Take the rows of keys out of one table, a partition per commit."""
        deletion = self.stores.offline.key_deletion(
            self.view.name, generation, hidden, time_column=self._time_column(generation)
        )
        turns = Turns(self.stores, self.view.name, self.job.id, self.wait)
        while left := deletion.left():
            for partition in left:
                self._commit(turns, deletion, partition)
        if asked.vacuum:
            with turns.turn(lambda lease: self.check()) as lease:
                self._add(files_deleted=deletion.vacuum(job_id=self.job.id, epoch=lease.epoch))
            self.on_step(CLEANED)

    def _commit(self, turns: Turns, deletion: KeyDeletion, partition: str) -> None:
        with turns.turn(lambda lease: self.check()) as lease:
            done = deletion.rewrite(partition, job_id=self.job.id, epoch=lease.epoch)
        self._add(rows_offline=done.rows, files_rewritten=done.files, bytes_rewritten=done.bytes)
        self.stores.ledger.report_chore(self.job.id, stats=self._counts)
        self.on_step(REWRITTEN)

    def _time_column(self, generation: int) -> str:
        """Return the time column of a generation's table."""
        known = self.stores.ledger.generations(self.stores.workspace, self.view.name)
        shape = next((each.shape for each in known if each.generation == generation), None)
        return self.view.stored_time_column if shape is None else shape.time_column

    def _tell(self, keys: pa.Table, asked: DeletionRequest) -> None:
        """Leave the counts, and the names of datasets with a row of a key, with the job."""
        names = self.stores.datasets.with_keys(self.view.name, keys)
        self._add(datasets=len(names))
        request = {**(self.job.request or {}), DATASETS: list(names)}
        self.stores.ledger.report_chore(self.job.id, stats=self._counts, request=request)
        self.on_step(TOLD)
