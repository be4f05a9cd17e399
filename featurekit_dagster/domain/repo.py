"""The declarations of one workspace, gathered and checked against each other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.domain.feature_view import FeatureView
from featurekit_dagster.domain.sources import BatchSource
from featurekit_dagster.domain.stream_sources import StreamSource
from featurekit_dagster.domain.wording import described
from featurekit_dagster.errors import DeclarationError, NotFoundError

_KINDS = {
    FeatureView: "feature view",
    FeatureService: "feature service",
    BatchSource: "source",
    StreamSource: "stream source",
    Entity: "entity",
}


@dataclass(frozen=True, slots=True)
class Repository:
    """Declared objects by kind, each in order of declaration; `sources` has the batch sides of stream sources too."""

    views: tuple[FeatureView, ...]
    services: tuple[FeatureService, ...]
    sources: tuple[BatchSource, ...]
    entities: tuple[Entity, ...]
    stream_sources: tuple[StreamSource, ...] = ()

    @classmethod
    def gather(cls, declarations: Iterable[Any] | ModuleType) -> Repository:
        """Return the declared objects of a list, a module, or a list of both, with the sources and entities they use.

        Raises:
            DeclarationError: Something else is in the list, or two different objects of one kind share a name.
        """
        faults: list[str] = []
        found: dict[int, Any] = {}
        for given in _several(declarations):
            if isinstance(given, ModuleType):
                found |= {id(value): value for value in vars(given).values() if isinstance(value, tuple(_KINDS))}
            elif isinstance(given, tuple(_KINDS)):
                found[id(given)] = given
            else:
                faults.append(f"{described(given)} is no declaration; give modules, feature views or services")
        for service in [value for value in found.values() if isinstance(value, FeatureService)]:
            found |= {id(reference.view): reference.view for reference in service.references}
        for view in [value for value in found.values() if isinstance(value, FeatureView)]:
            streams = [view.stream_source] if view.stream_source else []
            found |= {id(used): used for used in (*view.sources, *view.entities, *streams)}
        faults += _name_faults(found.values())
        if faults:
            raise DeclarationError(subject="workspace", faults=faults)
        return cls(
            views=tuple(v for v in found.values() if isinstance(v, FeatureView)),
            services=tuple(v for v in found.values() if isinstance(v, FeatureService)),
            sources=tuple(v for v in found.values() if isinstance(v, BatchSource)),
            entities=tuple(v for v in found.values() if isinstance(v, Entity)),
            stream_sources=tuple(v for v in found.values() if isinstance(v, StreamSource)),
        )

    def view(self, name: str) -> FeatureView:
        """Return a feature view by name.

        Raises:
            NotFoundError: There is none.
        """
        for view in self.views:
            if view.name == name:
                return view
        raise NotFoundError(kind="feature view", name=name, known=[v.name for v in self.views])

    def service(self, name: str) -> FeatureService:
        """Return a feature service by name.

        Raises:
            NotFoundError: There is none.
        """
        for service in self.services:
            if service.name == name:
                return service
        raise NotFoundError(kind="feature service", name=name, known=[s.name for s in self.services])

    def stream_source(self, name: str) -> StreamSource:
        """Return a stream source by name.

        Raises:
            NotFoundError: There is none.
        """
        for source in self.stream_sources:
            if source.name == name:
                return source
        raise NotFoundError(kind="stream source", name=name, known=[s.name for s in self.stream_sources])


def _several(declarations: Any) -> Iterable[Any]:
    is_list = isinstance(declarations, Iterable) and not isinstance(declarations, str)
    return declarations if is_list else [declarations]


def _name_faults(declared: Iterable[Any]) -> list[str]:
    seen: dict[tuple[str, str], Any] = {}
    faults = []
    for value in declared:
        kind = _KINDS[type(value)]
        if seen.setdefault((kind, value.name), value) != value:
            faults.append(f"two different objects are {kind} {value.name!r}; rename one")
    for kind, name in [place for place in seen if place[0] == "stream source"]:
        other = seen.get(("source", name))
        if other is not None and other != seen[kind, name].batch_source:
            faults.append(f"a source and a stream source are both {name!r}; rename one")
    return faults
