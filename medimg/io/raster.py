"""
Values one after the other in a file, as in NIfTI, NRRD and MetaImage: from a checked header to a volume.

Each of these formats has a module that turns its header into a :class:`Raster`. What is the same for all is
here: bounds that are checked before memory is allocated, byte order, compression, color and rescaling.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg.core import geometry
from medimg.core.report import ReadReport
from medimg.core.volume import Photometric, Space, Volume
from medimg.errors import DecodeError, GeometryError, MedimgWarning, TruncatedError
from medimg.io.mapped import mapped_values
from medimg.io.series import Policies, Series
from medimg.io.stored import MOST_TEXT, StoredValues
from medimg.io.unpacking import MOST_EXPANSION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.io.blob import Blob

__all__ = ["Encoding", "Raster", "raster_series", "sound_affine"]

Encoding: TypeAlias = Literal["raw", "deflated", "text", "hex"]

_MOST_BYTES: Final = 2**35
_LEAST_VOLUME: Final = 1e-15
_MOST_MM: Final = 1e9


@dataclass(frozen=True, slots=True)
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


def raster_series(raster: Raster) -> Series:
    """
    Return the series of a header.

    Raises
    ------
    DecodeError
        If the image is empty or unreasonably large.
    TruncatedError
        If the file is too short for the values.
    GeometryError
        If the affine is singular or not finite.
    """
    _check_size(raster)
    channels = 3 if raster.photometric == "RGB" else raster.channels
    return Series(
        uid=raster.name,
        modality="",
        description="",
        shape=(channels, *raster.grid),
        affine=sound_affine(raster.affine, raster.name),
        space=raster.space,
        files=raster.files,
        format=raster.format,
        reader=_Reader(raster, _state_of(raster.name)),
        frame_times=raster.frame_times,
    )


def _check_size(raster: Raster) -> None:
    """Compare what the header promises with what the file can hold, before anything is allocated."""
    shape = (raster.channels, *raster.grid)
    if min(shape) < 1 or raster.nbytes > _MOST_BYTES:
        size = "×".join(map(str, shape))
        raise DecodeError(
            f"{raster.name} declares C×D×H×W = {size} values, which is empty or unreasonably large"
        )
    there = max(0, raster.blob.bound() - raster.start)
    if raster.encoding == "text":
        needed = 2 * raster.count - 1
    elif raster.encoding == "hex":
        needed = 2 * raster.nbytes
    else:
        there *= MOST_EXPANSION if raster.encoding == "deflated" else 1
        needed = raster.skip + raster.nbytes
    if there < needed:
        raise TruncatedError(
            f"{raster.blob.name} holds at most {there} bytes of values, its header promises {needed}; "
            "copy or export it again"
        )
    if raster.encoding in ("text", "hex") and raster.blob.bound() > MOST_TEXT:
        raise DecodeError(f"{raster.name} holds more than {MOST_TEXT >> 20} MB of text; store it in binary")


def _state_of(name: str) -> tuple[int, int] | None:
    """Return size and time of modification of the file with the header; None if it is in none by itself."""
    try:
        found = Path(name).stat()
    # a name with a null character is a ValueError
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads the values of one raster, whose header is still the one that was read."""

    raster: Raster
    state: tuple[int, int] | None

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        with StoredValues(self.raster) as values:
            volume = self._volume(values, self._chosen(slices), policies)
        for note in self.raster.warnings:
            warnings.warn(f"{self.raster.name}: {note}", MedimgWarning, stacklevel=4)
        return volume

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield a few slices at a time; the file is opened and unpacked once."""
        chosen = self._chosen(slices)
        for note in self.raster.warnings:
            warnings.warn(f"{self.raster.name}: {note}", MedimgWarning, stacklevel=4)
        with StoredValues(self.raster) as values:
            for start in range(0, len(chosen), size):
                yield self._volume(values, chosen[start : start + size], policies)

    def _chosen(self, slices: Sequence[int] | None) -> list[int]:
        _check_size(self.raster)
        if self.state is not None and _state_of(self.raster.name) != self.state:
            raise DecodeError(f"{self.raster.name} has changed since it was scanned; scan again")
        depth = self.raster.grid[0]
        return geometry.ascending_slices(range(depth) if slices is None else slices, depth)

    def _volume(self, values: StoredValues, chosen: list[int], policies: Policies) -> Volume:
        raster = self.raster
        array, steps = _modality_values(raster, values, chosen, mapped=policies.mapped)
        if len(chosen) < raster.grid[0]:
            steps = (*steps, f"{len(chosen)} of {raster.grid[0]} slices read")
        return Volume(
            array=array,
            affine=geometry.subset_affine(raster.affine, chosen),
            photometric=raster.photometric,
            space=raster.space,
            report=ReadReport(
                format=raster.format,
                files=raster.files[:1],
                transforms=(*raster.steps, *steps),
                warnings=raster.warnings,
            ),
        )


def _modality_values(
    raster: Raster, values: StoredValues, chosen: Sequence[int], *, mapped: bool
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    if (raster.slope, raster.intercept) != (1.0, 0.0):
        step = f"rescaled: {raster.slope:g} × stored + {raster.intercept:g}"
        return values.rescaled(chosen), (step,)
    stored = mapped_values(raster, chosen) if mapped else None
    stored = values.stored(chosen) if stored is None else stored
    if raster.photometric != "RGB":
        return stored, ()
    if raster.channels == 4:
        return stored[:3], ("transparency dropped",)
    stated = raster.color == "RGB"
    return stored, () if stated else ("three bytes at each place taken for red, green and blue",)
