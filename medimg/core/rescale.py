"""The linear step from stored to modality values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["rescaled"]


def rescaled(stored: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """
    Return ``slope * stored + intercept``; integers stay integers where both numbers are whole.

    The result is int16 or int32, whichever holds every value; float32 where slope or intercept have
    fractions.
    """
    if not (float(slope).is_integer() and float(intercept).is_integer()):
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    ends = [int(stored.min()) * int(slope) + int(intercept), int(stored.max()) * int(slope) + int(intercept)]
    low, high = min(ends), max(ends)
    if np.iinfo(np.int32).min > low or high > np.iinfo(np.int32).max:
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    small = stored.dtype.itemsize <= 2 and abs(slope) < 2**15 and abs(intercept) < 2**30
    wide = stored.astype(np.int32 if small else np.int64) * int(slope) + int(intercept)
    fits = np.iinfo(np.int16).min <= low and high <= np.iinfo(np.int16).max
    return wide.astype(np.int16 if fits else np.int32)
