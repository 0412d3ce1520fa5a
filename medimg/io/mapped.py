"""Values that stay in their file until they are looked at: read-only memory maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medimg.errors import TruncatedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.raster import Raster

__all__ = ["mapped_values"]


def mapped_values(raster: Raster, chosen: Sequence[int]) -> npt.NDArray[Any] | None:
    """
    Return the values of some slices as a read-only view of their file.

    What is not looked at is never read. The file must not be shortened or overwritten while the array is in
    use: the array changes with it, and looking at what was cut off ends the process (SIGBUS). Windows
    refuses to replace the file meanwhile.

    Parameters
    ----------
    raster : Raster
        With sizes that have been compared with the file.
    chosen : sequence of int
        Ascending indices along D.

    Returns
    -------
    numpy.ndarray or None
        (C, len(chosen), H, W); None where the values can't be used as they lie: packed, text, in an archive
        or in memory, in the other byte order, at an odd place, rescaled, or slices that are not evenly apart.

    Raises
    ------
    TruncatedError
        If the file has become too short.
    """
    path = raster.blob.path
    steps = set(np.diff(chosen).tolist()) or {1}
    start = raster.start + raster.skip
    unchanged = raster.dtype.isnative and (raster.slope, raster.intercept) == (1.0, 0.0)
    aligned = start % raster.dtype.itemsize == 0
    if path is None or raster.encoding != "raw" or not (unchanged and aligned) or len(steps) > 1:
        return None
    shape = (*raster.grid, raster.channels) if raster.interleaved else (raster.channels, *raster.grid)
    try:
        values = np.asarray(np.memmap(path, raster.dtype, "r", start, shape))
    except (OSError, ValueError):
        raise TruncatedError(f"{raster.name} ends before its values do; copy or export it again") from None
    if raster.interleaved:
        values = values.transpose(3, 0, 1, 2)
    return values[:, chosen[0] : chosen[-1] + 1 : steps.pop()]
