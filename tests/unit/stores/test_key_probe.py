"""Keys found by looking between known ones: only keys, each once, all of them reachable, at a bounded price."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.stores.key_probe import KeyProbe

EACH = b"\x00"


def probe_of(keys: list[bytes], seed: int) -> KeyProbe:
    def first_from(place: bytes) -> bytes | None:
        at = bisect_left(keys, place)
        return keys[at] if at < len(keys) else None

    return KeyProbe(first_from, lambda key: key + EACH, b"g", random.Random(seed))


def numbers(*values: int) -> list[bytes]:
    return sorted(b"g" + value.to_bytes(8, "big") for value in values)


def names(count: int) -> list[bytes]:
    return sorted(b"g\x01customer-of-the-shop-%06d\x00" % (number * 7919 % 1_000_003) for number in range(count))


WORLDS = {
    "counted up": numbers(*range(2_000)),
    "one far off": numbers(*range(2_000), 1 << 62),
    "anywhere": numbers(*random.Random(1).sample(range(1 << 62), 2_000)),
    "texts with much in common": names(2_000),
}


@given(
    keys=st.sets(st.binary(min_size=3, max_size=3), max_size=12),
    others=st.sets(st.sampled_from([b"", b"a", b"fz", b"h", b"h\x00", b"z"])),
    seed=st.integers(0, 9),
)
def test_only_keys_that_begin_as_asked_are_found_and_each_once(keys: set[bytes], others: set[bytes], seed: int) -> None:
    inside = {b"g" + key for key in keys}
    probe = probe_of(sorted(inside | others), seed)
    found = list(probe.keys(2_000))
    assert len(found) == len(set(found))
    assert set(found) <= inside
    assert len(found) >= min(len(inside), 3)  # of very few, all: chance has met each of them long before it gives up


@pytest.mark.parametrize("world", WORLDS)
def test_what_it_costs_depends_on_how_many_are_wanted(world: str) -> None:
    keys = WORLDS[world]
    for seed in range(2):
        probe = probe_of(keys, seed)
        found = list(islice(probe.keys(10_000), 100))
        assert len(set(found)) == 100
        assert set(found) <= set(keys)
        assert probe.looks <= 20 * 100


def test_no_more_places_are_looked_up_than_allowed() -> None:
    probe = probe_of(WORLDS["anywhere"], 1)
    found = list(probe.keys(50))
    assert 5 < len(found) <= 50
    assert probe.looks <= 50 + len(found[0])  # the last key is drawn to its end


@pytest.mark.parametrize("world", WORLDS)
def test_every_part_of_the_keys_is_found_about_as_often(world: str) -> None:
    keys = WORLDS[world]
    place = {key: at for at, key in enumerate(keys)}
    parts: Counter[int] = Counter()
    for seed in range(10):
        parts.update(place[key] * 10 // len(keys) for key in islice(probe_of(keys, seed).keys(10_000), 100))
    # 1,000 keys in ten parts: by pure chance there would be some 100 in each
    assert min(parts[part] for part in range(10)) >= 50


def test_every_key_is_found_by_some_seed() -> None:
    keys = numbers(*range(0, 500, 5), *range(1 << 40, (1 << 40) + 50), 1 << 62)
    found: set[bytes] = set()
    for seed in range(150):
        found.update(islice(probe_of(keys, seed).keys(1_000), 20))
    assert found == set(keys)


def test_the_same_seed_finds_the_same_keys() -> None:
    keys = WORLDS["anywhere"]
    chosen = [tuple(islice(probe_of(keys, seed).keys(1_000), 20)) for seed in (3, 3, 4)]
    assert chosen[0] == chosen[1] != chosen[2]
