"""Asking for join keys to be deleted: checked, kept in a file that only its owner reads, and hidden at once.

The rest is a job, see `delete_keys.py`. A process that ends anywhere in between leaves a job that does it all.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from featurekit_dagster.arrow_types import arrow_type, record_type
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.engine.arrow import UNCONVERTIBLE, to_arrow
from featurekit_dagster.errors import KeysRefused, SourceError
from featurekit_dagster.execution.stored_generations import generations_of, generations_of_other_keys
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.planning.grid import ceil_us
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.planning.online_tiles import first_tile_us, largest_tile_us
from featurekit_dagster.planning.tasks import OFFLINE, ONLINE
from featurekit_dagster.stores.ledger_records import DELETION, JobRecord
from featurekit_dagster.stores.online import OnlineLayout, OnlineRemoval
from featurekit_dagster.stores.tombstone_registry import Deletion
from featurekit_dagster.stores.tombstones import FOR_EVER_US, KeyHasher
from featurekit_dagster.stores.workspace_stores import WorkspaceStores

MOST_KEYS = 10_000
KEPT, ASKED, REGISTERED, HIDDEN = "kept", "asked", "registered", "hidden"
_ENDED = (JobState.SUCCESS, JobState.MANUALLY_CANCELLED)
OnStep = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionRequest:
    """What a job that deletes keys was asked for; it is kept with the job, the keys are not.

    Args:
        request: Names it, and the file that the keys wait in.
        deleted_at_us: When it was asked for, in microseconds since 1970.
        cutoff_us: Records of the keys before this time are deleted.
        online: Whether they are online.
        offline: Whether they are offline.
        keys: How many keys there are.
        vacuum: Whether files that hold deleted rows are deleted at once.
    """

    request: str
    deleted_at_us: int
    cutoff_us: int
    online: bool
    offline: bool
    keys: int
    vacuum: bool = False

    @classmethod
    def of(cls, job: JobRecord) -> DeletionRequest:
        """Return what a job was asked for."""
        asked = job.request or {}
        return cls(**{name: asked[name] for name in cls.__dataclass_fields__ if name in asked})

    @property
    def deletion(self) -> Deletion:
        """What is registered of it."""
        return Deletion(
            request=self.request,
            deleted_at=from_us(self.deleted_at_us),
            cutoff_us=self.cutoff_us,
            online=self.online,
            offline=self.offline,
        )


def _ignore(step: str) -> None:
    """Do nothing at a step."""


def request_deletion(
    view: FeatureView,
    frame: Any,
    stores: WorkspaceStores,
    *,
    online: bool = True,
    offline: bool = True,
    permanent: bool = False,
    vacuum: bool = False,
    trigger: str = "manual",
    tell: Callable[[str], None] = print,
    on_step: OnStep = _ignore,
) -> JobRecord | None:
    """Hide join keys from every read, and return the job that takes their rows out of the stores.

    From the return of this call on no read finds what is before the cutoff, and no writer brings it back.

    Args:
        view: The feature view or table.
        frame: The keys: a pandas, polars or Arrow frame with exactly the join keys.
        stores: Where rows and record are kept.
        online: Whether they are deleted online.
        offline: Whether they are deleted offline.
        permanent: Whether what comes later of them is refused, too.
        vacuum: Whether files that hold deleted rows are deleted at the end of the job.
        trigger: What asked for it.
        tell: Takes a note for people.
        on_step: Called with the name of each finished step.

    Returns:
        The job; None where nothing was ever materialized, so that there is nothing to do.

    Raises:
        KeysRefused: Neither store is named, the frame does not fit, or what is stored was written with other join keys;
            all faults are listed.
        TectonValidationError: It is no frame.
    """
    keys = checked_keys(view, frame, [] if online or offline else ["online and offline are both False; name a store"])
    wanted = {ONLINE: online, OFFLINE: offline}
    there = [store for store in wanted if wanted[store] and is_materialized(view, store, stores)]
    for generation, names in generations_of_other_keys(view, stores) if stores.has_ledger else ():
        stored = f"generation {generation} is stored by the join keys {names}, so these keys are not looked for there"
        if not there:
            raise KeysRefused(view=view.name, faults=[f"{stored}; delete by those, with the declaration that wrote it"])
        tell(f"{view.name}: {stored}; it is removed as a whole when the rebuild has taken its place")
    for store in (store for store in wanted if wanted[store] and store not in there):
        tell(f"{view.name}: nothing was ever materialized {store}, so there is nothing to delete there")
    if not there:
        return None
    forget_ended(stores)
    now_us = to_us(stores.clock())
    asked = DeletionRequest(
        request=uuid.uuid4().hex,
        deleted_at_us=now_us,
        cutoff_us=FOR_EVER_US if permanent else _cutoff_us(view, now_us),
        online=online,
        offline=offline,
        keys=keys.num_rows,
        vacuum=vacuum and offline,
    )
    return _ask(view, keys, asked, stores, trigger, on_step)


def _ask(
    view: FeatureView, keys: pa.Table, asked: DeletionRequest, stores: WorkspaceStores, trigger: str, on_step: OnStep
) -> JobRecord:
    _keep(keys, asked, stores)
    on_step(KEPT)
    job = stores.ledger.queue_chore(
        workspace=stores.workspace,
        view=view.name,
        kind=DELETION,
        trigger=trigger,
        interval=_interval(view, stores, asked),
        request=asdict(asked),
        online=asked.online,
        offline=asked.offline,
    )
    on_step(ASKED)
    removed = hide(view, keys, asked, stores, on_step)
    _note(asked, stores, removed)
    return job


def checked_keys(view: FeatureView, frame: Any, faults: Iterable[str] = ()) -> pa.Table:
    """Return the distinct join keys of a frame in their declared types.

    Args:
        view: The feature view.
        frame: pandas, polars or Arrow frame.
        faults: What is known to be wrong already.

    Raises:
        KeysRefused: It has other columns, none or too many rows, or a value of another type.
        TectonValidationError: It is no frame, or column names repeat.
    """
    found = list(faults)
    try:
        table = to_arrow(frame)
    except UNCONVERTIBLE:
        # from None: the library's text quotes values
        raise KeysRefused(view=view.name, faults=["a column holds values of several types; give it one"]) from None
    names = ", ".join(view.key_names)
    if set(table.column_names) != set(view.key_names):
        given = ", ".join(table.column_names) or "none"
        found.append(f"the columns are {given}, but must be exactly the join keys {names}")
    if not table.num_rows:
        found.append("there are none")
    if table.num_rows > MOST_KEYS:
        found.append(f"there are {table.num_rows:,} rows, and one request takes at most {MOST_KEYS:,}; cut them up")
    columns = {}
    for key in view.join_keys if not found else ():
        try:
            columns[key.name] = table[key.name].cast(arrow_type(key.dtype))
        except UNCONVERTIBLE:
            found.append(f"column {key.name!r} is {table[key.name].type} and cannot be {key.dtype} without loss")
    if found:
        raise KeysRefused(view=view.name, faults=found)
    return pa.table(columns).group_by(list(columns)).aggregate([])


def keys_of_file(view: FeatureView, path: Path) -> pa.Table:
    """Return the rows of a .parquet or .csv file, whose join keys are read in their declared types.

    Raises:
        SourceError: There is no such file, or it is not what its ending says; the reader's words may quote a row.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return parquet.read_table(path)
        types = {key.name: arrow_type(key.dtype) for key in view.join_keys}
        return csv.read_csv(path, convert_options=csv.ConvertOptions(column_types=types))
    except (OSError, *UNCONVERTIBLE):
        reason = f"it is not there, or is no {path.suffix[1:] or 'parquet'} file with the join keys of {view.name}"
        raise SourceError(source=path.name, reason=reason) from None


