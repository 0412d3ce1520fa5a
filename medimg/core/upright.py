"""Turning images upright: the orientation of EXIF and TIFF."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["describe_turn", "is_turned_sideways", "turn_upright"]

#: By orientation (TIFF 6.0, tag 274): whether rows and columns are exchanged, then rows and columns reversed.
_TURNS: Final = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def is_turned_sideways(orientation: int) -> bool:
    """Whether turning an image upright exchanges its rows and columns."""
    return orientation in _TURNS and _TURNS[orientation][0]


def turn_upright(array: npt.NDArray[Any], orientation: int) -> npt.NDArray[Any]:
    """Return (..., H, W) upright; unchanged for an orientation that is none."""
    if orientation not in _TURNS:
        return array
    exchanged, rows, columns = _TURNS[orientation]
    if exchanged:
        array = array.swapaxes(-1, -2)
    return np.ascontiguousarray(array[..., :: -1 if rows else 1, :: -1 if columns else 1])


def describe_turn(orientation: int, source: str) -> tuple[str, ...]:
    """Return the step of a report for an image that is turned upright by a tag of `source`."""
    return (f"turned upright by its {source} tag",) if orientation in _TURNS else ()
