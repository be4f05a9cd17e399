"""What holds for online stores on servers beside what holds for all: lost answers, other writers, passwords."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from featurekit_dagster.domain.online_stores import RedisConfig
from featurekit_dagster.errors import ConcurrentOnlineWrite, OnlineStoreRefused, OnlineStoreUnavailable
from featurekit_dagster.intervals import IntervalSet
from featurekit_dagster.stores import remote_patience
from featurekit_dagster.stores.redis_table import RedisTable, open_redis
from featurekit_dagster.stores.remote_environment import RemoteEnvironment, RemoteTransaction
from featurekit_dagster.stores.remote_table import ABSENT
from tests.conftest import ROOT
from tests.contract.test_online_store_streams import TILES as STREAMED
from tests.contract.test_online_store_streams import commit_of, stream
from tests.support.online_records import COVERED, HOUR_US, TILES, WILDCARD, Tiles, records, stored, tile_records, write
from tests.support.online_servers import valkey_store, valkey_url
from tests.support.stream_servers import Relay, free_port, valkey_server

CLUSTERED = ("--cluster-enabled", "yes", "--cluster-port")


def table_of(path: Path) -> RedisTable:
    return RedisTable(redis.Redis.from_url(valkey_url()), [str(path), "w", "v"], "test")


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2].partition("/")[0])


def config_of(port: int, token: str = "") -> RedisConfig:
    return RedisConfig(primary_endpoint=f"redis://127.0.0.1:{port}/0", authentication_token=token)


class TestTransactions:
    def test_a_commit_changes_nothing_if_one_record_was_changed_meanwhile(self, tmp_path: Path) -> None:
        table = table_of(tmp_path)
        assert not table.commit({b"a": ABSENT}, {b"a": b"1", b"b": b"1"})
        (version, _), _ = table.get([b"a", b"b"])
        assert not table.commit({b"a": version}, {b"a": b"2"})
        assert table.commit({b"a": version, b"b": table.get([b"b"])[0][0]}, {b"a": b"3", b"b": None}) == [b"a"]
        assert [value for _, value in table.get([b"a", b"b"])] == [b"2", b"1"]

    def test_a_version_never_comes_again_even_after_a_record_was_deleted(self, tmp_path: Path) -> None:
        table, seen = table_of(tmp_path), set()
        for _ in range(3):
            table.commit({}, {b"a": b"x"})
            seen.add(table.get([b"a"])[0][0])
            table.commit({}, {b"a": None})
        table.clear()
        table.commit({}, {b"a": b"x"})
        assert len(seen | {table.get([b"a"])[0][0]}) == 4

    def test_a_transaction_sees_its_own_changes_in_their_place(self, tmp_path: Path) -> None:
        environment = RemoteEnvironment(table_of(tmp_path), "test")
        environment.table.commit({}, {bytes([n]): b"old" for n in range(0, 200, 2)})

        def body(transaction: RemoteTransaction) -> list[bytes]:
            transaction.put(b"\x03", b"new")
            transaction.delete(b"\x04")
            transaction.put(b"\xc9", b"new")
            cursor = transaction.cursor()
            assert cursor.set_range(b"\x03")
            assert cursor.key() == b"\x03"
            assert cursor.item() == (b"\x03", b"new")
            assert cursor.delete()
            assert cursor.key() == b"\x06"
            return [key for key, _ in cursor]

        assert environment.transact(body) == [*(bytes([n]) for n in range(6, 200, 2)), b"\xc9"]
        assert environment.table.following(b"", None, 4) == [b"\x00", b"\x02", b"\x06", b"\x08"]

    def test_additions_of_many_writers_are_all_counted(self, tmp_path: Path) -> None:
        def add() -> None:
            environment = RemoteEnvironment(table_of(tmp_path), "test")

            def body(transaction: RemoteTransaction) -> None:
                transaction.put(b"n", str(int(transaction.get(b"n") or b"0") + 1).encode())

            for _ in range(25):
                environment.transact(body)

        with ThreadPoolExecutor() as pool:
            for done in [pool.submit(add) for _ in range(4)]:
                done.result()
        assert table_of(tmp_path).get([b"n"])[0][1] == b"100"

    def test_what_is_appended_must_not_be_there(self, tmp_path: Path) -> None:
        environment = RemoteEnvironment(table_of(tmp_path), "test")
        environment.table.commit({}, {b"a": b"1"})
        with pytest.raises(ConcurrentOnlineWrite):
            environment.transact(lambda transaction: transaction.cursor().putmulti([(b"a", b"2")], append=True))
        assert environment.table.get([b"a"])[0][1] == b"1"


class _Swallower:
    """A port that leads to a server, and once keeps the answer to a commit for itself."""

    def __init__(self, target: int) -> None:
        self.swallowed = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._target = target
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            inner, _ = self._listener.accept()
            threading.Thread(target=self._serve, args=(inner,), daemon=True).start()

    def _serve(self, inner: socket.socket) -> None:
        with closing(inner), closing(socket.create_connection(("127.0.0.1", self._target))) as outer:
            while request := inner.recv(1 << 20):
                outer.sendall(request)
                answer = outer.recv(1 << 20)
                if b"INCR" in request and not self.swallowed:
                    self.swallowed += 1
                    return
                inner.sendall(answer)


class TestConnections:
    def test_a_stream_commit_whose_answer_was_lost_counts_once(self, tmp_path: Path) -> None:
        swallower = _Swallower(port_of(valkey_url()))
        store = open_redis(config_of(swallower.port), within=str(tmp_path))
        stream(store, [("a", 0, 1, 1.0)])
        assert swallower.swallowed == 1
        stream(store, [("a", 0, 2, 2.0)])
        assert store.read(TILES, [("a",)]) == [[(0, 3, 3.0)]]

    def test_a_server_that_is_away_for_a_moment_is_waited_for(self, tmp_path: Path) -> None:
        relay = Relay(free_port())
        relay.connect(port_of(valkey_url()))
        store = open_redis(config_of(relay._port), within=str(tmp_path))
        write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
        relay.cut()
        threading.Timer(0.3, relay.connect, [port_of(valkey_url())]).start()
        assert store.read(TILES, [("a",)]) == [[(0, 1, 1.0)]]
        relay.cut()

    def test_a_server_that_stays_away_is_an_error_that_may_be_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(remote_patience, "_PATIENCE_SECONDS", 0.2)
        store = open_redis(config_of(port := free_port()), within=str(tmp_path))
        with pytest.raises(OnlineStoreUnavailable, match=f"127.0.0.1:{port} does not answer") as caught:
            store.coverage(TILES)
        assert caught.value.retryable

    def test_a_password_is_asked_for_and_never_told(self, tmp_path: Path) -> None:
        with valkey_server(tmp_path, appends=False, options=["--requirepass", "right"]) as url:
            for token in ("wrong", ""):
                with pytest.raises(OnlineStoreRefused) as caught:
                    open_redis(config_of(port_of(url), token)).coverage(TILES)
                assert "wrong" not in str(caught.value)
                assert not caught.value.retryable
            store = open_redis(config_of(port_of(url), "right"))
            write(store, TILES, tile_records(TILES, {(("a",), 0): (1, 1.0)}))
            assert store.read(TILES, [("a",)]) == [[(0, 1, 1.0)]]

    def test_a_server_is_spoken_to_over_tls_where_it_is_said_so(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = tls_in_front_of(port_of(valkey_url()), tmp_path)
        config = RedisConfig(primary_endpoint=f"127.0.0.1:{port}", authentication_token="")
        monkeypatch.setattr(remote_patience, "_PATIENCE_SECONDS", 0.2)
        with pytest.raises(OnlineStoreUnavailable):
            open_redis(config, within=str(tmp_path)).coverage(TILES)
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        assert open_redis(config, within=str(tmp_path)).coverage(TILES) == IntervalSet()


def tls_in_front_of(target: int, folder: Path) -> int:
    """Serve TLS on a port in front of a server's, with a certificate in the folder that nobody trusts yet."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "1", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(plain: socket.socket) -> None:
        try:
            inner = context.wrap_socket(plain, server_side=True)
            with closing(inner), closing(socket.create_connection(("127.0.0.1", target))) as outer:
                while request := inner.recv(1 << 16):
                    outer.sendall(request)
                    inner.sendall(outer.recv(1 << 16))
        except OSError:
            return

    def accept() -> None:
        while True:
            plain, _ = listener.accept()
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    return int(listener.getsockname()[1])


