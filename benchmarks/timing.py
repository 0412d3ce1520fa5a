"""Times of several candidates that take turns, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import gc
import os
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["evict", "interleaved"]


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    before: Callable[[], None] | None = None,
    budget: float = 20.0,
    least: int = 1,
) -> dict[str, list[float]]:
    """
    Time candidates, one run of each in each round, and begin each round with another.

    Results are dropped before the next run, so that each run gets memory that is fresh.

    Parameters
    ----------
    candidates : mapping
        Name → what is timed.
    rounds : int
        At least 1.
    before : callable, optional
        Called before each run, not timed.
    budget : float
        Seconds: a candidate that has spent more sits out, after `least` rounds.
    least : int
        Rounds of slow candidates.

    Returns
    -------
    dict
        Name → milliseconds of each of its runs.
    """
    took: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    with _lean_collector():
        for number in range(rounds):
            first = number % max(len(names), 1)
            for name in names[first:] + names[:first]:
                if len(took[name]) < least or sum(took[name]) < budget * 1000:
                    took[name].append(_milliseconds(candidates[name], before))
    return took


@contextmanager
def _lean_collector() -> Iterator[None]:
    """Keep what all imported libraries hold out of garbage collections, as if few had been imported."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _milliseconds(run: Callable[[], Any], before: Callable[[], None] | None) -> float:
    gc.collect()
    if before:
        before()
    start = perf_counter()
    result = run()
    spent = perf_counter() - start
    del result
    return spent * 1000


def evict(files: Iterable[Path]) -> None:
    """
    Drop files from the page cache, as if the machine had just been started.

    Entries of folders stay cached, and what a disk or a hypervisor keeps is beyond reach.

    Raises
    ------
    OSError
        If the system can't do it: it takes Linux.
    """
    if not hasattr(os, "posix_fadvise"):
        raise OSError("dropping files from the page cache takes posix_fadvise")
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
