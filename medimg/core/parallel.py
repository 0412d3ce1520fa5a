"""Threads: parallel loops over tasks, with errors as in a serial loop."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from itertools import islice
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from medimg._validation import check_whole_number
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
    from concurrent.futures import Future
    from contextlib import AbstractContextManager

__all__ = ["available_cores", "one_core", "ordered_map", "parallel_for", "worker_count"]

_Task = TypeVar("_Task")

#: Times each thread fetches tasks: few enough to cost nothing, many enough to end together.
_SHARES: Final = 8
_MOST_AT_ONCE: Final = 8


_HAS_ONE_CORE: Final = ContextVar("medimg_one_core", default=False)


@contextmanager
def one_core() -> Iterator[None]:
    """Use one core in this thread: it is one of many workers."""
    token = _HAS_ONE_CORE.set(True)
    try:
        yield
    finally:
        _HAS_ONE_CORE.reset(token)


def available_cores() -> int:
    """Return the number of cores this process may use; 1 in a worker process, such as a `DataLoader`'s."""
    if _HAS_ONE_CORE.get():
        return 1
    if multiprocessing.parent_process() is not None:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_for(
    tasks: Sequence[_Task],
    do: Callable[[_Task], bool],
    *,
    workers: int,
    within: Callable[[], AbstractContextManager[object]] = nullcontext,
    most_at_once: int = _MOST_AT_ONCE,
) -> None:
    """
    Do tasks on several threads, and raise the error that a serial loop would.

    If `do` returns False, later tasks may be skipped. Each thread does its tasks inside a context of
    `within`, and takes up to `most_at_once` neighbors if there are many.

    Examples
    --------
    >>> found = [0] * 5
    >>> def square(n: int) -> bool:
    ...     found[n] = n * n
    ...     return True
    >>> parallel_for(range(5), square, workers=2)
    >>> found
    [0, 1, 4, 9, 16]
    """
    workers = min(workers, len(tasks))
    if workers <= 1:
        with within():
            for task in tasks:
                if not do(task):
                    return
        return
    run = _SharedTasks(tasks, do, workers, most_at_once)

    def work() -> None:
        with within():
            run.work()

    with ThreadPoolExecutor(workers - 1) as pool:
        for _ in range(workers - 1):
            pool.submit(work)
        try:
            work()
        except BaseException:
            run.stop()
            raise
    if run.error is not None:
        raise run.error


class _SharedTasks(Generic[_Task]):
    """Tasks that several threads take, a few neighbors at a time."""

    def __init__(
        self, tasks: Sequence[_Task], do: Callable[[_Task], bool], workers: int, most_at_once: int
    ) -> None:
        self._do = do
        self._tasks = tasks
        self._lock = threading.Lock()
        self._step = min(most_at_once, max(1, len(tasks) // (workers * _SHARES)))
        self._next = 0
        self._end = len(tasks)
        self.error: BaseException | None = None

    def work(self) -> None:
        """Do tasks until there are none, or an earlier one failed."""
        while True:
            with self._lock:
                start = self._next
                self._next += self._step
            for index in range(start, start + self._step):
                if index >= self._end or not self._run_task(index):
                    return

    def _run_task(self, index: int) -> bool:
        try:
            goes_on = self._do(self._tasks[index])
        except BaseException as error:  # raised by the waiting thread
            with self._lock:
                if index < self._end:
                    self._end, self.error = index, error
            return False
        if not goes_on:
            with self._lock:
                if index < self._end:
                    # a serial loop would not have reached later errors
                    self._end, self.error = index, None
        return goes_on

    def stop(self) -> None:
        """Skip the tasks that have not been started."""
        self._end = 0


_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def worker_count(workers: int | None) -> int:
    """Return the number of threads; PreprocessError if `workers` is not a positive number."""
    if workers is None:
        return available_cores()
    return check_whole_number(
        "workers", workers, least=1, hint=", or None for all cores", error=PreprocessError
    )


def ordered_map(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int | None = None,
    *,
    initializer: Callable[[int], Callable[[], object]] | None = None,
) -> Generator[_Result]:
    """
    Yield the results of `work` in the order of its items.

    At most ``workers + 2`` items are started and not yielded yet. Once the iterator is closed, or raises, no
    other is started, and running ones are waited for. `initializer` takes the number of threads and returns
    what each calls first; it is not used with one worker, which works in the caller's thread.

    Examples
    --------
    >>> list(ordered_map(lambda n: n * n, range(4), workers=2))
    [0, 1, 4, 9]
    """
    count = worker_count(workers)
    return _map_serially(work, items) if count == 1 else _map_threaded(work, items, count, initializer)


def _map_serially(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result]:
    for item in items:
        yield work(item)


def _map_threaded(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int,
    initializer: Callable[[int], Callable[[], object]] | None,
) -> Generator[_Result]:
    busy = min(workers, len(items)) if isinstance(items, Sized) else workers
    prepare = None if initializer is None else initializer(max(1, busy))
    waiting = iter(items)
    begun: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="medimg", initializer=prepare)
    try:
        begun.extend(pool.submit(work, item) for item in islice(waiting, workers + 2))
        while begun:
            yield begun.popleft().result()
            begun.extend(pool.submit(work, item) for item in islice(waiting, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
