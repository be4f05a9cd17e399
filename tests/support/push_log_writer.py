"""A process that appends to a push log from several threads and says after each append which records are logged.

Arguments: path of the log, name of the writer, appends per thread. A line per answer: `writer thread turn last`.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from featurekit_dagster.streams.push_log import PushLog

THREADS = 3


def _append(log: PushLog, writer: str, thread: int, turns: int) -> None:
    for turn in range(turns):
        last = log.append([f"{writer} {thread} {turn} {part}".encode() for part in range(1 + turn % 3)])
        os.write(1, f"{writer} {thread} {turn} {last}\n".encode())


if __name__ == "__main__":
    path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    shared = PushLog(path)
    with ThreadPoolExecutor(THREADS) as threads:
        for answer in [threads.submit(_append, shared, name, thread, count) for thread in range(THREADS)]:
            answer.result()
