"""Work on all cores, in order, with only so much of it begun."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

from medimg.core.threads import available_cores
from medimg.errors import PreprocessError
from medimg.prep.cores import limit_this_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

__all__ = ["in_order", "worker_count"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def worker_count(workers: int | None) -> int:
    """
    Return how many threads to work with.

    Raises
    ------
    PreprocessError
        If it is no positive number.
    """
    if workers is None:
        return available_cores()
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise PreprocessError(
            f"workers is a positive number of threads, or None for all cores; found {workers!r}"
        )
    return workers


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int | None = None
) -> Generator[_Result]:
    """
    Yield the results of some work in the order of its items.

    At most ``workers + 2`` items are begun and not yielded yet. The threads share out the cores that torch
    computes on; what torch does in other threads stays as it is. Once the iterator is closed, or an
    exception leaves it, nothing more is begun, and what is running is waited for.

    Parameters
    ----------
    work : callable
        Done in threads; in the caller's, on all that torch computes on, if there is one worker.
    items : iterable
        Taken as they are needed, in the caller's thread.
    workers : int, optional
        Threads; all cores by default.

    Examples
    --------
    >>> list(in_order(lambda n: n * n, range(4), workers=2))
    [0, 1, 4, 9]
    """
    count = worker_count(workers)
    return _one_by_one(work, items) if count == 1 else _threaded(work, items, count)


def _one_by_one(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Generator[_Result]:
    for item in items:
        yield work(item)


def _threaded(work: Callable[[_Item], _Result], items: Iterable[_Item], workers: int) -> Generator[_Result]:
    busy = min(workers, len(items)) if isinstance(items, Sized) else workers
    # the threads share out the cores that torch computes on
    share = max(1, torch.get_num_threads() // max(1, busy))
    waiting = iter(items)
    begun: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(
        workers, thread_name_prefix="medimg", initializer=limit_this_thread, initargs=(share,)
    )
    try:
        begun.extend(pool.submit(work, item) for item in islice(waiting, workers + 2))
        while begun:
            yield begun.popleft().result()
            begun.extend(pool.submit(work, item) for item in islice(waiting, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