@pytest.mark.slow
def test_a_cluster_keeps_a_view_in_one_slot_and_does_all_that_a_single_server_does(tmp_path: Path) -> None:
    with valkey_server(tmp_path, appends=False, options=[*CLUSTERED, str(free_port())]) as url:
        node = redis.Redis.from_url(url)
        node.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        while node.cluster("INFO")["cluster_state"] != "ok":  # type: ignore[no-untyped-call]
            time.sleep(0.05)
        endpoint = f"redis://127.0.0.1:{port_of(url)}"
        store = open_redis(RedisConfig(primary_endpoint=endpoint, authentication_token="", cluster=True))
        tiles: Tiles = {((f"u{k}", k), hour): (hour,) for k in range(50) for hour in (0, 100)}
        write(store, WILDCARD, tile_records(WILDCARD, tiles))
        assert stored(store, WILDCARD, [(f"u{k}", k) for k in range(50)]) == tiles
        assert store.read_prefix(WILDCARD, ("u7",), 0, HOUR_US) == {("u7", 7): [(0, 0)]}
        stream(store, [("a", 0, 1, 1.0)], commit_of("1"))
        stream(store, [("a", 0, 2, 2.0)], commit_of("2"))
        assert store.read(TILES, [("a",)]) == [[(0, 3, 3.0)]]
        slots = {node.cluster("KEYSLOT", key) for key in node.keys("*wildcard*")}  # type: ignore[no-untyped-call]
        assert len(slots) == 1
        store.drop(WILDCARD.workspace, WILDCARD.view, None, epoch=1)
        assert not [key for key in node.keys("*wildcard*") if b"}:t:" not in key]  # marks of commits expire
        store.close()


