"""Deletion of keys of several columns, NULL among them, however they are ordered online; and beside rebuilds."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from featurekit_dagster import (
    Aggregation,
    BatchSource,
    Entity,
    FeatureService,
    Field,
    FileConfig,
    Float64,
    Int64,
    String,
    Timestamp,
    TimeWindow,
    Workspace,
    batch_feature_view,
)
from featurekit_dagster.errors import KeysRefused
from featurekit_dagster.execution.compaction import clean_up_view, compact_view
from featurekit_dagster.execution.delete_keys import KeyRemoval
from featurekit_dagster.execution.maintenance import maintain_view
from featurekit_dagster.execution.repair import repair_coverage
from featurekit_dagster.planning.generations import StoredShape
from featurekit_dagster.serving.consistency import check_consistency
from tests.support.clock import Clock
from tests.support.visits import DAY, HOUR, NOW, day, materialize, totals, visit, workspace_of, write_visits
from tests.support.visits import USER as BY_USER

pytestmark = pytest.mark.slow

USERS, SHOPS = ("a", "b", "", None), (1, -5, None)
LONG = "x" * 900
"""Longer than a stored key may be: its hash is stored."""

Key = tuple[str | None, int | None]


def shops(folder: Path, users: Iterable[str | None], index: list[str] | None) -> Workspace:
    """Return a workspace with a view of two join keys, and some visits of each pair of them."""
    rows = [(user, shop, day(1) + n * 9 * HOUR, float(n)) for user in users for shop in SHOPS for n in range(10)]
    columns = {"user": pl.String, "shop": pl.Int64, "ts": pl.Datetime("us", "UTC"), "v": pl.Float64}
    pl.DataFrame(rows, schema=columns, orient="row").write_parquet(folder / "events.parquet")
    config = FileConfig(uri=str(folder / "events.parquet"), file_format="parquet", timestamp_field="ts")
    keys = [Field("user", String), Field("shop", Int64)]

    @batch_feature_view(
        mode="polars",
        name="newest",
        sources=[BatchSource(name="events", batch_config=config)],
        entities=[Entity(name=key.name, join_keys=[key]) for key in keys],
        schema=[*keys, Field("ts", Timestamp), Field("v", Float64)],
        timestamp_field="ts",
        aggregation_interval=HOUR,
        aggregations=[Aggregation("v", "last", TimeWindow(3 * DAY), name="v")],
        batch_schedule=DAY,
        feature_start_time=day(1),
        online=True,
        offline=True,
        online_serving_index=index,
    )
    def newest(events: pl.DataFrame) -> pl.DataFrame:
        return events

    return Workspace("shops", [newest, FeatureService(name="all", features=[newest])], home=folder, clock=day(5))


def finish(workspace: Workspace, view: str, job_id: str) -> None:
    stores = workspace.stores
    job = stores.ledger.begin(job_id, run_id=None)
    stats = KeyRemoval(workspace.repo.view(view), stores, job, lambda: None).carry_out()
    stores.ledger.finish_chore(job_id, stats=stats)


def upkeep(workspace: Workspace, name: str) -> None:
    view, stores = workspace.repo.view(name), workspace.stores
    for keep in (compact_view, clean_up_view):
        keep(view, stores, holder="test", check=lambda: None, patience=timedelta(0))
    list(maintain_view(view, stores, trigger="test", retention=timedelta(0)))


@pytest.mark.parametrize(("index", "users"), [(None, (*USERS, LONG)), (["shop"], USERS)])
def test_just_the_named_pairs_are_gone_whatever_their_order(
    tmp_path: Path, index: list[str] | None, users: tuple[str | None, ...]
) -> None:
    workspace = shops(tmp_path, users, index)
    materialize(workspace, "newest", day(1), day(5))
    handle, keys = workspace.get_feature_view("newest"), [(user, shop) for user in users for shop in SHOPS]

    def answers() -> dict[Key, tuple[float | None, float | None]]:
        spine = {"user": [user for user, _ in keys], "shop": [shop for _, shop in keys], "at": [day(5)] * len(keys)}
        frame = pl.DataFrame(spine, schema_overrides={"shop": pl.Int64, "user": pl.String})
        offline = handle.get_features_for_events(frame).to_arrow()["newest__v"].to_pylist()
        online = [
            None if None in key else handle.get_online_features(dict(zip(("user", "shop"), key, strict=True))).to_dict()
            for key in keys
        ]
        return {k: (None if on is None else on["v"], off) for k, on, off in zip(keys, online, offline, strict=True)}

    before = answers()
    assert {(None in key, found) for key, found in before.items()} == {(True, (None, 9.0)), (False, (9.0, 9.0))}
    doomed: list[Key] = [("a", 1), (None, -5), ("b", None), (users[-1], 1)]
    gone = {**before, **dict.fromkeys(doomed, (None, None))}
    asked = pa.table({"shop": [shop for _, shop in doomed], "user": [user for user, _ in doomed]})
    (job_id,) = handle.delete_keys(asked)
    assert answers() == gone
    finish(workspace, "newest", job_id)
    materialize(workspace, "newest", day(1), day(5), overwrite=True)
    upkeep(workspace, "newest")
    assert answers() == gone
    assert check_consistency(handle.declaration, workspace.stores).is_consistent
    if index is not None:
        found = workspace.get_feature_service("all").get_online_features({"shop": 1}).to_dict()
        assert sorted(map(str, found["user"])) == ["", "b"]
    assert handle.allow_keys(asked) == len(doomed)
    materialize(workspace, "newest", day(1), day(5), overwrite=True)
    assert answers() == before


def doubled(visits: pl.DataFrame) -> pl.DataFrame:
    return visits.with_columns(visits=pl.col("visits") * 2)


def test_keys_that_are_deleted_while_a_view_is_rebuilt_are_in_neither_generation(tmp_path: Path) -> None:
    users = (1, 2, 3)
    source = write_visits(tmp_path, [visit(u, 1 + n / 4, 1.0, u or 7) for u in (*users, None) for n in range(40)])
    window: dict[str, Any] = {"aggregations": [Aggregation("visits", "sum", TimeWindow(3 * DAY), name="visits")]}
    old = workspace_of(tmp_path, [totals(source, **window)])
    materialize(old, "totals")
    upkeep(old, "totals")
    new = workspace_of(tmp_path, [totals(source, doubled, **window)])
    view, stores, handle = new.repo.view("totals"), new.stores, new.get_feature_view("totals")
    stores.ledger.rebuild("world", "totals", StoredShape.of(view))
    materialize(new, "totals", day(1), day(4))

    def answers() -> list[tuple[int | None, int | None]]:
        spine = pl.DataFrame({"user": [*users, None], "at": [NOW] * 4}, schema_overrides={"user": pl.Int64})
        offline = handle.get_features_for_events(spine).to_arrow()["totals__visits"].to_pylist()
        online = [handle.get_online_features({"user": user}).to_dict()["visits"] for user in users]
        return list(zip([*online, None], offline, strict=True))

    assert answers() == [(12, 12), (24, 24), (36, 36), (None, 84)]
    (job_id,) = handle.delete_keys(pa.table({"user": pa.array([1, None], pa.int64())}))
    left = [(None, None), (24, 24), (36, 36), (None, None)]
    assert answers() == left
    finish(new, "totals", job_id)
    upkeep(new, "totals")
    list(repair_coverage([view], stores))
    assert (stores.generation(view), answers()) == (1, left)
    materialize(new, "totals")
    doubled_left = [(None, None), (48, 48), (72, 72), (None, None)]
    assert (stores.generation(view), answers()) == (2, doubled_left)
    upkeep(new, "totals")
    (job_id,) = handle.delete_keys(pa.table({"user": [2]}), vacuum=True)
    finish(new, "totals", job_id)
    upkeep(new, "totals")
    assert answers() == [(None, None), (None, None), *doubled_left[2:]]
    assert check_consistency(view, stores).is_consistent


def test_keys_are_found_only_in_what_was_written_with_the_same_join_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(NOW)
    source = write_visits(tmp_path, [visit(u, 1 + n / 4, 1.0, u) for u in (1, 2) for n in range(40)])
    window: dict[str, Any] = {"aggregations": [Aggregation("visits", "sum", TimeWindow(3 * DAY), name="visits")]}
    materialize(workspace_of(tmp_path, [totals(source, **window)], clock), "totals")
    keys = [BY_USER, Entity(name="page", join_keys=[Field("page", String)])]
    new = workspace_of(tmp_path, [totals(source, entities=keys, **window)], clock)
    view, stores, handle = new.repo.view("totals"), new.stores, new.get_feature_view("totals")
    asked = pa.table({"user": [1], "page": ["home"]})
    with pytest.raises(KeysRefused, match="generation 1 is stored by the join keys user, .* delete by those"):
        handle.delete_keys(asked)
    stores.ledger.rebuild("world", "totals", StoredShape.of(view))
    materialize(new, "totals")
    before = [handle.get_online_features({"user": user, "page": "home"}).to_dict()["visits"] for user in (1, 2)]
    (job_id,) = handle.delete_keys(asked)
    assert "not looked for there; it is removed as a whole when the rebuild has" in capsys.readouterr().out
    finish(new, "totals", job_id)
    list(repair_coverage([view], stores))
    after = [handle.get_online_features({"user": user, "page": "home"}).to_dict()["visits"] for user in (1, 2)]
    assert (stores.generation(view), before, after) == (2, [12, 24], [None, 24])
    assert stores.offline.generations("totals") == (1, 2)
    clock.now = NOW + 30 * DAY
    list(maintain_view(view, stores, trigger="test"))
    assert stores.offline.generations("totals") == (2,)
