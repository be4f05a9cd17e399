"""Which source columns a view's columns come from, as far as it can be told without running the transformation.

A column that keeps the name it has in the source is taken for the same column; of any other nothing is said. Only files
and Delta tables are looked at, since their columns are known without a query.
"""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg

from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.sources import BatchSource, DeltaTableConfig, FileConfig
from featurekit_dagster.engine.duck import connect
from featurekit_dagster.engine.scan import register_inputs
from featurekit_dagster.errors import SourceError
from featurekit_dagster.intervals import Interval
from featurekit_dagster.orchestration.translator import source_key
from featurekit_dagster.sql_text import quoted


def column_lineage(view: FeatureView, interval: Interval, prefix: str | None = None) -> dg.TableColumnLineage | None:
    """Return the source columns of join keys, timestamp and features; None where nothing is known.

    Args:
        view: The feature view.
        interval: The range whose files are looked at.
        prefix: First part of the asset keys, if there is one.
    """
    columns = _source_columns(view, interval)
    deps: dict[str, list[dg.TableColumnDep]] = {}
    for name, origin in _origins(view):
        found = [dg.TableColumnDep(source_key(source, prefix), origin) for source, has in columns if origin in has]
        if found:
            deps[name] = found
    return dg.TableColumnLineage(deps) if deps else None


def _origins(view: FeatureView) -> Iterable[tuple[str, str]]:
    """Yield each column of a read and the column of the transformation's output that it is made of."""
    yield from ((name, name) for name in (*view.key_names, view.timestamp_field))
    yield from ((feature.name, feature.column.name) for feature in view.aggregates)
    yield from ((field.name, field.name) for field in view.attributes)


def _source_columns(view: FeatureView, interval: Interval) -> list[tuple[BatchSource, set[str]]]:
    kinds = (FileConfig, DeltaTableConfig)
    inputs = {name: used for name, used in view.inputs.items() if isinstance(used.source.batch_config, kinds)}
    with connect() as con:
        try:
            relations = register_inputs(con, inputs, interval)
        except SourceError:
            return []  # the job itself has the say about a source that cannot be read
        return [
            (used.source, set(con.sql(f"SELECT * FROM {quoted(relations[name])} LIMIT 0").columns))
            for name, used in inputs.items()
        ]
