"""Work on several threads ends as work on one does."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from medimg.core.parallel import parallel_for

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.parametrize("workers", [1, 2, 5, 100])
def test_each_task_is_done_once(workers: int) -> None:
    done: list[int] = []

    def do(task: int) -> bool:
        done.append(task)
        return True

    parallel_for(range(97), do, workers=workers)
    assert sorted(done) == list(range(97))


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_first_error_is_raised_and_the_rest_stops(workers: int) -> None:
    done: list[int] = []

    def do(task: int) -> bool:
        if task in (13, 14, 60):
            if task == 13:
                time.sleep(0.01)
            raise ValueError(str(task))
        time.sleep(0.0005)
        done.append(task)
        return True

    with pytest.raises(ValueError, match=r"^13$"):
        parallel_for(range(1000), do, workers=workers)
    assert set(range(13)) <= set(done)
    assert len(done) < 500


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("fails", [False, True])
def test_tasks_are_done_within_a_context_of_each_thread(workers: int, *, fails: bool) -> None:
    inside: set[int] = set()
    entered: list[int] = []
    done: list[bool] = []

    @contextmanager
    def within() -> Iterator[None]:
        thread = threading.get_ident()
        entered.append(thread)
        inside.add(thread)
        try:
            yield
        finally:
            inside.discard(thread)

    def do(task: int) -> bool:
        done.append(threading.get_ident() in inside)
        if fails and task == 30:
            raise ValueError
        return True

    if fails:
        with pytest.raises(ValueError, match=r"^$"):
            parallel_for(range(50), do, workers=workers, within=within)
    else:
        parallel_for(range(50), do, workers=workers, within=within)
    assert all(done)
    assert not inside
    assert 1 <= len(entered) <= workers


def test_one_that_says_stop_stops_all() -> None:
    done: list[int] = []

    def do(task: int) -> bool:
        done.append(task)
        time.sleep(0.0005)
        return task != 20

    parallel_for(range(1000), do, workers=3)
    assert 20 in done
    assert len(done) < 500


def test_a_task_that_stops_comes_before_a_later_error() -> None:
    """One by one, the error would never have come."""
    raised = threading.Event()

    def do(task: int) -> bool:
        if task == 0:
            raised.wait(10)
            return False
        try:
            raise ValueError(str(task))
        finally:
            raised.set()

    parallel_for(range(2), do, workers=2)


def test_what_ends_the_waiting_thread_ends_the_others() -> None:
    done: list[int] = []
    first = threading.get_ident()

    @contextmanager
    def within() -> Iterator[None]:
        if threading.get_ident() == first:
            time.sleep(0.01)
            raise KeyboardInterrupt
        yield

    def do(task: int) -> bool:
        time.sleep(0.001)
        done.append(task)
        return True

    with pytest.raises(KeyboardInterrupt):
        parallel_for(range(2000), do, workers=2, within=within)
    assert len(done) < 500
