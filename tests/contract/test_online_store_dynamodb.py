"""What every online store does, asked of DynamoDB; in a file of its own, since its emulator takes its time."""

# ruff: noqa: F401, F811 - the imported tests are collected here again, with the store of this file

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from featurekit_dagster.domain.online_stores import DynamoConfig
from featurekit_dagster.errors import OnlineRecordTooLarge, OnlineStoreRefused, OnlineStoreUnavailable
from featurekit_dagster.stores import dynamodb_commits, remote_patience
from featurekit_dagster.stores.dynamodb_client import DynamoClient
from featurekit_dagster.stores.dynamodb_commits import GUARD, ItemChange, LargeCommit
from featurekit_dagster.stores.dynamodb_table import DynamoTable, open_dynamodb
from featurekit_dagster.stores.online import OnlineStore
from featurekit_dagster.stores.remote_table import ABSENT
from tests.contract.test_online_store import TestRows, TestTiles, TestWildcard
from tests.contract.test_online_store_streams import (
    test_a_batch_tile_replaces_a_streams_and_is_not_added_to,
    test_a_new_holder_keeps_what_is_stored_and_shuts_out_the_former_one,
    test_rows_of_a_tile_are_combined_with_each_other_and_with_what_is_stored,
    test_state_is_written_with_the_records_and_the_first_start_stays,
)
from tests.support.online_records import TILES, Tiles, stored, tile_records, write
from tests.support.online_servers import drop_dynamodb_tables, dynamodb_config, dynamodb_store

if os.environ.get("FEATUREKIT_SOAK"):
    from tests.contract.test_online_store import TestCoverage, TestRefusals, TestSnapshots
    from tests.contract.test_online_store_streams import (
        test_a_replacing_batch_write_keeps_a_streams_tiles_if_it_is_told_to,
        test_dead_letters_wait_until_they_are_taken_away_and_are_numbered_for_good,
        test_marks_are_remembered_until_they_are_forgotten_and_nobody_marks_twice,
        test_nobody_marks_events_of_a_time_of_which_marks_were_forgotten,
        test_of_rows_the_newest_wins_and_batch_beats_stream,
        test_rows_that_their_tile_cannot_hold_are_refused_alone,
    )
    from tests.contract.test_online_tombstones import (
        test_lifted_tombstones_stand_in_nobodys_way_any_more,
        test_no_write_brings_a_deleted_key_back,
        test_tombstones_hold_for_every_generation,
        test_what_is_before_the_cutoff_goes_and_the_tile_that_it_cuts_with_it,
        test_without_keys_every_stored_key_is_looked_at,
    )
    from tests.contract.test_online_upkeep import (
        test_a_generation_moves_to_its_other_slot_in_one_step,
        test_rows_before_a_time_go,
        test_tiles_before_a_time_go_and_the_rest_stays_as_it_was,
    )

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _few_tables() -> Iterator[None]:
    yield
    drop_dynamodb_tables()


@pytest.fixture
def open_store() -> Callable[[Path], OnlineStore]:
    return dynamodb_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[OnlineStore]:
    opened = dynamodb_store(tmp_path / "online")
    yield opened
    opened.close()


@pytest.fixture
def client() -> DynamoClient:
    return DynamoClient(dynamodb_config())


@pytest.fixture
def table(client: DynamoClient, tmp_path: Path) -> DynamoTable:
    return DynamoTable(client, [str(tmp_path), "w", "v"])


def keys_of(count: int) -> list[bytes]:
    return [b"\x00\x00k" + number.to_bytes(2, "big") for number in range(count)]


