"""
Raster: checked header of a raw-array format, such as NIfTI, NRRD and MetaImage, and its memory map.

Each format has a module that turns its header into a `Raster`; bounds, byte order, compression, color and
rescaling are handled once, by `raster_reader` and `_raster_values`.
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

__all__ = ["Encoding", "Raster", "check_affine", "map_values"]


def map_values(raster: Raster, chosen: Sequence[int]) -> npt.NDArray[Any] | None:
    """
    Return the values of some slices as a read-only memory map (C, D, H, W); None if they need a conversion.

    The file must not be shortened or overwritten while the array is in use: accessing what was cut off ends
    the process (SIGBUS). Windows refuses to replace the file meanwhile.
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


Encoding: TypeAlias = Literal["raw", "deflated", "bzip2", "text", "hex"]
_MIN_VOLUME: Final = 1e-15
_MAX_MM: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Raster:
    """
    Header of an image whose values are stored in one block.

    Attributes
    ----------
    name : str
        File with the header, for messages.
    format : str
        Name of the format.
    files : tuple of str
        File with the header, and the file with the values if it is another one.
    blob : Blob
        File with the values.
    dtype : numpy.dtype
        Type of the stored values, with byte order.
    grid : tuple of 3 ints
        (D, H, W); W varies fastest.
    affine : numpy.ndarray
        (4, 4): index (d, h, w) to LPS millimeters.
    space : {"patient", "image"}
        Whether the affine maps to patient coordinates.
    start : int
        Bytes in the file before the values.
    skip : int
        Bytes before the values after decompression.
    encoding : {"raw", "deflated", "bzip2", "text", "hex"}
        Encoding of the values.
    channels : int
        Number of values per voxel.
    interleaved : bool
        Whether the channels vary fastest; otherwise they vary slowest.
    color : {"", "vector", "RGB", "RGBA"}
        Meaning of the channels: "" for time points and others; a "vector" of three bytes is read as RGB.
    slope, intercept : float
        Rescale of the stored values.
    frame_times : tuple of float or None
        Seconds from the first time point, for each channel.
    modality : str
        "CT", "MR", …; "" if the format does not state it.
    units : str
        Units of the rescaled values, such as "HU"; "raw" if the format does not state them.
    channel_names : tuple of str
        Name of each channel that is not a color; empty if they have none.
    inverted : bool
        Whether a display inverts the values, as those of DICOM's MONOCHROME1.
    display_range : tuple of 2 floats, optional
        Values displayed as black and white, if the image is ready for display.
    steps, warnings : tuple of str
        Entries of the report.
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
    modality: str = ""
    units: str = "raw"
    channel_names: tuple[str, ...] = ()
    inverted: bool = False
    display_range: tuple[float, float] | None = None
    steps: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """Number of stored values."""
        return math.prod(self.grid) * self.channels

    @property
    def nbytes(self) -> int:
        """Size of the stored values in bytes, decompressed."""
        return self.count * self.dtype.itemsize

    @property
    def photometric(self) -> Photometric:
        """Photometric interpretation: "RGB", or else "MONOCHROME2"."""
        if self.dtype.itemsize != 1 or self.dtype.kind != "u" or (self.slope, self.intercept) != (1.0, 0.0):
            return "MONOCHROME2"
        bytes_of = {"vector": 3, "RGB": 3, "RGBA": 4}
        return "RGB" if self.channels == bytes_of.get(self.color) else "MONOCHROME2"


def check_affine(affine: geometry.Affine, name: str) -> geometry.Affine:
    """Return an affine to millimeters; raise GeometryError if it is singular, infinite or absurdly large."""
    finite = np.isfinite(affine).all() and float(np.abs(affine).max()) <= _MAX_MM
    if not finite or abs(np.linalg.det(affine[:3, :3])) < _MIN_VOLUME:
        raise GeometryError(
            f"{name}: its affine is singular or not finite; correct or remove its directions and spacings"
        )
    return affine
