"""Torch's threads and ours on the same cores."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["limit_this_thread", "share_cores"]


def share_cores(threads: int) -> Callable[[], None]:
    """Return what each of several threads calls, so that together they use the cores torch may use."""
    return partial(limit_this_thread, max(1, torch.get_num_threads() // threads))


def limit_this_thread(count: int) -> None:
    """
    Let torch compute on so many cores in this thread; other threads stay as they are.

    OpenMP has a number for each thread that starts others, and :func:`torch.set_num_threads` is for all.
    """
    torch.get_num_threads()  # sets the number of this thread to torch's default, once
    _controller().limit(limits=count, user_api="openmp")


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it has no types

    return ThreadpoolController()
