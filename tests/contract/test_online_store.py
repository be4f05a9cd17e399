"""What every online store does, on real files; one parameter per implementation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurekit_dagster.domain.schema import Field, Float64, Int64, String
from featurekit_dagster.errors import (
    JoinKeyMismatch,
    KeyTooLong,
    LeaseLost,
    OnlineLayoutMismatch,
    OnlineRecordsMismatch,
    Unsupported,
)
from featurekit_dagster.intervals import Interval, IntervalSet, from_us
from featurekit_dagster.stores.lmdb import LmdbOnlineStore
from featurekit_dagster.stores.online import Key, OnlineLayout, OnlineStore, OnlineWrite
from tests.support.online_records import (
    COVERED,
    HOUR_US,
    ROWS,
    TILES,
    WILDCARD,
    Tiles,
    records,
    stored,
    tile_records,
    write,
)
from tests.support.online_servers import OPENERS


@pytest.fixture(params=OPENERS)
def open_store(request: pytest.FixtureRequest) -> Callable[[Path], OnlineStore]:
    return OPENERS[request.param]


@pytest.fixture
def store(open_store: Callable[[Path], OnlineStore], tmp_path: Path) -> Iterator[OnlineStore]:
    opened = open_store(tmp_path / "online")
    yield opened
    opened.close()


def hours(first: int, last: int) -> Interval:
    return Interval(from_us(first * HOUR_US), from_us(last * HOUR_US))


class TestCoverage:
    def test_nothing_is_covered_and_nothing_is_found_before_the_first_write(self, store: OnlineStore) -> None:
        assert store.coverage(TILES) == IntervalSet()
        assert store.read(TILES, [("a",), (None,)]) == [[], []]
        assert store.read_prefix(WILDCARD, ("a",)) == {}

    def test_a_read_of_the_embedded_store_makes_no_files(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path)
        store.coverage(TILES)
        store.drop(TILES.workspace, TILES.view, None, epoch=1)
        store.drop(TILES.workspace, TILES.view, 1, epoch=1)
        assert not list(tmp_path.iterdir())

    def test_the_marker_says_what_the_last_write_covered(self, store: OnlineStore) -> None:
        table = tile_records(TILES, {(("a",), 0): (1, 1.0)})
        store.write(TILES, table, covered=COVERED, epoch=1)
        more = COVERED.union([hours(-50, -10)])
        store.write(TILES, table, covered=more, epoch=7)
        assert store.coverage(TILES) == more
        with store.snapshot(TILES) as snapshot:
            assert snapshot.epoch == 7
            assert snapshot.coverage == more
            assert snapshot.coverage_us == tuple((i.start_us, i.end_us) for i in more)

    def test_a_writer_whose_lease_was_taken_over_changes_nothing(self, store: OnlineStore) -> None:
        tile = (("a",), 0)
        store.write(TILES, tile_records(TILES, {tile: (1, 1.0)}), covered=COVERED, epoch=3)
        store.write(TILES, tile_records(TILES, {tile: (2, 2.0)}), covered=COVERED, epoch=5)
        with pytest.raises(LeaseLost, match="epoch 3 is gone, the current epoch is 5"):
            store.write(TILES, tile_records(TILES, {tile: (9, 9.0)}), covered=IntervalSet(), epoch=3)
        assert store.read(TILES, [("a",)]) == [[(0, 2, 2.0)]]
        assert store.coverage(TILES) == COVERED

    def test_a_write_without_rows_still_covers(self, store: OnlineStore) -> None:
        assert write(store, TILES, tile_records(TILES, {})) == OnlineWrite(rows_written=0, rows_skipped=0)
        assert store.coverage(TILES) == COVERED

    def test_views_workspaces_and_generations_do_not_see_each_other(self, store: OnlineStore) -> None:
        layouts = [
            OnlineLayout(
                workspace=workspace,
                view=view,
                generation=generation,
                key_fields=TILES.key_fields,
                index_length=1,
                tile_us=HOUR_US,
                value_fields=TILES.value_fields,
            )
            for workspace in ("one", "..")
            for view in ("v", "v/../w")
            for generation in (2, 1)
        ]
        for number, layout in enumerate(layouts):
            write(store, layout, tile_records(layout, {(("a",), 0): (number, 0.0)}))
        assert [store.read(layout, [("a",)]) for layout in layouts] == [[[(0, n, 0.0)]] for n in range(len(layouts))]
        store.drop(layouts[0].workspace, layouts[0].view, layouts[0].generation, epoch=1)
        assert store.read(layouts[0], [("a",)]) == [[]]
        assert store.coverage(layouts[0]) == IntervalSet()
        assert store.read(layouts[1], [("a",)]) == [[(0, 1, 0.0)]]


class TestTiles:
    def test_a_read_is_bounded_by_tile_start_inclusive_and_exclusive(self, store: OnlineStore) -> None:
        tiles: Tiles = {(("a",), hour): (hour, hour / 2) for hour in range(-130, 131)}
        write(store, TILES, tile_records(TILES, tiles))
        (found,) = store.read(TILES, [("a",)], -70 * HOUR_US, 65 * HOUR_US)
        assert [row[0] // HOUR_US for row in found] == list(range(-70, 65))
        (found,) = store.read(TILES, [("a",)], 5 * HOUR_US + 1, 7 * HOUR_US + 1)
        assert [row[0] // HOUR_US for row in found] == [6, 7]

    def test_the_same_tile_written_again_replaces_it_and_others_stay(self, store: OnlineStore) -> None:
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0), (("a",), 1): (2, 2.0), (("b",), 0): (3, 3.0)}))
        write(store, TILES, tile_records(TILES, {(("a",), 1): (9, 9.0), (("a",), 200): (4, 4.0)}))
        assert stored(store, TILES, [("a",), ("b",)]) == {
            (("a",), 0): (1, 1.0),
            (("a",), 1): (9, 9.0),
            (("a",), 200): (4, 4.0),
            (("b",), 0): (3, 3.0),
        }

    def test_a_repeated_write_changes_nothing(self, store: OnlineStore) -> None:
        tiles: Tiles = {((f"u{k}",), hour): (k, hour / 3) for k in range(5) for hour in range(0, 100, 7)}
        write(store, TILES, tile_records(TILES, tiles))
        write(store, TILES, tile_records(TILES, tiles))
        assert stored(store, TILES, [(f"u{k}",) for k in range(5)]) == tiles

    def test_replacing_an_interval_forgets_its_other_tiles_of_the_given_keys_only(self, store: OnlineStore) -> None:
        tiles: Tiles = {((name,), hour): (hour, 0.0) for name in "ab" for hour in range(-5, 140)}
        write(store, TILES, tile_records(TILES, tiles))
        write(store, TILES, tile_records(TILES, {(("a",), 30): (99, 9.0)}), replace=hours(0, 128))
        expected = {at: row for at, row in tiles.items() if at[0] == ("b",) or not 0 <= at[1] < 128}
        assert stored(store, TILES, [("a",), ("b",)]) == expected | {(("a",), 30): (99, 9.0)}

    def test_of_rows_with_one_key_and_tile_the_later_in_the_table_wins(self, store: OnlineStore) -> None:
        rows = [("a", 0, 1, 1.0), ("b", 0, 5, 5.0), ("a", 0, 2, 2.0)]
        assert write(store, TILES, records(TILES, rows)) == OnlineWrite(rows_written=2, rows_skipped=1)
        assert store.read(TILES, [("a",)]) == [[(0, 2, 2.0)]]

    def test_null_is_a_key_and_null_values_are_not_nan(self, store: OnlineStore) -> None:
        write(store, TILES, tile_records(TILES, {((None,), 0): (1, None), ((None,), 1): (2, float("nan"))}))
        ((first, second),) = store.read(TILES, [(None,)])
        assert first == (0, 1, None)
        assert second[:2] == (HOUR_US, 2)
        assert second[2] != second[2]  # noqa: PLR0124 - NaN

    def test_a_view_without_records_of_a_key_answers_nothing(self, store: OnlineStore) -> None:
        write(store, TILES, tile_records(TILES, {(("ab",), 0): (1, 1.0)}))
        assert store.read(TILES, [("a",), ("abc",), ("ab\x00",), (None,)]) == [[], [], [], []]

    @pytest.mark.parametrize("length", [397, 398, 5_000])
    def test_a_key_of_any_length_is_kept_apart(self, store: OnlineStore, length: int) -> None:
        keys: list[Key] = [("x" * length,), ("x" * (length - 1) + "y",)]
        write(store, TILES, tile_records(TILES, {(keys[0], 0): (1, 1.0), (keys[1], 0): (2, 2.0)}))
        write(store, TILES, tile_records(TILES, {(keys[0], 1): (3, 3.0), (("short",), 1): (4, 4.0)}))
        write(store, TILES, tile_records(TILES, {(keys[1], 2): (5, 5.0)}), replace=hours(0, 5))
        write(store, TILES, tile_records(TILES, {(keys[1], 70): (6, 6.0), (keys[1], 2): (7, 7.0)}))
        assert stored(store, TILES, [*keys, ("short",)]) == {
            (keys[0], 0): (1, 1.0),
            (keys[0], 1): (3, 3.0),
            (keys[1], 2): (7, 7.0),
            (keys[1], 70): (6, 6.0),
            (("short",), 1): (4, 4.0),
        }


class TestRows:
    def test_only_the_newest_row_of_a_key_is_kept(self, store: OnlineStore) -> None:
        rows = [("a", 5, "new", 1.0), ("a", 3, "old", 2.0), ("b", 1, None, None)]
        assert write(store, ROWS, records(ROWS, rows)) == OnlineWrite(rows_written=2, rows_skipped=1)
        assert store.read(ROWS, [("a",), ("b",), ("c",)]) == [[(5, "new", 1.0)], [(1, None, None)], []]

    def test_an_older_row_does_not_replace_a_newer_one_and_an_equal_one_does(self, store: OnlineStore) -> None:
        write(store, ROWS, records(ROWS, [("a", 5, "stored", 1.0), ("b", 5, "stored", 1.0), ("c", 5, "stored", 1.0)]))
        rows = [("a", 4, "older", 0.0), ("b", 5, "equal", 0.0), ("c", 6, "newer", 0.0)]
        assert write(store, ROWS, records(ROWS, rows)) == OnlineWrite(rows_written=2, rows_skipped=1)
        assert [found[0][1] for found in store.read(ROWS, [("a",), ("b",), ("c",)])] == ["stored", "equal", "newer"]

    def test_times_before_1970_and_long_keys_are_rows_like_others(self, store: OnlineStore) -> None:
        key = "k" * 1_000
        write(store, ROWS, records(ROWS, [(key, -5, "x", 1.0)]))
        write(store, ROWS, records(ROWS, [(key, -4, "y", 1.0)]))
        assert store.read(ROWS, [(key,)]) == [[(-4, "y", 1.0)]]

    def test_rows_cannot_be_replaced_by_interval(self, store: OnlineStore) -> None:
        with pytest.raises(ValueError, match="rows are upserted"):
            write(store, ROWS, records(ROWS, [("a", 1, "x", 1.0)]), replace=hours(0, 1))


class TestWildcard:
    def test_a_prefix_gives_all_its_keys_in_order(self, store: OnlineStore) -> None:
        keys: list[Key] = [("a", -1), ("a", 2), ("a", None), ("ab", 1), ("a\x00", 1), (None, 1)]
        write(store, WILDCARD, tile_records(WILDCARD, {(key, hour): (hour,) for key in keys for hour in (0, 100)}))
        found = store.read_prefix(WILDCARD, ("a",), HOUR_US, 101 * HOUR_US)
        assert list(found.items()) == [(key, [(100 * HOUR_US, 100)]) for key in [("a", None), ("a", -1), ("a", 2)]]
        assert list(store.read_prefix(WILDCARD, (None,))) == [(None, 1)]
        assert store.read_prefix(WILDCARD, ("a",), 0, 0) == {}

    def test_a_long_key_is_refused_before_anything_is_written(self, store: OnlineStore) -> None:
        table = tile_records(WILDCARD, {(("a", 1), 0): (1,), (("s" * 400, 1), 0): (1,)})
        with pytest.raises(KeyTooLong):
            write(store, WILDCARD, table)
        assert store.read(WILDCARD, [("a", 1)]) == [[]]

    def test_a_view_without_a_shorter_index_is_not_read_by_prefix(self, store: OnlineStore) -> None:
        with pytest.raises(Unsupported, match="online_serving_index"):
            store.read_prefix(TILES, ())


class TestRefusals:
    def test_all_faults_of_the_records_are_told_at_once_without_values(self, store: OnlineStore) -> None:
        table = pa.table({"user": ["secret"], "_anchor_time": pa.array([1], pa.timestamp("us")), "sum_v": ["secret"]})
        with pytest.raises(OnlineRecordsMismatch) as caught:
            write(store, TILES, table)
        assert len(caught.value.faults) == 3
        for fault in ("count_v is missing", "sum_v is string", "1 values of _anchor_time are not on the grid"):
            assert fault in str(caught.value)
        assert "secret" not in str(caught.value)

    def test_a_null_time_is_refused(self, store: OnlineStore) -> None:
        table = pa.table(
            {
                "user": ["a"],
                "_anchor_time": pa.array([None], pa.timestamp("us", "UTC")),
                "count_v": [1],
                "sum_v": [1.0],
            }
        )
        with pytest.raises(OnlineRecordsMismatch, match="1 NULLs"):
            write(store, TILES, table)

    def test_a_key_of_another_type_is_refused(self, store: OnlineStore) -> None:
        with pytest.raises(JoinKeyMismatch, match="join key user got a int"):
            store.read(TILES, [(5,)])

    def test_another_layout_is_refused_for_writes_and_reads_until_it_is_cleared(self, store: OnlineStore) -> None:
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
        other = OnlineLayout(
            workspace=TILES.workspace,
            view=TILES.view,
            key_fields=TILES.key_fields,
            index_length=1,
            tile_us=HOUR_US,
            value_fields=(Field("count_v", Int64), Field("sum_v", Float64), Field("last_v", String)),
        )
        table = tile_records(other, {(("a",), 0): (1, 1.0, "x")})
        with pytest.raises(OnlineLayoutMismatch):
            write(store, other, table)
        with pytest.raises(OnlineLayoutMismatch):
            store.coverage(other)
        store.drop(other.workspace, other.view, other.generation, epoch=1)
        write(store, other, table)
        assert store.read(other, [("a",)]) == [[(0, 1, 1.0, "x")]]


class TestSnapshots:
    def test_a_snapshot_of_the_embedded_store_does_not_see_later_writes(self, tmp_path: Path) -> None:
        store = LmdbOnlineStore(tmp_path)
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
        with store.snapshot(TILES) as snapshot:
            later = tile_records(TILES, {(("a",), 0): (2, 2.0), (("b",), 0): (2, 2.0)})
            store.write(TILES, later, covered=IntervalSet(), epoch=2)
            assert snapshot.coverage == COVERED
            assert snapshot.read([("a",), ("b",)]) == [[(0, 1, 1.0)], []]
        assert store.coverage(TILES) == IntervalSet()
        store.close()

    def test_the_records_of_a_snapshot_are_at_least_as_new_as_its_coverage(self, store: OnlineStore) -> None:
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
        with store.snapshot(TILES) as snapshot:
            store.write(TILES, tile_records(TILES, {(("a",), 0): (2, 2.0)}), covered=IntervalSet(), epoch=2)
            assert snapshot.coverage == COVERED
            assert snapshot.read([("a",)]) in ([[(0, 1, 1.0)]], [[(0, 2, 2.0)]])

    def test_packed_tiles_of_one_of_many_and_of_a_prefix_agree(self, store: OnlineStore) -> None:
        keys: list[Key] = [("a", 1), ("a", 2), ("b", 1)]
        write(store, WILDCARD, tile_records(WILDCARD, {(key, hour): (hour,) for key in keys for hour in range(400)}))
        with store.snapshot(WILDCARD) as snapshot:
            for span in ((0, 64), (0, 65), (100, 110), (0, 400), (-500, 900)):
                bounds = (span[0] * HOUR_US, span[1] * HOUR_US)
                single = [snapshot.packed_tiles(key, *bounds) for key in [*keys, ("c", 1)]]
                assert single == snapshot.packed_tiles_many([*keys, ("c", 1)], *bounds)
                assert dict(zip(keys[:2], single, strict=False)) == snapshot.packed_tiles_prefix(("a",), *bounds)
                assert [chunk for chunk, _ in single[0]] == list(
                    range(max(span[0], 0) // 64, (min(span[1], 400) + 63) // 64)
                )

    def test_a_store_opens_again_after_it_was_closed(self, store: OnlineStore) -> None:
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
        store.close()
        assert store.read(TILES, [("a",)]) == [[(0, 1, 1.0)]]

    def test_two_stores_of_one_folder_share_it(
        self, store: OnlineStore, open_store: Callable[[Path], OnlineStore], tmp_path: Path
    ) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "online")
        other = open_store(tmp_path / "link")
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
        assert other.read(TILES, [("a",)]) == [[(0, 1, 1.0)]]
        other.close()
        assert store.read(TILES, [("a",)]) == [[(0, 1, 1.0)]]


@pytest.mark.parametrize("name", OPENERS)
@given(data=st.data())
def test_writes_add_up_as_in_a_dictionary(
    name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    opened = OPENERS[name](tmp_path_factory.mktemp("online"))
    keys: list[Key] = [(name,) for name in ("", "a", "a\x00", "b", None)]
    tile = st.tuples(st.sampled_from(keys), st.integers(-70, 70))
    cells = st.tuples(st.integers(0, 9), st.none() | st.floats(-1, 1))
    expected: Tiles = {}
    for _ in range(data.draw(st.integers(1, 4))):
        tiles = data.draw(st.lists(st.tuples(tile, cells), max_size=12))
        replace = data.draw(st.none() | st.tuples(st.integers(-80, 0), st.integers(1, 80)))
        rows = [(*key, number * HOUR_US, *values) for (key, number), values in tiles]
        write(opened, TILES, records(TILES, rows), None if replace is None else hours(*replace))
        if replace is not None:
            given_keys = {key for (key, _), _ in tiles}
            for key, number in list(expected):
                if key in given_keys and replace[0] <= number < replace[1]:
                    del expected[key, number]
        expected |= dict(tiles)
    assert stored(opened, TILES, keys) == expected
    opened.close()
