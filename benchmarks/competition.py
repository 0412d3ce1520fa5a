"""Other processes that want the cores at the same time."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["competition"]

_SPIN: Final = """
import os, sys
parent = os.getppid()
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(sys.argv[1])})
print("spinning", flush=True)
while os.getppid() == parent:
    for _ in range(1_000_000):
        pass
"""


@contextmanager
def competition() -> Iterator[list[int]]:
    """
    Keep each core busy by a process of its own, which ends with the block, or with this process.

    Yields
    ------
    list of int
        Identifiers of the processes.
    """
    spinning: list[subprocess.Popen[bytes]] = []
    try:
        for core in _cores():
            command = [sys.executable, "-c", _SPIN, str(core)]
            spinning.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        for process in spinning:
            if process.stdout is None or not process.stdout.readline():
                raise OSError("a competing process did not start")
        yield [process.pid for process in spinning]
    finally:
        for process in spinning:
            process.kill()
            process.communicate()


def _cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