def is_materialized(view: FeatureView, store: str, stores: WorkspaceStores) -> bool:
    """Tell whether a generation of a view was ever written to `online` or `offline`."""
    if not stores.has_ledger:
        return False
    ledger, numbers = stores.ledger, generations_of(view, stores)
    if any(ledger.coverage(stores.workspace, view.name, store, number) for number in numbers):
        return True
    starts = (ledger.stream_start(stores.workspace, view.name, number) for number in numbers)
    return store == ONLINE and view.is_stream and any(start is not None for start in starts)


def hashes_of(view: FeatureView, keys: pa.Table, stores: WorkspaceStores) -> list[bytes]:
    """Return the hashes under which tombstones of join keys are kept."""
    columns = [keys[key.name].cast(record_type(key.dtype)).combine_chunks() for key in view.join_keys]
    return KeyHasher(view.join_keys, stores.tombstones.salt(view.name)).of_columns(columns)


def hide(
    view: FeatureView, keys: pa.Table, asked: DeletionRequest, stores: WorkspaceStores, on_step: OnStep = _ignore
) -> OnlineRemoval:
    """Register the tombstones of a request and take the keys out of the online store; doing it again is harmless."""
    stores.tombstones.add(view.name, hashes_of(view, keys, stores), asked.deletion)
    on_step(REGISTERED)
    removed = remove_online(view, keys, stores) if asked.online and view.online else OnlineRemoval(keys=0, rows=0)
    on_step(HIDDEN)
    return removed


