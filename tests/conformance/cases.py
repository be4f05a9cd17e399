"""Reading conformance cases: a case's neutral declaration becomes our declarations, in a workspace of its own."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Bool,
    Bytes,
    Entity,
    FeatureService,
    FeatureTable,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float32,
    Float64,
    Int32,
    Int64,
    KafkaConfig,
    LifetimeWindow,
    StreamProcessingMode,
    StreamSource,
    String,
    Timestamp,
    TimeWindow,
    TimeWindowSeries,
    Workspace,
    aggregation_functions,
    batch_feature_view,
    stream_feature_view,
)

_HERE = Path(__file__).parent
_TYPES = {
    "float": Float64,
    "float32": Float32,
    "int": Int64,
    "int32": Int32,
    "str": String,
    "bool": Bool,
    "timestamp": Timestamp,
}
_ARROW_TYPES = {
    "string": String,
    "large_string": String,
    "int64": Int64,
    "int32": Int32,
    "double": Float64,
    "float": Float32,
    "bool": Bool,
    "binary": Bytes,
}
OUT_OF_SCOPE: dict[str, str] = json.loads((_HERE / "out_of_scope.json").read_text(encoding="utf-8"))
# Durations of a declaration that belong to its source.
_OF_THE_SOURCE = ("data_delay",)


def conformance_dir() -> Path:
    """The folder of cases: `FEATUREKIT_CONFORMANCE_DIR`, or the one beside the project, or the copy in the tests."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "conformance"
    given = os.environ.get("FEATUREKIT_CONFORMANCE_DIR")
    return Path(given or (beside if beside.is_dir() else _HERE / "reference")).resolve()


def as_time(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).replace(tzinfo=UTC)


def as_duration(given: Any) -> timedelta:
    """A duration as the cases write it: `{"seconds": 3600.0}`, or a bare number of seconds."""
    if isinstance(given, timedelta):
        return given
    return timedelta(seconds=given["seconds"] if isinstance(given, dict) else given)


@dataclass(frozen=True)
class Case:
    """One case: its folder and the content of its `case.json`."""

    folder: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content.get("case", self.folder.name))

    @property
    def declaration(self) -> dict[str, Any]:
        """The declaration, which has a name of its own."""
        return {"name": self.name} | self.content["declaration"]

    @property
    def declarations(self) -> list[dict[str, Any]]:
        """The declared views; a view with variants counts once for each."""
        views: list[dict[str, Any]] = self.declaration.get("views", [self.declaration])
        return [
            view | {"name": variant or view["name"], "variant": words}
            for view in views
            for variant, words in (view.get("variants") or {"": ""}).items()
        ]

    def needs(self) -> set[str]:
        """What the case needs that is out of scope, as keys of `out_of_scope.json`."""
        return {f"kind {view.get('kind', 'batch')}" for view in self.declarations} & set(OUT_OF_SCOPE)

    @property
    def timestamp_field(self) -> str:
        """Name of the time column of events and, mostly, of the spine."""
        return str(self.declarations[0].get("timestamp_field", "ts"))

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return list(pq.read_table(self.folder / "events.parquet").to_pylist())

    @cached_property
    def spine(self) -> pa.Table:
        return pq.read_table(self.folder / "spine.parquet")

    @property
    def spine_time(self) -> str:
        """The time column of the spine: the view's own, or the only one there is."""
        times = [f.name for f in self.spine.schema if pa.types.is_timestamp(f.type)]
        return self.timestamp_field if self.timestamp_field in times else times[0]


def load_cases(folder: Path) -> list[Case]:
    """Return every case of a folder."""
    return [Case(file.parent, json.loads(file.read_text("utf-8"))) for file in sorted(folder.glob("*/case.json"))]


def build_workspace(case: Case, home: Path) -> Workspace:
    """Return a workspace with the case's views, whose clock stands after everything that is asked for."""
    views = [build_view(case, declaration) for declaration in case.declarations]
    declared: list[Any] = list(views)
    if "service" in case.declaration:
        declared.append(build_service(case.declaration["service"], {v.name: v for v in views}))
    longest = max(v.batch_schedule + v.data_delay for v in views)
    return Workspace("conformance", declared, home=home, clock=_latest_time(case) + longest)


