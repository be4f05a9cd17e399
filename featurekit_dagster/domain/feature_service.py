"""Feature services: the features that one model reads together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from featurekit_dagster.domain.feature_view import FeatureReference, FeatureView
from featurekit_dagster.domain.wording import described, text_fault
from featurekit_dagster.errors import DeclarationError


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureService:
    """Features of several views, read in one call.

    Args:
        name: Unique in the workspace.
        features: Views, `view[["feature"]]`, `.with_name(namespace)` or `.with_join_key_map({view key: spine column})`.
        online_serving_enabled: Whether online reads are allowed; such a read needs every view to be online.
        description: What the service is for.
        owner: Who maintains it.
        tags: Key-value pairs for people.

    Raises:
        DeclarationError: One or more rules are broken; all of them are listed.
    """

    name: str
    features: Sequence[FeatureView | FeatureReference]
    online_serving_enabled: bool = True
    description: str | None = None
    owner: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        features = list(self.features) if isinstance(self.features, list | tuple) else [self.features]
        faults = [fault for fault in [text_fault("name", self.name)] if fault]
        references: list[FeatureReference] = []
        for given in features:
            if isinstance(given, FeatureView):
                references.append(FeatureReference(view=given))
            elif isinstance(given, FeatureReference):
                references.append(given)
            else:
                faults.append(f"{described(given)} is given as a feature; give a feature view or a reference to one")
        if not features:
            faults.append("features is empty; give at least one feature view")
        for reference in references:
            faults += _reference_faults(reference)
        labels = [reference.label for reference in references]
        for label in dict.fromkeys(labels):
            if labels.count(label) > 1:
                faults.append(f"{label!r} is there {labels.count(label)} times; tell them apart with .with_name(...)")
        if faults:
            raise DeclarationError(subject=f"feature service {self.name!r}", faults=faults)
        object.__setattr__(self, "features", tuple(references))

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def references(self) -> tuple[FeatureReference, ...]:
        """The features as references, in order."""
        return tuple(f for f in self.features if isinstance(f, FeatureReference))

    @property
    def join_keys(self) -> tuple[str, ...]:
        """Every column that a read has to give, each once, in order of first use."""
        return tuple(dict.fromkeys(key for reference in self.references for key in reference.spine_keys))


def _reference_faults(reference: FeatureReference) -> list[str]:
    view = reference.view
    faults = [
        f"{view.name} has no feature {name!r}; it has {', '.join(view.feature_names)}"
        for name in reference.selected
        if name not in view.feature_names
    ]
    faults += [
        f"feature {name!r} of {view.name} is selected {reference.selected.count(name)} times; once is enough"
        for name in dict.fromkeys(reference.selected)
        if reference.selected.count(name) > 1
    ]
    faults += [
        f"{view.name} has no join key {name!r} to map; it has {', '.join(view.key_names)}"
        for name in reference.join_key_map
        if name not in view.key_names
    ]
    return faults
