"""Reading conformance cases: a case's neutral declaration becomes our declarations, its queries become calls."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Bool,
    Bytes,
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileConfig,
    FilteredSource,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)

_HERE = Path(__file__).parent
_TYPES = {"float": Float64, "int": Int64, "int32": Int32, "str": String, "bool": Bool, "timestamp": Timestamp}
_ARROW_TYPES = {
    "string": String,
    "int64": Int64,
    "int32": Int32,
    "double": Float64,
    "float": Float32,
    "bool": Bool,
    "binary": Bytes,
    "timestamp[us]": Timestamp,
}
OUT_OF_SCOPE: dict[str, str] = json.loads((_HERE / "out_of_scope.json").read_text(encoding="utf-8"))


def conformance_dir() -> Path:
    """Return the folder of cases: the one named by the environment, else `../shared/conformance`, else our own copy."""
    given, beside = os.environ.get("FEATUREKIT_CONFORMANCE_DIR"), _HERE.parents[1] / ".." / "shared" / "conformance"
    return Path(given or (beside if beside.is_dir() else _HERE / "reference")).resolve()


@dataclass(frozen=True)
class Case:
    """One case: its folder and the content of its `case.json`."""

    folder: Path
    content: dict[str, Any]

    @property
    def name(self) -> str:
        return str(self.content["case"])

    @property
    def declarations(self) -> list[dict[str, Any]]:
        """The declared views."""
        declaration = self.content["declaration"]
        views: list[dict[str, Any]] = declaration.get("views", [declaration])
        return views

    def needs(self) -> set[str]:
        """What the case needs that may be out of scope, as keys of `out_of_scope.json`."""
        found = set()
        for view in self.declarations:
            found |= {f"option {name}" for name in view if f"option {name}" in OUT_OF_SCOPE and view[name]}
            found |= {f"kind {view['kind']}"} if view.get("kind", "batch") != "batch" else set()
            for aggregate in view.get("aggregates", ()):
                found.add(f"function {aggregate['function']}" + (" with args" if aggregate.get("args") else ""))
                found.add(f"window {aggregate['window']['kind']}")
        return {need for need in found if need in OUT_OF_SCOPE}

    @property
    def timestamp_field(self) -> str:
        """Name of the time column of events and spine."""
        return str(self.declarations[0].get("timestamp_field", "ts"))

    def time(self, text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)


def load_cases() -> list[Case]:
    """Return every case of the folder."""
    files = sorted(conformance_dir().glob("*/case.json"))
    return [Case(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in files]


def build_workspace(case: Case, home: Path) -> Workspace:
    """Return a workspace with the case's views, whose clock stands after everything that is asked for."""
    views = [build_view(case, declaration) for declaration in case.declarations]
    declared: list[Any] = list(views)
    if "service" in case.content["declaration"]:
        declared.append(build_service(case.content["declaration"]["service"], {v.name: v for v in views}))
    longest = max(v.batch_schedule + v.data_delay for v in views)
    return Workspace("conformance", declared, home=home, clock=_latest_time(case) + longest)


def _latest_time(case: Case) -> datetime:
    times = [case.time(q[k]) for q in case.content["queries"] for k in ("start_time", "end_time") if k in q]
    spine = case.folder / "spine.parquet"
    if spine.exists():
        asked = pq.read_table(spine)[case.timestamp_field].to_pylist()
        times.append(max(time for time in asked if time is not None).replace(tzinfo=UTC))
    # an aligned end of a range still adds the tile that begins at it
    return max(times) + timedelta(days=2)


def build_view(case: Case, declaration: dict[str, Any]) -> FeatureView:
    """Return one declared view over the case's events."""
    seconds = {
        n: timedelta(seconds=v["seconds"]) for n, v in declaration.items() if isinstance(v, dict) and "seconds" in v
    }
    timestamp = declaration.get("timestamp_field", "ts")
    source = BatchSource(
        name=f"events_of_{declaration['name']}",
        batch_config=FileConfig(
            uri=str(case.folder / "events.parquet"),
            file_format="parquet",
            timestamp_field=timestamp,
            data_delay=seconds.get("data_delay", timedelta(0)),
        ),
    )
    types = {f.name: f.dtype for f in _event_fields(case)}
    keys = [name for entity in declaration["entities"] for name in entity]
    columns = {name: types[name] for name in keys} | {timestamp: Timestamp}
    columns |= {a["column"]: _TYPES[a["dtype"]] for a in declaration.get("aggregates", ())}
    columns |= {a["name"]: _TYPES[a["dtype"]] for a in declaration.get("attributes", ())}
    first_of_equal = "keep the first" in declaration.get("transformation", "")

    def transformation(events: Any) -> Any:
        frame = events[list(columns)]
        return frame.drop_duplicates([*keys, timestamp], keep="first") if first_of_equal else frame

    return batch_feature_view(
        name=declaration["name"],
        mode="pandas",
        sources=[FilteredSource(source)],
        entities=[Entity(name="_".join(names), join_keys=names) for names in declaration["entities"]],
        schema=[Field(n, t) for n, t in columns.items()],
        aggregations=[_aggregation(a) for a in declaration.get("aggregates", ())] or None,
        timestamp_field=timestamp,
        feature_start_time=case.time(declaration["feature_start_time"]),
        online=True,
        offline=not declaration.get("incremental_backfills", False),
        incremental_backfills=declaration.get("incremental_backfills", False),
        **{n: v for n, v in seconds.items() if n != "data_delay"},
    )(transformation)


def _event_fields(case: Case) -> list[Field]:
    schema = pq.read_schema(case.folder / "events.parquet")
    return [Field(f.name, _ARROW_TYPES[str(f.type)]) for f in schema if str(f.type) in _ARROW_TYPES]


def _aggregation(given: dict[str, Any]) -> Aggregation:
    window = given["window"]
    size, offset = timedelta(seconds=window["size_s"]), timedelta(seconds=window.get("offset_s", 0))
    return Aggregation(given["column"], given["function"], TimeWindow(size, offset), name=given.get("name"))


def build_service(given: dict[str, Any], views: dict[str, FeatureView]) -> FeatureService:
    """Return the service, whose features are written in words."""
    features: list[Any] = []
    for text in given["features"]:
        head, *rest = text.replace(" named ", ", named ").split(", ")
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
