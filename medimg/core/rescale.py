"""Linear rescaling from stored to modality values."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "choose_rescaled_dtype",
    "describe_rescale",
    "find_stored_range",
    "rescale_into",
    "rescale_values",
    "wrap_integer",
]

#: Values per block: as float64 they stay in the cache of a core, and calls are few.
_BLOCK: Final = 2**16


def describe_rescale(slope: float, intercept: float) -> str:
    """Return the step of a report that names a rescale."""
    return f"rescaled: {slope:g} × stored {'−' if intercept < 0 else '+'} {abs(intercept):g}"


def choose_rescaled_dtype(ends: tuple[int, int], slope: float, intercept: float) -> np.dtype[Any]:
    """
    Return the dtype of ``slope * stored + intercept`` for integers in the range `ends`.

    int16 or int32, whichever holds every value; float32 if neither does, or slope or intercept have
    fractions.

    Examples
    --------
    >>> choose_rescaled_dtype((0, 4095), 1.0, -1024.0)
    dtype('int16')
    >>> choose_rescaled_dtype((0, 4095), 0.5, 0.0)
    dtype('float32')
    """
    if float(slope).is_integer() and float(intercept).is_integer():
        results = [end * int(slope) + int(intercept) for end in ends]
        for dtype in (np.int16, np.int32):
            if np.iinfo(dtype).min <= min(results) and max(results) <= np.iinfo(dtype).max:
                return np.dtype(dtype)
    return np.dtype(np.float32)


def find_stored_range(
    stored: np.dtype[Any], slope: float, intercept: float, dtype: np.dtype[Any]
) -> tuple[int, int] | None:
    """
    Return the least and greatest stored integer whose rescaled value an integer dtype holds; None if none is.

    Slope and intercept are whole numbers, the slope is not 0.

    Examples
    --------
    >>> find_stored_range(np.dtype(np.int16), 1.0, -1024.0, np.dtype(np.int16))
    (-31744, 32767)
    """
    factor, offset = int(slope), int(intercept)
    least, most = (int(end) - offset for end in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    if factor < 0:
        factor, least, most = -factor, -most, -least
    low = max(-(-least // factor), int(np.iinfo(stored).min))
    high = min(most // factor, int(np.iinfo(stored).max))
    return (low, high) if low <= high else None


def rescale_values(stored: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """
    Return ``slope * stored + intercept`` of integers, in the dtype of :func:`choose_rescaled_dtype`.

    Results that are not integers are computed in float64 and rounded once.

    Examples
    --------
    >>> rescale_values(np.array([0, 1000], np.uint16), 1.0, -1024.0)
    array([-1024,   -24], dtype=int16)
    """
    dtype = choose_rescaled_dtype((int(stored.min()), int(stored.max())), slope, intercept)
    values = np.empty(stored.shape, dtype)
    rescale_into(stored.reshape(-1), slope, intercept, values.reshape(-1))
    return values


def rescale_into(stored: npt.NDArray[Any], slope: float, intercept: float, values: npt.NDArray[Any]) -> None:
    """
    Write ``slope * stored + intercept`` (n,) into an array, block by block.

    The array may be the memory of `stored` if as wide. Floating-point results are computed in float64 and
    rounded once.

    Examples
    --------
    >>> values = np.empty(2, np.float32)
    >>> rescale_into(np.array([0, 1000], np.uint16), 0.5, -1.0, values)
    >>> values
    array([ -1., 499.], dtype=float32)
    """
    if values.dtype.kind in "iu":
        _rescale_integers(stored, slope, intercept, values)
        return
    scratch = np.empty(min(_BLOCK, stored.size), np.float64)
    for start in range(0, stored.size, _BLOCK):
        some, into = stored[start : start + _BLOCK], values[start : start + _BLOCK]
        part = scratch[: some.size]
        # converting first is faster than a multiplication that converts on the way
        part[:] = some
        np.multiply(part, slope, out=part)
        np.add(part, intercept, out=part)
        into[:] = part


def _rescale_integers(
    stored: npt.NDArray[Any], slope: float, intercept: float, values: npt.NDArray[Any]
) -> None:
    """Rescale integers in the dtype of the result: overflow on the way is undone, as integers wrap around."""
    dtype = values.dtype
    if stored.dtype.itemsize == dtype.itemsize and stored.dtype.isnative:
        stored = stored.view(dtype)
    factor, offset = wrap_integer(slope, dtype), wrap_integer(intercept, dtype)
    block = 4 * _BLOCK
    for start in range(0, stored.size, block):
        some, into = stored[start : start + block], values[start : start + block]
        if factor != 1:
            np.multiply(some, factor, out=into, dtype=dtype, casting="unsafe")
            some = into
        np.add(some, offset, out=into, dtype=dtype, casting="unsafe")


@lru_cache(maxsize=64)
def wrap_integer(number: float, dtype: np.dtype[Any]) -> Any:
    """Return a whole number modulo the range of an integer dtype."""
    bits = 8 * dtype.itemsize
    return np.array(int(number) % 2**bits, np.uint64).astype(dtype)[()]