def remove_online(view: FeatureView, keys: pa.Table | None, stores: WorkspaceStores) -> OnlineRemoval:
    """Take what tombstones hide out of every generation of the online store; `keys` are all stored ones if None."""
    if stores.tombstones.load(view.name) is None:
        return OnlineRemoval(keys=0, rows=0)
    stores.sync_tombstones(view)
    done = [stores.online.remove_deleted(layout, keys) for layout in _layouts(view, stores)]
    return OnlineRemoval(keys=max((each.keys for each in done), default=0), rows=sum(each.rows for each in done))


def _layouts(view: FeatureView, stores: WorkspaceStores) -> Iterator[OnlineLayout]:
    """Yield every layout in which records of a view may lie, also of tiles that are being laid out anew."""
    for generation in generations_of(view, stores):
        used = stores.pinned(view, generation).online_layout(view)
        yield used
        if used.tile_us is not None and not view.is_stream:
            sizes = {used.tile_us, view.tile_us, first_tile_us(view), largest_tile_us(view)}
            yield from (replace(used, slot=1 - used.slot, tile_us=size) for size in sorted(s for s in sizes if s))


def _cutoff_us(view: FeatureView, now_us: int) -> int:
    """Return before which time records are deleted: the first end of a tile of any size that is not before now."""
    sizes = [size for size in (view.tile_us, first_tile_us(view), largest_tile_us(view)) if size]
    return int(ceil_us(now_us, math.lcm(*sizes)))


def _interval(view: FeatureView, stores: WorkspaceStores, asked: DeletionRequest) -> Interval:
    """Return the times of what is materialized, for people; the moment where that is not known."""
    found = [
        interval
        for store in (ONLINE, OFFLINE)
        for interval in stores.ledger.coverage(stores.workspace, view.name, store, stores.generation(view, store))
    ]
    now = from_us(asked.deleted_at_us)
    if not found:
        return Interval(now, from_us(asked.deleted_at_us + 1))
    return Interval(min(each.start for each in found), max(each.end for each in found))


# ---- the file that keys wait in --------------------------------------------------------------------------------------


def folder_of(stores: WorkspaceStores) -> Path:
    """Return the folder of the files that keys wait in."""
    return stores.home / "deletions" / stores.workspace