def _latest_time(case: Case) -> datetime:
    times = [as_time(q[k]) for q in case.content["queries"] for k in ("start_time", "end_time") if k in q]
    times += [as_time(view["feature_start_time"]) for view in case.declarations if view.get("feature_start_time")]
    if any(is_table(view) for view in case.declarations):  # which takes no rows of later
        times += [max(event[case.timestamp_field] for event in case.events).replace(tzinfo=UTC)]
    if (case.folder / "spine.parquet").exists():
        asked = case.spine[case.spine_time].to_pylist()
        times += [time.replace(tzinfo=UTC) for time in asked if time is not None]
    # an aligned end of a range still adds the tile that begins at it
    return max(times) + timedelta(days=2)


def build_view(case: Case, declaration: dict[str, Any]) -> FeatureView:
    """Return one declared view over the case's events."""
    timestamp = declaration.get("timestamp_field", "ts")
    config = FileConfig(
        uri=str(case.folder / "events.parquet"),
        file_format="parquet",
        timestamp_field=timestamp,
        data_delay=as_duration(declaration.get("data_delay", 0)),
    )
    columns = _columns(case, declaration)
    options: dict[str, Any] = {
        "name": declaration["name"],
        "mode": "pandas",
        "entities": [Entity(name="_".join(names), join_keys=names) for names in declaration["entities"]],
        "schema": [Field(n, t) for n, t in columns.items()],
        "aggregations": [_aggregation(a) for a in declaration.get("aggregates", ())] or None,
        "timestamp_field": timestamp,
        **_plain_options(declaration),
    }
    if is_table(declaration):
        names = ("name", "entities", "schema", "timestamp_field", "ttl")
        return FeatureTable(online=True, offline=True, **{name: options[name] for name in names if name in options})
    source_name = f"events_of_{declaration['name']}"
    if declaration.get("kind", "batch") == "stream":
        mode = stream_mode(declaration)
        if mode is not None:
            options["stream_processing_mode"] = StreamProcessingMode[mode]
        stream = KafkaConfig(kafka_bootstrap_servers="unused:9092", topics="events", timestamp_field=timestamp)
        source = StreamSource(name=source_name, stream_config=stream, batch_config=config)
        return stream_feature_view(source=source, **options)(_transformation(declaration, columns))
    batch = BatchSource(name=source_name, batch_config=config)
    if declaration["variant"]:
        return _custom_view(case, declaration, batch, options)
    options["online"] = options["offline"]
    return batch_feature_view(sources=[FilteredSource(batch)], **options)(_transformation(declaration, columns))


def is_table(declaration: dict[str, Any]) -> bool:
    """Tell whether a feature table is declared, whose rows are ingested."""
    return bool(declaration.get("kind") == "feature_table")


def rows_to_ingest(case: Case, declaration: dict[str, Any]) -> Any:
    """Return the rows of a feature table: the case's events, as its words change them."""
    events = pq.read_table(case.folder / "events.parquet").to_pandas()
    return _transformation(declaration, _columns(case, declaration))(events)


def _plain_options(declaration: dict[str, Any]) -> dict[str, Any]:
    """Return times, durations, flags and names that are declared under the same name here."""
    options: dict[str, Any] = {"offline": not declaration.get("incremental_backfills", False)}
    for name, value in declaration.items():
        if isinstance(value, dict) and "seconds" in value and name not in _OF_THE_SOURCE:
            options[name] = as_duration(value)
        elif name.endswith("_start_time") and value is not None:
            options[name] = as_time(value)
    lifetime = lifetime_start(declaration)
    if lifetime is not None:
        options["lifetime_start_time"] = lifetime
    for name in ("compaction_enabled", "incremental_backfills", "aggregation_secondary_key"):
        if declaration.get(name):
            options[name] = declaration[name]
    return options


def stream_mode(declaration: dict[str, Any]) -> str | None:
    """Return the processing mode that a stream view declares, None without a word of it."""
    mode = declaration.get("mode") or declaration.get("stream_processing_mode")
    return None if mode is None else str(mode).rpartition(".")[2].upper()


def lifetime_start(declaration: dict[str, Any]) -> datetime | None:
    """Return where lifetimes begin, whether the view says it or one of its windows."""
    said = [declaration.get("lifetime_start_time")]
    for given in declaration.get("aggregates", ()):
        if given["window"]["kind"] == "lifetime":
            said += [value for name, value in given["window"].items() if "start" in name]
    return next((as_time(text) for text in said if isinstance(text, str)), None)


