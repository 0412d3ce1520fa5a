"""
Values one after the other in a file, as in NIfTI, NRRD and MetaImage: from a checked header to a volume.

Each of these formats has a module that turns its header into a :class:`Raster`. What is the same for all is
here: bounds that are checked before memory is allocated, byte order, compression, color and rescaling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg.core import geometry
from medimg.core.volume import Photometric, Space
from medimg.errors import GeometryError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.files.blob import Blob

__all__ = ["Encoding", "Raster", "map_values", "sound_affine"]


def map_values(raster: Raster, chosen: Sequence[int]) -> npt.NDArray[Any] | None:
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


Encoding: TypeAlias = Literal["raw", "deflated", "text", "hex"]
_LEAST_VOLUME: Final = 1e-15
_MOST_MM: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """
    An image whose header has been read, and whose values lie in one block.

    Attributes
    ----------
    name : str
        The file with the header, for messages.
    format : str
        "NIfTI", "NRRD" or "MetaImage".
    files : tuple of str
        The file with the header, and that with the values where it is another.
    blob : Blob
        Where the values are.
    dtype : numpy.dtype
        Of a stored value, with its byte order.
    grid : tuple of 3 ints
        (D, H, W); W varies fastest.
    affine : numpy.ndarray
        (4, 4): index (d, h, w) to LPS millimeters.
    space : {"patient", "image"}
        Whether the affine leads into a patient.
    start : int
        Bytes of the file before the values.
    skip : int
        Bytes before the values once they are unpacked.
    encoding : {"raw", "deflated", "text", "hex"}
        How they are written.
    channels : int
        Values at each place.
    interleaved : bool
        Whether the channels vary fastest; else they vary slowest.
    color : {"", "vector", "RGB", "RGBA"}
        What the channels are: "" for points in time or anything else; a "vector" of three bytes is taken for
        a color.
    slope, intercept : float
        To be applied to the stored values.
    frame_times : tuple of float or None
        Seconds from the first point in time, for each channel.
    steps, warnings : tuple of str
        For the report.
    """

    name: str
    format: str
    files: tuple[str, ...]
    blob: Blob
    dtype: np.dtype[Any]
    grid: tuple[int, int, int]
    affine: geometry.Affine
    space: Space
    start: int = 0
    skip: int = 0
    encoding: Encoding = "raw"
    channels: int = 1
    interleaved: bool = False
    color: Literal["", "vector", "RGB", "RGBA"] = ""
    slope: float = 1.0
    intercept: float = 0.0
    frame_times: tuple[float, ...] | None = None
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of stored values."""
        return math.prod(self.grid) * self.channels

    @property
    def nbytes(self) -> int:
        """The size of the stored values, unpacked."""
        return self.count * self.dtype.itemsize

    @property
    def photometric(self) -> Photometric:
        """Whether the channels are red, green and blue."""
        if self.dtype.itemsize != 1 or self.dtype.kind != "u" or (self.slope, self.intercept) != (1.0, 0.0):
            return "MONOCHROME2"
        bytes_of = {"vector": 3, "RGB": 3, "RGBA": 4}
        return "RGB" if self.channels == bytes_of.get(self.color) else "MONOCHROME2"


def sound_affine(affine: geometry.Affine, name: str) -> geometry.Affine:
    """
    Return an affine to millimeters as it is.

    Raises
    ------
    GeometryError
        If it is singular, not finite, or absurdly large.
    """
    finite = np.isfinite(affine).all() and float(np.abs(affine).max()) <= _MOST_MM
    if not finite or abs(np.linalg.det(affine[:3, :3])) < _LEAST_VOLUME:
        raise GeometryError(
            f"{name}: its affine is singular or not finite; mend its directions and spacings, or remove them"
        )
    return affine
