"""What planning sees of the ledger: one moment, read in one transaction, of each view one generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import Connection, select

from featurekit_dagster.intervals import IntervalSet, from_us
from featurekit_dagster.planning.generations import GenerationRecord, GenerationState, Resolution, StoredShape, resolve
from featurekit_dagster.planning.tasks import LedgerSnapshot, RemovedView
from featurekit_dagster.stores.ledger_generations import STREAM_START, known_views, read_all_generations
from featurekit_dagster.stores.ledger_records import read_coverage
from featurekit_dagster.stores.ledger_spans import read_spans
from featurekit_dagster.stores.ledger_tables import facts, jobs

_Coverage = Mapping[tuple[str, int, str], IntervalSet]


def take_snapshot(
    connection: Connection, workspace: str, shapes: Mapping[str, StoredShape] | None = None
) -> LedgerSnapshot:
    """Return what is known of a workspace; see `Ledger.snapshot`."""
    records = read_all_generations(connection, workspace)
    every = read_coverage(connection, workspace)
    declared = {} if shapes is None else shapes
    resolved = {view: resolve(shape, records.get(view, ())) for view, shape in declared.items()}
    chosen = {view: _shown(records.get(view, ()), resolved.get(view)) for view in {*records, *declared}}
    covered = {(view, store): spans for (view, g, store), spans in every.items() if g == chosen.get(view, 1)}
    superseded = {
        (view, store): spans
        for (view, g, store), spans in every.items()
        if view in resolved and g == resolved[view].replaces
    }
    spans = read_spans(connection, covered, chosen, jobs.c.workspace == workspace)
    unknown = set() if shapes is None else known_views(connection, workspace) - shapes.keys()
    return LedgerSnapshot(
        covered=covered,
        running={view: IntervalSet(found.running) for view, found in spans.items() if found.running},
        failed={view: IntervalSet(found.failed) for view, found in spans.items() if found.failed},
        left_alone={view: IntervalSet(found.left_alone) for view, found in spans.items() if found.left_alone},
        generation={view: chosen[view] for view in declared},
        changes={view: each.changes for view, each in resolved.items() if each.changes},
        superseded=superseded,
        retired={view: each.retired for view, each in resolved.items() if each.retired},
        undeclared={view: _removed(view, records.get(view, ()), every) for view in sorted(unknown)},
        stream_starts=_stream_starts(connection, workspace, chosen),
    )


def stream_fact(workspace: str, view: str, generation: int) -> str:
    """Return the name of the fact that says from when on a stream covers everything online."""
    return f"{STREAM_START}{workspace}/{view}/{generation}"


def _stream_starts(connection: Connection, workspace: str, chosen: Mapping[str, int]) -> dict[str, datetime]:
    found = select(facts).where(facts.c.name.startswith(f"{STREAM_START}{workspace}/", autoescape=True))
    values = {row.name: row.value for row in connection.execute(found)}
    names = {view: stream_fact(workspace, view, generation) for view, generation in chosen.items()}
    return {view: from_us(int(values[name])) for view, name in names.items() if name in values}


def _shown(records: Sequence[GenerationRecord], resolved: Resolution | None) -> int:
    """Return the generation that a snapshot is about: the written one, else the newest that is used, else the first."""
    if resolved is not None and resolved.write is not None:
        return resolved.write
    live = [record for record in records if record.state is not GenerationState.RETIRED]
    if resolved is None:
        live = [record for record in live if record.state is GenerationState.CURRENT] or live
    return live[-1].generation if live else 1


def _removed(view: str, records: Sequence[GenerationRecord], every: _Coverage) -> RemovedView:
    covered: dict[str, IntervalSet] = {}
    numbers = {record.generation for record in records}
    for (name, generation, store), spans in every.items():
        if name == view:
            numbers.add(generation)
            covered[store] = covered.get(store, IntervalSet()).union(spans)
    return RemovedView(view=view, generations=tuple(sorted(numbers)), covered=covered)