def _keep(keys: pa.Table, asked: DeletionRequest, stores: WorkspaceStores) -> None:
    """Write the keys where only the owner of the process reads them."""
    folder = folder_of(stores)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    hidden = folder / f".{asked.request}"
    with os.fdopen(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        parquet.write_table(keys, file)
        file.flush()
        os.fsync(file.fileno())
    hidden.rename(folder / f"{asked.request}.parquet")


def kept_keys(asked: DeletionRequest, stores: WorkspaceStores) -> pa.Table | None:
    """Return the keys of a request; None where they wait no more."""
    path = folder_of(stores) / f"{asked.request}.parquet"
    try:
        return parquet.read_table(path)
    except FileNotFoundError:
        return None


def _note(asked: DeletionRequest, stores: WorkspaceStores, removed: OnlineRemoval) -> None:
    """Keep how much was removed online beside the keys, for the job to tell."""
    path = folder_of(stores) / f"{asked.request}.parquet"
    if path.exists():  # the job may have been quicker
        hidden = path.with_name(f".{asked.request}.removed")  # the job must not read a part of it
        hidden.write_text(f"{removed.keys} {removed.rows}", "utf-8")
        hidden.rename(path.with_suffix(".removed"))


def removed_before(asked: DeletionRequest, stores: WorkspaceStores) -> OnlineRemoval:
    """Return how much was removed online when the request was made."""
    try:
        keys, rows = map(int, (folder_of(stores) / f"{asked.request}.removed").read_text("utf-8").split())
    except FileNotFoundError:
        return OnlineRemoval(keys=0, rows=0)
    return OnlineRemoval(keys=keys, rows=rows)


def forget_keys(asked: DeletionRequest, stores: WorkspaceStores) -> None:
    """Remove the file of a request."""
    for suffix in ("removed", "parquet"):
        with suppress(FileNotFoundError):
            (folder_of(stores) / f"{asked.request}.{suffix}").unlink()


def forget_ended(stores: WorkspaceStores) -> None:
    """Remove the files of requests whose job has succeeded or was cancelled."""
    if not stores.has_ledger or not folder_of(stores).is_dir():
        return
    waiting = {path.stem for path in folder_of(stores).glob("*.parquet")}
    if not waiting:
        return
    for job in stores.ledger.jobs(stores.workspace, None, _ENDED):
        if job.kind == DELETION and job.request is not None and job.request.get("request") in waiting:
            forget_keys(DeletionRequest.of(job), stores)


def allow(view: FeatureView, frame: Any, stores: WorkspaceStores) -> int:
    """Lift the tombstones of join keys, so that later writes store them again; return how many had one.

    What was deleted stays deleted until it is written again.

    Args:
        view: The feature view.
        frame: The keys: a pandas, polars or Arrow frame with exactly the join keys.
        stores: Where rows and record are kept.

    Raises:
        KeysRefused: The frame does not fit, or a job has yet to delete rows of a key; all faults are listed.
        TectonValidationError: It is no frame.
    """
    keys = checked_keys(view, frame)
    found = stores.tombstones.load(view.name)
    if found is None:
        return 0
    hashes = set(hashes_of(view, keys, stores))
    if found.pending.cutoffs.keys() & hashes and (faults := list(_unfinished(view, hashes, stores))):
        raise KeysRefused(view=view.name, faults=faults)
    lifted = hashes & (found.online.cutoffs.keys() | found.offline.cutoffs.keys())
    stores.tombstones.lift(view.name, lifted)
    if view.online:
        stores.sync_tombstones(view)
    return len(lifted)


def _unfinished(view: FeatureView, hashes: set[bytes], stores: WorkspaceStores) -> Iterator[str]:
    """Yield what is wrong with lifting tombstones now: without them a job would leave the rows, which reads hide."""
    for job in stores.ledger.unfinished_chores(stores.workspace, DELETION, view.name):
        asked = DeletionRequest.of(job)
        keys = kept_keys(asked, stores) if asked.offline else None
        count = 0 if keys is None else len(hashes.intersection(hashes_of(view, keys, stores)))
        if count:
            yield f"job {job.id} has yet to delete rows of {count:,} of them; wait for it or cancel it"
