"""What the launchpad says of the names that a configuration takes."""

from __future__ import annotations

import dagster as dg

from featurekit_dagster.orchestration.launchpad import some_of, with_names


def test_names_are_listed_in_order_and_of_very_many_the_first() -> None:
    assert (some_of([]), some_of(["b", "a"])) == ("none", "a, b")
    assert some_of(f"view_{number:02}" for number in range(23)).endswith("view_18, view_19 and 3 more")


def test_field_keeps_its_type_and_default_and_says_what_there_is() -> None:
    listed = with_names(dg.Field([str], default_value=[], description="Names; all by default."), ["b", "a"])
    assert listed.description == "Names; all by default. There are: a, b."
    assert (listed.default_provided, listed.default_value, listed.is_required) == (True, [], False)
    needed = with_names(dg.Field(str, is_required=False, description="A name."), [])
    assert (needed.default_provided, needed.is_required, needed.config_type) == (
        False,
        False,
        dg.Field(str).config_type,
    )
