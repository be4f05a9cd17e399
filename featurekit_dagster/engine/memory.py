"""How much memory and how many threads a read may use.

Neighbours: `buckets` cuts a roll-up to this size; `duck` gives DuckDB its share.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from featurekit_dagster.errors import InvalidMemoryBudget

MEMORY_VARIABLE = "FEATUREKIT_MEMORY"

_UNITS = {"": 1, "B": 1, **{f"{unit}{tail}": 1000**power if tail == "B" else 1024**power
          for power, unit in enumerate("KMGT", 1) for tail in ("B", "IB")}}  # fmt: skip
_GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a read may use.

    Args:
        budget_bytes: Memory for rows, working space and answers.
        threads: How many buckets are computed at a time.
    """

    budget_bytes: int
    threads: int

    @classmethod
    def of_machine(cls) -> Limits:
        """Return the memory that `memory_budget` says and one thread per usable core.

        Raises:
            InvalidMemoryBudget: `FEATUREKIT_MEMORY` is no size.
        """
        return cls(budget_bytes=memory_budget(), threads=len(os.sched_getaffinity(0)))


def memory_budget() -> int:
    """Return the bytes that a read may use: what FEATUREKIT_MEMORY says, else half of what the machine allows.

    Raises:
        InvalidMemoryBudget: `FEATUREKIT_MEMORY` is no size.
    """
    given = os.environ.get(MEMORY_VARIABLE)
    if not given:
        return _machine_bytes() // 2
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Z]*)\s*", given.upper())
    size = int(float(found[1]) * _UNITS.get(found[2], 0)) if found else 0
    if not size:
        raise InvalidMemoryBudget(variable=MEMORY_VARIABLE, given=given)
    return size


def _machine_bytes() -> int:
    """Return the memory of the machine, or of the control group the process is in where that is less."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in map(Path, _GROUP_LIMITS):
        if file.exists():
            text = file.read_text().strip()
            sizes += [int(text)] if text.isdigit() else []
    return min(sizes)