class TestLargeCommits:
    """More items than one transaction takes."""

    def test_all_of_it_changes_or_nothing(self, table: DynamoTable) -> None:
        keys = keys_of(120)
        assert not table.commit(dict.fromkeys(keys, ABSENT), dict.fromkeys(keys, b"1"))
        versions = dict(zip(keys, (version for version, _ in table.get(keys)), strict=True))
        table.commit({}, {keys[60]: b"2"})
        assert table.commit(versions, dict.fromkeys(keys, b"3")) == [keys[60]]
        assert [value for _, value in table.get(keys)] == [b"1"] * 60 + [b"2"] + [b"1"] * 59
        assert not table.commit({}, dict.fromkeys(keys[:110], None))
        assert table.following(b"", None, 200) == keys[110:]

    def test_one_that_was_left_behind_before_it_held_is_taken_back(
        self, client: DynamoClient, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dynamodb_commits, "_PATIENCE_SECONDS", 0.1)
        table.commit({}, {b"\x00\x00a": b"1"})
        LargeCommit(client, table._view)._hold(b"x" * 16)
        assert not table.commit({}, {b"\x00\x00a": b"2"})
        assert table.get([b"\x00\x00a"])[0][1] == b"2"

    def test_one_that_was_left_behind_when_it_held_is_finished(
        self, client: DynamoClient, table: DynamoTable, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(dynamodb_commits, "_PATIENCE_SECONDS", 0.1)
        keys = keys_of(3)
        table.commit({}, {keys[0]: b"1"})
        with monkeypatch.context() as dead:
            dead.setattr(LargeCommit, "_finish", lambda *_: None)
            changes = {key: ItemChange(key, {"r": b"2"}) for key in keys[:2]}
            assert not LargeCommit(client, table._view).commit({}, changes)
        assert [value for _, value in table.get(keys)] == [b"1", None, None]
        assert not table.commit({}, {keys[2]: b"3"})
        assert [value for _, value in table.get(keys)] == [b"2", b"2", b"3"]
        assert not client.get(table._view + GUARD, [b"guard"])

    def test_who_finishes_late_changes_nothing(self, client: DynamoClient, table: DynamoTable) -> None:
        (key,) = keys_of(1)
        table.commit({}, {key: b"1"})
        old = table.get([key])[0][0]
        table.commit({}, {key: b"2"})
        LargeCommit(client, table._view)._apply(b"late" * 4, [key, old, {"r": b"3"}, False])
        assert table.get([key])[0][1] == b"2"


def test_what_is_stored_of_one_key_has_a_limit_that_is_told(store: OnlineStore, tmp_path: Path) -> None:
    tiles: Tiles = {(("a",), hour): (1, 1.0) for hour in range(64 * 420)}
    with pytest.raises(OnlineRecordTooLarge, match="409,600 bytes of one join key"):
        write(store, TILES, tile_records(TILES, tiles))
    assert store.coverage(TILES).intervals == ()


def test_a_service_that_is_away_or_refuses_is_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_patience, "_PATIENCE_SECONDS", 0.1)
    away = open_dynamodb(DynamoConfig(region="us-east-1", endpoint_url="http://127.0.0.1:9"))
    with pytest.raises(OnlineStoreUnavailable):
        away.coverage(TILES)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(OnlineStoreRefused, match="NoCredentials"):
        open_dynamodb(dynamodb_config()).coverage(TILES)


class _Throttled(BaseHTTPRequestHandler):
    """Leads to the emulator, but throttles some calls and leaves half of what a batch asks for undone."""

    calls = 0
    target = ""

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        """Answer a call."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).calls += 1
        if type(self).calls in (2, 5):
            return self._answer(400, b'{"__type":"com.amazon.coral#ProvisionedThroughputExceededException"}')
        asked, left = json.loads(body), {}
        if self.headers["X-Amz-Target"].endswith("BatchGetItem"):
            for table, wanted in asked["RequestItems"].items():
                half = len(wanted["Keys"]) // 2
                if half:
                    left[table] = {**wanted, "Keys": wanted["Keys"][:half]}
                    wanted["Keys"] = wanted["Keys"][half:]
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
        try:
            with urlopen(Request(self.target, json.dumps(asked).encode(), kept)) as answer:  # noqa: S310
                found = json.loads(answer.read())
        except HTTPError as error:
            return self._answer(error.code, error.read())
        return self._answer(200, json.dumps({**found, "UnprocessedKeys": left} if left else found).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_a_throttled_service_is_asked_until_all_is_done() -> None:
    class Handler(_Throttled):
        target = dynamodb_config().endpoint_url or ""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        store = open_dynamodb(replace(dynamodb_config(), endpoint_url=url, table_prefix="throttled"))
        tiles: Tiles = {((f"u{number}",), 0): (number, 1.0) for number in range(20)}
        write(store, TILES, tile_records(TILES, tiles))
        assert stored(store, TILES, [(f"u{number}",) for number in range(20)]) == tiles
        server.shutdown()
    assert Handler.calls > 10
