"""Generations in the ledger: which are there, which one a declaration writes and reads, and when one takes over.

Deciding is `planning.generations`' work; this remembers. Every change is one transaction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, String, bindparam, cast, delete, exists, insert, literal, or_, select, update
from sqlalchemy.engine import Row

from featurekit_dagster.errors import ChangedDeclaration, ChangeNotKeepable, RetiredGeneration
from featurekit_dagster.intervals import Interval, from_us, to_us
from featurekit_dagster.planning.generations import (
    GenerationRecord,
    GenerationState,
    Resolution,
    StoredShape,
    following_shape,
    resolve,
)
from featurekit_dagster.planning.job_state import JobState
from featurekit_dagster.stores.ledger_claims import Place, covered_in
from featurekit_dagster.stores.ledger_database import LedgerDatabase
from featurekit_dagster.stores.ledger_records import ACTIVE_STATES
from featurekit_dagster.stores.ledger_tables import coverage, facts, generations, insert_new, jobs, views

STREAM_START = "stream_start:"
"""What the name of a fact begins with that says from when on a stream covers everything online."""

BOTH_STORES = ("offline", "online")
_FAR = datetime(9999, 1, 1, tzinfo=UTC)

_WROTE = (*ACTIVE_STATES, JobState.SUCCESS.value)
_STREAM = literal(STREAM_START) + generations.c.workspace + "/" + generations.c.view + "/"

# Built once: making a statement costs more than running it.
_HOLDS = or_(
    exists().where(*(coverage.c[n] == generations.c[n] for n in ("workspace", "view", "generation"))),
    exists().where(
        *(jobs.c[n] == generations.c[n] for n in ("workspace", "view", "generation")), jobs.c.state.in_(_WROTE)
    ),
    exists().where(facts.c.name == _STREAM + cast(generations.c.generation, String)),
)
_OF_WORKSPACE = (
    select(generations, _HOLDS.label("holds"))
    .where(generations.c.workspace == bindparam("workspace"))
    .order_by(generations.c.view, generations.c.generation)
)
_OF_VIEW = _OF_WORKSPACE.where(generations.c.view == bindparam("view"))


class GenerationBook(LedgerDatabase):
    """The generations of the views of one ledger.

    Attributes:
        generation_changes: Grows whenever this object changes a generation, so that what was read before is known to
            be old.
    """

    generation_changes = 0

    def generations(self, workspace: str, view: str) -> tuple[GenerationRecord, ...]:
        """Return the generations of a view, ascending."""
        with self._engine.connect() as connection:
            return read_generations(connection, workspace, view)

    def known_views(self, workspace: str) -> list[str]:
        """Return the names of all views with a generation, coverage or an unfinished job, in order."""
        with self._engine.connect() as connection:
            return sorted(known_views(connection, workspace))

    def resolution(self, workspace: str, view: str, shape: StoredShape) -> Resolution:
        """Return which generations a declaration writes and reads now."""
        return resolve(shape, self.generations(workspace, view))

    def open_generation(self, workspace: str, view: str, shape: StoredShape) -> int:
        """Return the generation that jobs of a declaration write, and remember what they store.

        The first declaration of a view gets generation 1; one that is older than the memory of shapes is taken over.

        Raises:
            ChangedDeclaration: The declaration has changed so that a person has to decide.
        """
        known = {record.generation: record for record in self.generations(workspace, view)}
        found = _writable(view, shape, tuple(known.values()))
        if found in known and known[found].shape == following(known[found], shape):
            return found
        with self._write() as connection:
            records = read_generations(connection, workspace, view)
            found = _writable(view, shape, records)
            same = next((record for record in records if record.generation == found), None)
            if same is None:
                for record in records:  # they are retired or hold nothing
                    self._put(
                        connection, Place(workspace, view, record.generation), state=GenerationState.RETIRED.value
                    )
                self._begin(connection, Place(workspace, view, found), shape, GenerationState.CURRENT)
            else:
                self._put(connection, Place(workspace, view, found), shape=following(same, shape).to_text())
        return found

    def rebuild(self, workspace: str, view: str, shape: StoredShape) -> int:
        """Begin a new generation for a declaration and return it; reads switch once it covers as much.

        An earlier one that was not finished is retired. Where the current one covers nothing that the declaration asks
        for, the new one is current at once.
        """
        with self._write() as connection:
            records = read_generations(connection, workspace, view)
            place = Place(workspace, view, max((record.generation for record in records), default=0) + 1)
            for record in records:
                if record.state is GenerationState.BUILDING:
                    self._put(connection, _at(place, record.generation), state=GenerationState.RETIRED.value)
            self._begin(connection, place, shape, GenerationState.BUILDING)
            self._switch_if_built(connection, place)
        return place.generation

    def keep(self, workspace: str, view: str, shape: StoredShape) -> int:
        """Let what is stored stand as what a changed declaration would store, and return its generation.

        Raises:
            ChangeNotKeepable: Stored rows lack something that the declaration needs.
        """
        written = self.resolution(workspace, view, shape).write
        if written not in (None, *(record.generation for record in self.generations(workspace, view))):
            return self.open_generation(workspace, view, shape)  # nothing is stored that could be kept
        with self._write() as connection:
            records = read_generations(connection, workspace, view)
            resolved = resolve(shape, records)
            refused = [change.text for change in resolved.changes if not change.keepable]
            if refused:
                raise ChangeNotKeepable(view=view, changes=refused)
            live = [record for record in records if record.state is not GenerationState.RETIRED]
            kept = next((r for r in live if r.generation == resolved.write), live[-1])
            place = Place(workspace, view, kept.generation)
            self._put(connection, place, shape=following(kept, shape).to_text())
            self._switch_if_built(connection, place)
        return place.generation

    def adopt(self, workspace: str, view: str, fitting: Mapping[int, bool]) -> None:
        """Make generations known that were found in the stores, in a ledger that knows none of the view.

        What they store is not known any more. Of those that fit the declaration the newest that covers as much as the
        ones before is current, and later ones are being built; all others are retired. Coverage has to be there.

        Args:
            workspace: Name of the workspace.
            view: Name of the view.
            fitting: Generation to whether its rows have what the declaration needs.
        """
        with self._write() as connection:
            now_us = to_us(self._clock())
            for generation, fits in sorted(fitting.items()):
                place = Place(workspace, view, generation)
                state = GenerationState.BUILDING if fits else GenerationState.RETIRED
                row = {"workspace": workspace, "view": view, "generation": generation, "state": state.value}
                connection.execute(insert(generations), row | {"created_us": now_us, "changed_us": now_us})
                self._switch_if_built(connection, place)
            self.generation_changes += 1

    def forget(self, workspace: str, view: str, generation: int | None = None) -> None:
        """Forget a generation of a view, or all of it, and what it covers; jobs stay, as history.

        What the stores hold has to be removed before.
        """
        with self._write() as connection:
            for table in (coverage, generations):
                chosen = (table.c.workspace == workspace) & (table.c.view == view)
                if generation is not None:
                    chosen &= table.c.generation == generation
                connection.execute(delete(table).where(chosen))
            if generation is None:
                connection.execute(delete(views).where(views.c.workspace == workspace, views.c.view == view))
            self.generation_changes += 1

    def deploy(self, workspace: str, codes: Mapping[str, str], loaded_us: int) -> frozenset[str]:
        """Remember the code of views that a code location has loaded; return those that are newer elsewhere.

        Args:
            workspace: Name of the workspace.
            codes: View to the code version of its declaration.
            loaded_us: When the location was loaded, by the real clock.
        """
        with self._engine.connect() as connection:
            known = _deployed(connection, workspace)
        if all(_is_known(known.get(view), code, loaded_us) for view, code in codes.items()):
            return _overtaken(known, codes, loaded_us)
        with self._write() as connection:
            known = _deployed(connection, workspace)
            overtaken = _overtaken(known, codes, loaded_us)
            for view in codes.keys() - overtaken:
                if not _is_known(known.get(view), codes[view], loaded_us):
                    row = {"workspace": workspace, "view": view, "created_us": to_us(self._clock())}
                    newest = {"code_version": codes[view], "deployed_us": loaded_us}
                    insert_new(connection, views, row | newest, newest)
        return overtaken

    def _begin(self, connection: Connection, place: Place, shape: StoredShape, state: GenerationState) -> None:
        now_us = to_us(self._clock())
        row = {"workspace": place.workspace, "view": place.view, "generation": place.generation}
        facts = {"state": state.value, "shape": shape.to_text(), "created_us": now_us, "changed_us": now_us}
        connection.execute(insert(generations), row | facts)
        self.generation_changes += 1

    def _put(self, connection: Connection, place: Place, **values: str) -> None:
        """Set columns of a generation."""
        own = (
            (generations.c.workspace == place.workspace)
            & (generations.c.view == place.view)
            & (generations.c.generation == place.generation)
        )
        connection.execute(update(generations).where(own).values(changed_us=to_us(self._clock()), **values))
        self.generation_changes += 1

    def _switch_if_built(self, connection: Connection, place: Place) -> None:
        """Let a generation take over if it is being built and covers what the current one covers."""
        records = read_generations(connection, place.workspace, place.view)
        own = next((record for record in records if record.generation == place.generation), None)
        if own is None or own.state is not GenerationState.BUILDING:
            return
        current = next((record for record in records if record.state is GenerationState.CURRENT), None)
        if current is not None:
            if not _covers_as_much(connection, place, own.shape, current.generation):
                return
            self._put(connection, _at(place, current.generation), state=GenerationState.RETIRED.value)
        self._put(connection, place, state=GenerationState.CURRENT.value)


def read_generations(connection: Connection, workspace: str, view: str) -> tuple[GenerationRecord, ...]:
    """Return the generations of a view, ascending."""
    found = connection.execute(_OF_VIEW, {"workspace": workspace, "view": view})
    return tuple(map(_record, found))


def read_all_generations(connection: Connection, workspace: str) -> dict[str, list[GenerationRecord]]:
    """Return the generations of every view of a workspace, ascending."""
    found: dict[str, list[GenerationRecord]] = {}
    for row in connection.execute(_OF_WORKSPACE, {"workspace": workspace}):
        found.setdefault(row.view, []).append(_record(row))
    return found


def known_views(connection: Connection, workspace: str) -> set[str]:
    """Return the names of all views with a generation, coverage or an unfinished job."""
    names: set[str] = set()
    for table in (generations, coverage, jobs):
        chosen = select(table.c.view).where(table.c.workspace == workspace).distinct()
        if table is jobs:
            chosen = chosen.where(jobs.c.state.in_(ACTIVE_STATES))
        names |= set(connection.execute(chosen).scalars())
    return names


def check_not_retired(connection: Connection, place: Place, job_id: str) -> None:
    """Refuse that a job is done again whose generation nothing uses any more.

    Raises:
        RetiredGeneration: It is so.
    """
    records = read_generations(connection, place.workspace, place.view)
    if any(r.generation == place.generation and r.state is GenerationState.RETIRED for r in records):
        raise RetiredGeneration(job_id=job_id, view=place.view, generation=place.generation)


def following(record: GenerationRecord, shape: StoredShape) -> StoredShape:
    """Return what a generation stores once a declaration that it follows is written into it."""
    return shape if record.shape is None else following_shape(record.shape, shape)


def _writable(view: str, shape: StoredShape, records: Sequence[GenerationRecord]) -> int:
    resolved = resolve(shape, records)
    if resolved.write is None:
        texts = [change.text for change in resolved.changes]
        raise ChangedDeclaration(view=view, changes=texts, keepable=all(c.keepable for c in resolved.changes))
    return resolved.write


def _covers_as_much(connection: Connection, place: Place, shape: StoredShape | None, current: int) -> bool:
    """Tell whether a generation covers, in the stores it is for, what the current one covers from its start on."""
    start_us = None if shape is None else shape.start_us
    for store in BOTH_STORES if shape is None else shape.stores:
        needed = covered_in(connection, _at(place, current), store)
        if start_us is not None:
            needed = needed.intersect([Interval(from_us(start_us), _FAR)])
        if needed.subtract(covered_in(connection, place, store)):
            return False
    return True


def _at(place: Place, generation: int) -> Place:
    return Place(place.workspace, place.view, generation)


def _record(row: Row[Any]) -> GenerationRecord:
    return GenerationRecord(
        generation=row.generation,
        state=GenerationState(row.state),
        shape=None if row.shape is None else StoredShape.from_text(row.shape),
        created_at=from_us(row.created_us),
        changed_at=from_us(row.changed_us),
        is_empty=not row.holds,
    )


def _deployed(connection: Connection, workspace: str) -> dict[str, Row[Any]]:
    return {row.view: row for row in connection.execute(select(views).where(views.c.workspace == workspace))}


def _is_known(row: Row[Any] | None, code: str, loaded_us: int) -> bool:
    """Tell whether nothing has to be remembered of a location: it, or a later one, is known."""
    if row is None or row.deployed_us is None:
        return False
    return bool(row.deployed_us > loaded_us or (row.code_version == code and row.deployed_us == loaded_us))


def _overtaken(known: Mapping[str, Row[Any]], codes: Mapping[str, str], loaded_us: int) -> frozenset[str]:
    """Return the views of which a location that was loaded later has other code."""
    newer = ((view, known.get(view)) for view in codes)
    return frozenset(
        view
        for view, row in newer
        if row is not None
        and row.deployed_us is not None
        and row.deployed_us > loaded_us
        and row.code_version != codes[view]
    )
