"""Which slices of a stack become pictures."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

__all__ = ["SliceChoice", "choose_slices", "neighbors"]

SliceChoice: TypeAlias = Literal["all", "middle"] | int


def choose_slices(depth: int, slices: SliceChoice) -> tuple[int, ...]:
    """
    Return the indices of the chosen slices.

    Parameters
    ----------
    depth : int
        Number of slices, at least 1.
    slices : "all", "middle" or int
        An int takes that many, evenly spaced from the first to the last; all where there are fewer, the
        middle one for 1.

    Examples
    --------
    >>> choose_slices(500, 3)
    (0, 250, 499)
    >>> choose_slices(9, "middle")
    (4,)
    """
    if slices in {"middle", 1}:
        return (depth // 2,)
    if not isinstance(slices, int) or slices >= depth:
        return tuple(range(depth))
    return tuple(int(i) for i in np.floor(np.linspace(0, depth - 1, slices) + 0.5))


def neighbors(index: int, depth: int) -> tuple[int, int, int]:
    """Return the slice before, the slice itself and the one after; the ends repeat."""
    return max(index - 1, 0), index, min(index + 1, depth - 1)