def test_two_stores_that_fill_and_stream_at_once_lose_nothing(tmp_path: Path) -> None:
    """A batch job and two loops write the same keys; each tile of the batch and each event of the loops is there."""
    users = [f"u{k}" for k in range(20)]

    def load() -> None:
        store = valkey_store(tmp_path)
        for hour in range(10):
            rows = [(user, hour * HOUR_US, 1, 1.0) for user in users]
            store.write(STREAMED, records(STREAMED, rows), covered=COVERED, epoch=1)

    def follow(partition: str) -> Callable[[], None]:
        def loop() -> None:
            store = valkey_store(tmp_path)
            for number in range(5):
                rows = [(user, 20 * HOUR_US, 1, 0.5) for user in users]
                commit = commit_of(str(number), partition=partition)
                stream(store, rows, commit)

        return loop

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(each) for each in (load, follow("0"), follow("1"))]:
            done.result()
    found = valkey_store(tmp_path).read(STREAMED, [(user,) for user in users])
    assert found == [[*((hour * HOUR_US, 1, 1.0) for hour in range(10)), (20 * HOUR_US, 10, 5.0)]] * len(users)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(20 if os.environ.get("FEATUREKIT_SOAK") else 2))
def test_a_killed_writer_leaves_whole_keys_and_no_coverage_of_what_is_not_there(tmp_path: Path, kill: int) -> None:
    command = [sys.executable, "-m", "tests.support.online_writer", str(tmp_path), "300", "1000", valkey_url()]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(0.05 + 0.17 * (kill * 7 % 5))
        writer.kill()
    store = open_redis(config_of(port_of(valkey_url())), within=str(tmp_path))
    complete = store.coverage(TILES).intervals[0].end_us // HOUR_US
    rounds = [{row[1] for row in rows} for rows in store.read(TILES, [(f"user {key}",) for key in range(300)])]
    assert all(len(each) == 1 for each in rounds)
    assert {number for each in rounds for number in each} <= {complete, complete + 1}
    again = tile_records(TILES, {(("user 0",), 0): (complete + 2, 0.0)})
    store.write(TILES, again, covered=IntervalSet(), epoch=complete + 2)
    assert store.read(TILES, [("user 0",)], 0, HOUR_US) == [[(0, complete + 2, 0.0)]]
