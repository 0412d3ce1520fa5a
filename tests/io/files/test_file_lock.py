"""Locks between threads and processes: one at a time, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from medimg.io.files.file_lock import file_lock

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no such locks")


def test_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(20):
            with file_lock(tmp_path / "lock"):
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.0005)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 120
    assert not list(tmp_path.iterdir())


_HOLD = """
import pathlib, sys, time
from medimg.io.files.file_lock import file_lock
with file_lock(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", _HOLD, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        taken = threading.Event()

        def take() -> None:
            with file_lock(path):
                taken.set()

        thread = threading.Thread(target=take)
        thread.start()
        assert not taken.wait(0.1)
        process.kill()
        thread.join(30)
    assert taken.is_set()
    assert not path.exists()


def test_a_process_that_is_forked_meanwhile_does_not_hold_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    read, write = os.pipe()
    with file_lock(path):
        child = os.fork()
        if child == 0:
            os.close(write)
            os.read(read, 1)
            os._exit(0)
    path.touch()
    with file_lock(path):
        pass
    os.write(write, b"x")
    assert os.waitpid(child, 0)[1] == 0
    os.close(read)
    os.close(write)
