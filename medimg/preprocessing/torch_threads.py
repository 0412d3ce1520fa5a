"""Torch on its share of the cores, in the threads and on the executors that work on many sources."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache, partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from medimg.core.parallel import one_core, ordered_map
from medimg.executors.executor_map import SMALL_RESULTS
from medimg.executors.worker_warnings import map_with_warnings

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Executor

    from medimg.errors import ExecutorError

__all__ = ["limit_this_thread", "map_sources", "on_one_core", "share_cores"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_sources(
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    workers: int | None,
    executor: Executor | None,
    *,
    lost: Callable[[_Item, ExecutorError], _Result],
    small: bool = False,
) -> Generator[_Result]:
    """
    Yield the results of `work` in the order of its items, from threads that share cores or an executor.

    For an executor `work`, items and results are pickled; results must hold no tensors, which torch would
    send by file descriptors. `workers` and `lost` are those of :func:`executor_map`. If results are `small`,
    many may wait for an earlier one.
    """
    if executor is None:
        return ordered_map(work, items, workers, initializer=share_cores)
    ahead = SMALL_RESULTS if small else 1
    return map_with_warnings(
        executor, work, items, lost=lost, within=on_one_core, workers=workers, ahead=ahead
    )


@contextmanager
def on_one_core() -> Iterator[None]:
    """Let medimg and torch use one core in this thread."""
    torch.get_num_threads()  # sets the number of this thread to torch's default, once
    with one_core(), _controller().limit(limits=1, user_api="openmp"):
        yield


def share_cores(threads: int) -> Callable[[], None]:
    """Return an initializer for each of several threads, so that together they use torch's cores."""
    return partial(limit_this_thread, max(1, torch.get_num_threads() // threads))


def limit_this_thread(count: int) -> None:
    """
    Limit torch to `count` cores in this thread only.

    OpenMP has a setting for each thread that starts others; :func:`torch.set_num_threads` applies to all.
    """
    torch.get_num_threads()  # sets the number of this thread to torch's default, once
    _controller().limit(limits=count, user_api="openmp")


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no types

    return ThreadpoolController()
