"""What is refused about entities, feature services and the declarations of a workspace together."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from featurekit_dagster.domain.entity import Entity
from featurekit_dagster.domain.feature_service import FeatureService
from featurekit_dagster.domain.repo import Repository
from featurekit_dagster.domain.schema import Array, Field, Float32, Int64, Map, String
from featurekit_dagster.errors import DeclarationError, NotFoundError
from tests.unit.domain.declared import TRANSACTIONS, USER, aggregated, faults, file_source, plain

KEY_TYPES = "String, Int32, Int64, Bytes, Bool, Timestamp"


def test_the_error_of_an_entity_names_it() -> None:
    with pytest.raises(DeclarationError, match="entity 'user': 1 fault\n  - join_keys is empty; name the columns that"):
        Entity(name="user", join_keys=[])


def test_an_entity_has_join_keys() -> None:
    assert faults(Entity, name="user", join_keys=[]) == ("join_keys is empty; name the columns that identify one",)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (Field("k", Float32), "is Float32: floats are not compared exactly"),
        (Field("k", Array(String)), "is Array(String): it has no single comparable value"),
        (Field("k", Map(String, Int64)), "is Map(String, Int64): it has no single comparable value"),
    ],
)
def test_a_join_key_of_an_entity_can_be_compared(key: Field, why: str) -> None:
    assert faults(Entity, name="user", join_keys=[key]) == (f"join key 'k' {why}; use {KEY_TYPES}",)


def test_a_join_key_of_an_entity_is_given_once() -> None:
    assert faults(Entity, name="user", join_keys=["k", Field("k", String), "k"]) == (
        "join key 'k' is given twice; keep one",
    )


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"name": ""}, "name is empty; give a name"),
        ({"name": None}, "name is None; give text"),
        ({"join_keys": [5]}, "join key is an int; give a name or Field(name, type)"),
        ({"join_keys": 5}, "join key is an int; give a name or Field(name, type)"),
        ({"join_keys": [""]}, "name of a join key is empty; give a name"),
        ({"join_keys": [Field("k", str)]}, f"join key 'k' has type a type; use {KEY_TYPES}"),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_a_wrong_kind_in_an_entity_is_refused(arguments: dict[str, Any], fault: str) -> None:
    assert faults(Entity, **({"name": "user", "join_keys": ["k"]} | arguments)) == (fault,)


def test_an_entity_may_have_one_join_key_without_a_list() -> None:
    assert Entity(name="user", join_keys="user_id").key_names == ("user_id",)


def test_a_service_has_features() -> None:
    assert faults(FeatureService, name="fraud", features=[]) == ("features is empty; give at least one feature view",)


@pytest.mark.parametrize(
    ("given", "what"), [("spending", "'spending'"), (TRANSACTIONS, "a BatchSource"), (5, "an int")]
)
def test_a_service_is_made_of_views_and_references(given: Any, what: str) -> None:
    fault = f"{what} is given as a feature; give a feature view or a reference to one"
    assert faults(FeatureService, name="fraud", features=[given]) == (fault,)
    assert faults(FeatureService, name="fraud", features=given) == (fault,)


def test_a_service_names_features_that_the_view_has() -> None:
    view = plain()
    assert faults(FeatureService, name="fraud", features=[view[["spent"]]]) == (
        "spending has no feature 'spent'; it has amount",
    )
    assert faults(FeatureService, name="fraud", features=[view[["amount", "amount"]]]) == (
        "feature 'amount' of spending is selected 2 times; once is enough",
    )


@pytest.mark.parametrize("selected", [[], 5, [5]])
def test_features_are_selected_by_a_list_of_names(selected: Any) -> None:
    fault = 'features are selected by a list of their names, such as view[["a_feature"]]'
    assert faults(plain().__getitem__, selected) == (fault,)
    assert plain()["amount"].feature_names == ("amount",)


def test_a_service_maps_join_keys_that_the_view_has() -> None:
    reference = plain().with_join_key_map({"merchant_id": "shop"})
    assert faults(FeatureService, name="fraud", features=[reference]) == (
        "spending has no join key 'merchant_id' to map; it has user_id",
    )


def test_a_service_tells_two_uses_of_a_view_apart() -> None:
    view = plain()
    assert faults(FeatureService, name="fraud", features=[view, view.with_join_key_map({"user_id": "friend_id"})]) == (
        "'spending' is there 2 times; tell them apart with .with_name(...)",
    )
    friend = view.with_name("friend").with_join_key_map({"user_id": "friend_id"})
    assert FeatureService(name="fraud", features=[view, friend]).join_keys == ("user_id", "friend_id")


def test_all_faults_of_a_service_are_reported_at_once() -> None:
    with pytest.raises(DeclarationError) as refused:
        FeatureService(name="", features=[plain()[["x", "amount"]], aggregated(name="sums"), "view", plain()])  # type: ignore[list-item]
    assert str(refused.value) == (
        "feature service '': 4 faults\n"
        "  - name is empty; give a name\n"
        "  - 'view' is given as a feature; give a feature view or a reference to one\n"
        "  - spending has no feature 'x'; it has amount\n"
        "  - 'spending' is there 2 times; tell them apart with .with_name(...)"
    )


def test_a_workspace_gathers_views_with_what_they_use() -> None:
    view = plain()
    service = FeatureService(name="fraud", features=[view[["amount"]]])
    repo = Repository.gather([service])
    assert (repo.views, repo.services, repo.sources, repo.entities) == ((view,), (service,), (TRANSACTIONS,), (USER,))


def test_a_workspace_gathers_the_declarations_of_a_module() -> None:
    module = ModuleType("features")
    vars(module).update(spending=plain(), USER=USER, DAY=5)
    repo = Repository.gather(module)
    assert repo.view("spending") is vars(module)["spending"]
    assert Repository.gather([module]).views == repo.views
    assert Repository.gather(plain(name="alone")).view("alone").name == "alone"


def test_two_different_objects_of_one_kind_and_name_are_refused() -> None:
    other = plain(sources=[file_source(timestamp_field="seen_at")])
    with pytest.raises(DeclarationError) as refused:
        Repository.gather([plain(), other, FeatureService(name="spending", features=[other])])
    assert refused.value.subject == "workspace"
    assert refused.value.faults == (
        "two different objects are feature view 'spending'; rename one",
        "two different objects are source 'transactions'; rename one",
    )


@pytest.mark.parametrize(("given", "what"), [("features", "'features'"), (5, "an int"), ([plain], "a function")])
def test_a_workspace_is_made_of_declarations(given: Any, what: str) -> None:
    assert faults(Repository.gather, given) == (f"{what} is no declaration; give modules, feature views or services",)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    repo = Repository.gather([plain(), plain(name="other")])
    with pytest.raises(
        NotFoundError, match="no feature view named 'spendings'; there are other, spending; did you mean 'spending'"
    ):
        repo.view("spendings")
    with pytest.raises(NotFoundError, match="no feature service named 'fraud'; there is none"):
        repo.service("fraud")
