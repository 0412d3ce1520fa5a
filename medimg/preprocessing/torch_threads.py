"""Limits torch to its share of the cores inside worker threads."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["limit_this_thread", "share_cores"]


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
