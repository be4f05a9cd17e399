"""Which keys an online store has: with tiles in an interval, as an overwrite asks it, and samples of all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurekit_dagster.intervals import Interval, from_us
from featurekit_dagster.stores import record_keys
from featurekit_dagster.stores.online import Key, OnlineStore
from tests.support.online_records import HOUR_US, ROWS, TILES, WILDCARD, Tiles, records, tile_records, write
from tests.support.online_servers import OPENERS

OTHERS = replace(TILES, generation=TILES.generation + 1)
NAMES = ("a", "b", "a" * 399, "a" * 500, "b" * 1000, "with \0 inside", "", None)


@pytest.fixture(params=OPENERS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OnlineStore]:
    opened = OPENERS[request.param](tmp_path / "online")
    yield opened
    opened.close()


def hours(first: int, end: int) -> Interval:
    return Interval(from_us(first * HOUR_US), from_us(end * HOUR_US))


def test_nothing_is_there_before_the_first_write(store: OnlineStore) -> None:
    assert store.keys_besides(TILES, tile_records(TILES, {}), hours(0, 5)) == []


def test_keys_of_a_wildcard_view_are_whole_keys(store: OnlineStore) -> None:
    tiles: Tiles = {(("a", 1), 3): (1,), (("a", 2), 3): (1,), (("b", 1), 70): (1,), (("c", None), 3): (1,)}
    write(store, WILDCARD, tile_records(WILDCARD, tiles))
    known = tile_records(WILDCARD, {(("a", 2), 9): (1,)})
    assert set(store.keys_besides(WILDCARD, known, hours(0, 10))) == {("a", 1), ("c", None)}


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    st.dictionaries(st.tuples(st.sampled_from(NAMES), st.integers(-200, 200)), st.integers(1, 9), max_size=25),
    st.sets(st.sampled_from(NAMES)),
    st.integers(-210, 200),
    st.integers(1, 90),
)
def test_exactly_the_other_keys_with_a_tile_in_the_interval_are_found(
    store: OnlineStore, tiles: dict[tuple[str | None, int], int], known: set[str | None], first: int, count: int
) -> None:
    store.drop(TILES.workspace, TILES.view, None, epoch=1)
    stored: Tiles = {((name,), number): (value, 1.0) for (name, number), value in tiles.items()}
    write(store, TILES, tile_records(TILES, stored))
    given_keys = tile_records(TILES, {((name,), 0): (1, 1.0) for name in known})
    found: list[Key] = store.keys_besides(TILES, given_keys, hours(first, first + count))
    wanted = {(name,) for name, number in tiles if first <= number < first + count and name not in known}
    assert set(found) == wanted
    assert len(found) == len(wanted)


def test_a_sample_of_nothing_is_empty(store: OnlineStore) -> None:
    assert store.sample_keys(TILES, 5, seed=1) == []
    assert store.sample_keys(ROWS, 5, seed=1) == []


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(st.sets(st.tuples(st.sampled_from(NAMES), st.integers(-70, 70)), max_size=25), st.integers(0, 12))
def test_a_sample_is_the_head_of_a_larger_one_and_of_keys_with_a_tile_in_the_interval(
    store: OnlineStore, tiles: set[tuple[str | None, int]], count: int
) -> None:
    store.drop(TILES.workspace, TILES.view, None, epoch=1)
    write(store, TILES, tile_records(TILES, {((name,), number): (1, 1.0) for name, number in tiles}))
    everything = store.sample_keys(TILES, 100, seed=7)
    assert set(everything) == {(name,) for name, _ in tiles}
    assert len(everything) == len(set(everything))
    assert store.sample_keys(TILES, count, seed=7) == everything[:count]
    late = store.sample_keys(TILES, 100, seed=7, interval=hours(0, 71))
    assert set(late) == {(name,) for name, number in tiles if number >= 0}
    assert late == [key for key in everything if key in late]


def test_rows_and_wildcard_keys_are_sampled_too_and_a_seed_makes_another_choice(store: OnlineStore) -> None:
    write(store, WILDCARD, tile_records(WILDCARD, {((f"k{n}", n), 3): (1,) for n in range(40)}))
    write(store, ROWS, records(ROWS, [(f"r{n}", 0, "plan", 1.0) for n in range(40)]))
    assert set(store.sample_keys(WILDCARD, 99, seed=1)) == {(f"k{n}", n) for n in range(40)}
    chosen = [store.sample_keys(ROWS, 10, seed) for seed in range(4)]
    assert len({tuple(keys) for keys in chosen}) == 4
    assert all(len(set(keys)) == 10 for keys in chosen)


class TestOfManyRecords:
    """A generation of more records than a sample looks at; its users have tiles of up to three chunks."""

    COUNT = 120

    @pytest.fixture
    def stored(self, store: OnlineStore, monkeypatch: pytest.MonkeyPatch) -> OnlineStore:
        monkeypatch.setattr(record_keys, "FEW_RECORDS", 50)
        long = "of a shop with a very long name " * 15
        tiles = {((f"user {n} {long if n % 10 == 0 else ''}",), 64 * (n % 3)): (1, 1.0) for n in range(self.COUNT)}
        tiles |= {((f"user {n} ",), 200): (1, 1.0) for n in range(self.COUNT) if n % 10}
        write(store, TILES, tile_records(TILES, tiles))
        write(store, OTHERS, tile_records(OTHERS, {((f"user {n}",), 0): (1, 1.0) for n in range(self.COUNT)}))
        self.users = {key for key, _ in tiles}
        return store

    def test_a_sample_has_distinct_keys_and_is_the_same_again(self, stored: OnlineStore) -> None:
        chosen = stored.sample_keys(TILES, 10, seed=1)
        assert len(set(chosen)) == 10
        assert set(chosen) <= self.users
        assert stored.sample_keys(TILES, 10, seed=1) == chosen != stored.sample_keys(TILES, 10, seed=2)

    def test_hashed_keys_and_others_are_chosen(self, stored: OnlineStore) -> None:
        found = {name for seed in range(4) for (name,) in stored.sample_keys(TILES, 20, seed) if isinstance(name, str)}
        assert len(found) > 40
        assert {len(name) > 400 for name in found} == {True, False}

    def test_only_keys_with_a_tile_in_the_interval_are_chosen(self, stored: OnlineStore) -> None:
        found = stored.sample_keys(TILES, 20, seed=3, interval=hours(200, 201))
        assert len(found) == 20
        assert {name.endswith(" ") for (name,) in found if isinstance(name, str)} == {True}

    def test_few_keys_of_many_records_are_all_found(self, stored: OnlineStore) -> None:
        lonely = {(("one",), 64 * n): (1, 1.0) for n in range(60)} | {(("other",), 64 * n): (1, 1.0) for n in range(60)}
        stored.drop(TILES.workspace, TILES.view, None, epoch=1)
        write(stored, TILES, tile_records(TILES, lonely))
        assert set(stored.sample_keys(TILES, 5, seed=1)) == {("one",), ("other",)}