def _columns(case: Case, declaration: dict[str, Any]) -> dict[str, Any]:
    """Return the columns of the transformation's output with their types."""
    schema = pq.read_schema(case.folder / "events.parquet")
    types = {f.name: _ARROW_TYPES.get(str(f.type), Timestamp) for f in schema}
    names = [name for entity in declaration["entities"] for name in entity]
    columns = {name: types[name] for name in names} | {declaration.get("timestamp_field", "ts"): Timestamp}
    if declaration.get("aggregation_secondary_key"):
        columns[declaration["aggregation_secondary_key"]] = types[declaration["aggregation_secondary_key"]]
    if declaration.get("aggregates"):
        columns |= {name: types[name] for name in declaration.get("source_columns_used", ()) if name in types}
    columns |= {a["column"]: _TYPES[a["dtype"]] for a in declaration.get("aggregates", ())}
    return columns | {a["name"]: _TYPES[a["dtype"]] for a in declaration.get("attributes", ())}


def _transformation(declaration: dict[str, Any], columns: dict[str, Any]) -> Callable[[Any], Any]:
    keys = [name for entity in declaration["entities"] for name in entity]
    kept = re.search(r"keep the (first|last)", declaration.get("transformation", ""))

    def transformation(events: Any) -> Any:
        frame = events[list(columns)]
        if kept is None:
            return frame
        return frame.drop_duplicates([*keys, declaration.get("timestamp_field", "ts")], keep=kept.group(1))

    return transformation


def _custom_view(case: Case, declaration: dict[str, Any], source: BatchSource, options: dict[str, Any]) -> FeatureView:
    """Return a view that counts distinct values over some days up to the interval's end, as its words say."""
    words, variant = declaration["transformation"], declaration["variant"]
    counted, *_ = re.findall(r"distinct (\w+)", words)
    number, unit = re.findall(r"over the (\d+) (day|hour)", words)[0]
    span = timedelta(**{f"{unit}s": int(number)})
    before = re.search(r"starts (\d+) (day|hour)s? before", variant)
    asked = source.unfiltered()
    if before is not None:
        asked = FilteredSource(source, start_time_offset=-timedelta(**{f"{before.group(2)}s": int(before.group(1))}))
    keys = [name for entity in declaration["entities"] for name in entity]
    timestamp = options["timestamp_field"]
    written = next(q["columns"] for q in case.content["queries"] if "columns" in q)
    (output,) = [name for name in written if name not in (*keys, timestamp, "interval_start")]

    def distinct(events: Any, context: Any) -> Any:
        inside = (events[timestamp] >= context.end_time - span) & (events[timestamp] < context.end_time)
        frame = events[inside].groupby(keys)[counted].nunique().rename(output).reset_index()
        frame[timestamp] = context.end_time - timedelta(microseconds=1)
        return frame

    options["schema"] = [*options["schema"], Field(output, Int64)]
    return batch_feature_view(sources=[asked], context_parameter_name="context", **options)(distinct)


def _aggregation(given: dict[str, Any]) -> Aggregation:
    function, args = given["function"], given.get("args")
    make = getattr(aggregation_functions, function, None)
    if make is not None and args is not None:
        function = make(**args) if isinstance(args, dict) else make(*args)
    return Aggregation(given["column"], function, _window(given["window"]), name=given.get("name"))


def _window(given: dict[str, Any]) -> TimeWindow | TimeWindowSeries | LifetimeWindow:
    if given["kind"] == "lifetime":
        return LifetimeWindow()
    size = timedelta(seconds=given["size_s"])
    if given["kind"] == "series":
        step = given.get("step_s")
        return TimeWindowSeries(
            series_start=timedelta(seconds=given["series_start_s"]),
            series_end=timedelta(seconds=given.get("series_end_s") or 0),
            step_size=None if step is None else timedelta(seconds=step),
            window_size=size,
        )
    return TimeWindow(size, timedelta(seconds=given.get("offset_s") or 0))


def build_service(given: dict[str, Any], views: dict[str, FeatureView]) -> FeatureService:
    """Return the service, whose features are written in words."""
    features: list[Any] = []
    for text in given["features"]:
        head, *rest = re.split(
            r", | (?=named )", re.sub(r"\[([^\]]*)\]", lambda m: m.group(0).replace(", ", ","), text)
        )
        name, _, selected = head.partition("[")
        reference: Any = views[name]
        if selected:
            reference = reference[[n.strip() for n in selected.rstrip("]").split(",")]]
        for word in rest:
            if word.startswith("named "):
                reference = reference.with_name(word.removeprefix("named "))
            elif " taken from spine column " in word:
                key, column = word.split(" taken from spine column ")
                reference = reference.with_join_key_map({key: column})
        features.append(reference)
    return FeatureService(name=given["name"], features=features)
