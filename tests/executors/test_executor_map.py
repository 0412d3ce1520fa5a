"""Tasks on executors: in order, bounded, and whatever their workers do."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.errors import ExecutorError, MedimgError
from medimg.executors.executor_map import check_executor, executor_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=_SPAWN) as pool:
        yield pool


def lost(item: object, error: ExecutorError) -> Any:
    return f"{item}: {error}"


def square(n: int) -> int:
    return n * n


def die_of(poison: frozenset[int], n: int) -> int:
    if n in poison:
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def die_once(folder: str, n: int) -> int:
    """Kill the worker of each third number the first time."""
    mark = Path(folder) / str(n)
    if n % 3 == 0 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return n * n


def fail_at_7(n: int) -> int:
    if n == 7:
        raise MedimgError("seven")
    return n


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@given(count=st.integers(0, 60), workers=st.integers(1, 9), threads=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_results_come_in_order_and_few_are_begun(count: int, workers: int, threads: int) -> None:
    begun = threading.Semaphore(0)
    taken = 0
    ahead = 0

    def work(n: int) -> int:
        begun.release()
        time.sleep(0.0005 * (n % 3))
        return -n

    def items() -> Iterator[int]:
        nonlocal ahead
        for n in range(count):
            ahead = max(ahead, n + 1 - taken)
            yield n

    with ThreadPoolExecutor(threads) as pool:
        for number, found in enumerate(executor_map(pool, work, items(), lost=lost, workers=workers)):
            assert found == -number
            taken += 1
    assert taken == count
    assert ahead <= workers + 2


def test_processes_give_what_a_loop_gives(processes: ProcessPoolExecutor) -> None:
    assert list(executor_map(processes, square, range(50), lost=lost)) == [n * n for n in range(50)]


def test_an_error_is_raised_in_its_turn(processes: ProcessPoolExecutor) -> None:
    found: list[int] = []
    with pytest.raises(MedimgError, match="seven"):
        found.extend(executor_map(processes, fail_at_7, range(20), lost=lost))
    results = executor_map(processes, fail_at_7, range(20), lost=lost)
    assert [next(results) for _ in range(7)] == list(range(7))
    results.close()
    assert processes.submit(square, 3).result() == 9  # it is still open


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_task_whose_worker_dies_is_tried_again(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, mp_context=_SPAWN) as pool:
        found = list(executor_map(pool, partial(die_once, str(tmp_path)), range(14), lost=lost))
    assert found == [n * n for n in range(14)]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_task_that_kills_its_worker_is_reported_and_passed_over() -> None:
    with ProcessPoolExecutor(2, mp_context=_SPAWN) as pool:
        work: Callable[[int], Any] = partial(die_of, frozenset({0, 5, 11}))
        found = list(executor_map(pool, work, range(12), lost=lost))
    assert [n for n, one in enumerate(found) if isinstance(one, str)] == [0, 5, 11]
    assert "died, 2 times" in found[5]
    assert [one for one in found if not isinstance(one, str)] == [
        n * n for n in range(12) if n not in (0, 5, 11)
    ]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_workers_that_die_of_anything_are_an_error() -> None:
    with (
        ProcessPoolExecutor(1, mp_context=_SPAWN, initializer=die) as pool,
        pytest.raises(ExecutorError, match=r"can't run any task.*if __name__"),
    ):
        list(executor_map(pool, square, range(5), lost=lost))


def test_what_can_not_be_sent_is_an_error(processes: ProcessPoolExecutor) -> None:
    with pytest.raises(ExecutorError, match="can't be sent"):
        list(executor_map(processes, square, [threading.Lock()], lost=lost))  # type: ignore[arg-type]  # wrong on purpose
    assert list(executor_map(processes, square, [2], lost=lost)) == [4]


class _Cluster(Executor):
    """Reports what it can't send as Dask and Ray do: when it is submitted, with the whole task."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        try:
            pickle.dumps(args)
        except TypeError as error:
            raise TypeError("Could not serialize the argument", f"{args} of DOE^JANE") from error
        raise AssertionError("it could be sent")


def test_what_a_cluster_can_not_send_is_an_error_without_the_task() -> None:
    with pytest.raises(ExecutorError, match=r"can't be sent.*cannot pickle") as found:
        list(executor_map(_Cluster(), square, [threading.Lock()], lost=lost))  # type: ignore[arg-type]  # wrong on purpose
    assert "JANE" not in "".join(traceback.format_exception(found.value))


def test_an_executor_that_is_shut_down_is_an_error() -> None:
    with ThreadPoolExecutor(1) as pool:
        pass
    with pytest.raises(ExecutorError, match="shut down"):
        list(executor_map(pool, square, [1], lost=lost))


def test_closing_cancels_what_is_not_begun() -> None:
    done: list[int] = []
    gate = threading.Event()

    def work(n: int) -> int:
        if n:
            gate.wait(10)
        done.append(n)
        return n

    with ThreadPoolExecutor(1) as pool:
        results = executor_map(pool, work, range(100), lost=lost, workers=5)
        assert next(results) == 0
        threading.Timer(0.2, gate.set).start()
        results.close()
        assert done in ([0], [0, 1])
    assert len(done) <= 2


class Unreliable(Executor):
    """An executor of no known number of workers that cancels each task once."""

    def __init__(self) -> None:
        self.seen: set[object] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if args in self.seen:
            future.set_result(fn(*args, **kwargs))
        else:
            self.seen.add(args)
            future.cancel()
            future.set_running_or_notify_cancel()
        return future


def test_cancelled_tasks_are_tried_again() -> None:
    assert list(executor_map(Unreliable(), square, range(9), lost=lost)) == [n * n for n in range(9)]


@pytest.mark.parametrize("wrong", [3, "processes", ThreadPoolExecutor, object()])
def test_other_objects_are_no_executors(wrong: object) -> None:
    with pytest.raises(ExecutorError, match="must be a"):
        check_executor(wrong)


def test_a_client_has_an_executor() -> None:
    class Client:
        def get_executor(self) -> None:
            pass

    with pytest.raises(ExecutorError, match=r"pass client\.get_executor\(\)"):
        check_executor(Client())
