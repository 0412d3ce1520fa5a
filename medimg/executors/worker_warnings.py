"""Tasks on an executor whose warnings are given in the caller's process."""

from __future__ import annotations

import os
import secrets
import threading
import warnings
from contextlib import closing, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from medimg.errors import MedimgWarning
from medimg.executors.executor_map import executor_map

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from medimg.errors import ExecutorError

__all__ = ["map_with_warnings"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_TOKEN: Final = secrets.token_hex(8)
_collected: ContextVar[list[str] | None] = ContextVar("medimg_warnings", default=None)
_lock = threading.Lock()
_installed: set[int] = set()


def map_with_warnings(
    executor: Executor,
    work: Callable[[_Item], _Result],
    items: Iterable[_Item],
    *,
    lost: Callable[[_Item, ExecutorError], _Result],
    within: Callable[[], AbstractContextManager[object]],
    workers: int | None = None,
    ahead: int = 1,
) -> Generator[_Result]:
    """
    Yield the results of :func:`executor_map`, and give the warnings of each task before its result.

    Each task runs in a context of `within`.
    """

    def lose(item: _Item, error: ExecutorError) -> tuple[_Result, list[str]]:
        return lost(item, error), []

    run = partial(_run_task, work, within, _get_process())
    with closing(executor_map(executor, run, items, lost=lose, workers=workers, ahead=ahead)) as results:
        for result, texts in results:
            for text in texts:
                warnings.warn(text, MedimgWarning, stacklevel=3)
            yield result


def _run_task(
    work: Callable[[_Item], _Result],
    within: Callable[[], AbstractContextManager[object]],
    caller: tuple[str, int],
    item: _Item,
) -> tuple[_Result, list[str]]:
    with within(), _collect_warnings(caller) as texts:
        return work(item), texts


def _get_process() -> tuple[str, int]:
    """Return what identifies this process, on this machine and among others."""
    return _TOKEN, os.getpid()


@contextmanager
def _collect_warnings(caller: tuple[str, int]) -> Iterator[list[str]]:
    """Yield a list of the texts of MedimgWarnings of this thread; none in the caller's own process."""
    found: list[str] = []
    if caller == _get_process():
        yield found
        return
    _install()
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


def _install() -> None:
    """Let warnings of tasks reach their list: `warnings.catch_warnings` is not for several threads."""
    with _lock:
        if os.getpid() in _installed:
            return
        _installed.add(os.getpid())
        warnings.simplefilter("always", MedimgWarning)
        show = warnings.showwarning

        def collect(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            found = _collected.get()
            if found is None or not issubclass(category, MedimgWarning):
                show(message, category, *where, **more)
            else:
                found.append(str(message))

        warnings.showwarning = collect
