"""Who holds a job or a lease: a process of a host, written as text that can later be asked whether it still lives.

Only what is certain counts as dead: a process of another host or another process namespace is taken to be alive.
"""

from __future__ import annotations

import os
import platform
import subprocess
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_MULTICAST_BIT = 1 << 40
_STATE_FIELD, _START_FIELD = 0, 19  # of /proc/<pid>/stat, counted after the closing parenthesis of the name
_ENDED_STATES = ("Z", "X")
_HIDDEN = "hidden"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of one host, never the same as a later process with the same number.

    Args:
        host: Stable name of the host, `host_id()`.
        boot: Name of the host's current boot; empty where the system has none.
        namespace: Name of the process namespace (container); empty where the system has none.
        pid: Process number.
        started: When the process began, in the system's own notation.
    """

    host: str
    boot: str
    namespace: str
    pid: int
    started: str

    def __str__(self) -> str:
        return "|".join((self.host, self.boot, self.namespace, str(self.pid), self.started))

    @classmethod
    def parse(cls, text: str) -> ProcessIdentity:
        """Return the identity that `str()` wrote."""
        host, boot, namespace, pid, started = text.split("|")
        return cls(host=host, boot=boot, namespace=namespace, pid=int(pid), started=started)

    @property
    def is_dead(self) -> bool:
        """Whether the process has certainly ended, as seen from the process that asks."""
        own = current_process()
        if self.host != own.host:
            return False
        if self.boot != own.boot:
            return True
        if self.namespace != own.namespace:
            return False
        return _start_of(self.pid) not in (self.started, _HIDDEN)


def current_process() -> ProcessIdentity:
    """Return the identity of the process that asks."""
    return _identity_of(os.getpid())


@lru_cache(maxsize=1)
def host_id() -> str:
    """Return a name of this host that survives restarts: its machine id, else its network card, else its host name."""
    for file in _MACHINE_ID_FILES:
        if file.exists() and (machine := file.read_text().strip()):
            return machine
    card = uuid.getnode()
    # Without a card the number is random and has the multicast bit set.
    return platform.node() if card & _MULTICAST_BIT else f"{card:012x}"


@lru_cache(maxsize=2)
def _identity_of(pid: int) -> ProcessIdentity:
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    return ProcessIdentity(
        host=host_id(),
        boot=boot.read_text().strip() if boot.exists() else "",
        namespace=os.readlink(namespace) if namespace.is_symlink() else "",
        pid=pid,
        started=_start_of(pid) or "",
    )


def _start_of(pid: int) -> str | None:
    """Return when a process of this host began; None when there is none or it only waits for its parent to notice."""
    if not Path("/proc/self/stat").exists():
        shown = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return shown.stdout.strip() or None
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return _HIDDEN if _is_hidden(pid) else None
    fields = stat[stat.rindex(")") + 1 :].split()
    return None if fields[_STATE_FIELD] in _ENDED_STATES else fields[_START_FIELD]


def _is_hidden(pid: int) -> bool:
    """Tell whether a process that /proc does not show exists all the same, under another user."""
    try:
        os.kill(pid, 0)  # signal 0 only asks
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False
