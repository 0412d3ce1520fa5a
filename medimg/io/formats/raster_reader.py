"""``raster_series``: series of a raw-array format, from its checked header."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.rescale import describe_rescale
from medimg.core.volume import Volume
from medimg.errors import DecodeError, MedimgWarning, TruncatedError
from medimg.io.files.decompress import MAX_EXPANSION, MAX_EXPANSION_BZIP2
from medimg.io.formats._raster_values import MAX_TEXT, StoredValues
from medimg.io.formats.raster import Raster, check_affine, map_values
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.io.files.blob import Blob

__all__ = ["raster_series"]

_MAX_BYTES: Final = 2**35


def raster_series(raster: Raster) -> Series:
    """
    Return the series of a header.

    Parameters
    ----------
    raster : Raster
        Header of the image.

    Returns
    -------
    Series
        Series with a reader of the values.

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
        modality=raster.modality,
        description="",
        shape=(channels, *raster.grid),
        affine=check_affine(raster.affine, raster.name),
        space=raster.space,
        files=raster.files,
        format=raster.format,
        reader=_RasterReader(raster, _get_state(raster.name)),
        frame_times=raster.frame_times,
    )


def _check_size(raster: Raster) -> None:
    """Compare the declared size with the file, before anything is allocated."""
    shape = (raster.channels, *raster.grid)
    if min(shape) < 1 or raster.nbytes > _MAX_BYTES:
        size = "×".join(map(str, shape))
        raise DecodeError(
            f"{raster.name} declares C×D×H×W = {size} values, which is empty or unreasonably large"
        )
    available = max(0, raster.blob.bound() - raster.start)
    if raster.encoding == "text":
        needed = 2 * raster.count - 1
    elif raster.encoding == "hex":
        needed = 2 * raster.nbytes
    else:
        available *= {"deflated": MAX_EXPANSION, "bzip2": MAX_EXPANSION_BZIP2}.get(raster.encoding, 1)
        needed = raster.skip + raster.nbytes
    if available < needed:
        raise TruncatedError(
            f"{raster.blob.name} has at most {available} bytes of values, but its header declares {needed}; "
            "copy or export it again"
        )
    if raster.encoding in ("text", "hex") and raster.blob.bound() > MAX_TEXT:
        raise DecodeError(f"{raster.name} has more than {MAX_TEXT >> 20} MB of text; store it in binary")


def _get_state(name: str) -> tuple[int, int] | None:
    """Return size and modification time of the file with the header; None if it is not a file on disk."""
    try:
        found = Path(name).stat()
    # a name with a null character is a ValueError
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True, slots=True)
class _RasterReader:
    """Reads the values of a raster, if its header has not changed since it was read."""

    raster: Raster
    state: tuple[int, int] | None

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        with StoredValues(self.raster) as values:
            volume = self._read_volume(values, self._choose_slices(slices), policies)
        for note in self.raster.warnings:
            warnings.warn(f"{self.raster.name}: {note}", MedimgWarning, stacklevel=4)
        return volume

    @property
    def blob(self) -> Blob:
        """The file with the values."""
        return self.raster.blob

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield a few slices at a time; the file is opened and unpacked once."""
        chosen = self._choose_slices(slices)
        for note in self.raster.warnings:
            warnings.warn(f"{self.raster.name}: {note}", MedimgWarning, stacklevel=4)
        with StoredValues(self.raster) as values:
            for start in range(0, len(chosen), size):
                yield self._read_volume(values, chosen[start : start + size], policies)

    def _choose_slices(self, slices: Sequence[int] | None) -> list[int]:
        _check_size(self.raster)
        if self.state is not None and _get_state(self.raster.name) != self.state:
            raise DecodeError(f"{self.raster.name} has changed since it was scanned; scan again")
        depth = self.raster.grid[0]
        return geometry.ascending_slices(range(depth) if slices is None else slices, depth)

    def _read_volume(self, values: StoredValues, chosen: list[int], policies: Policies) -> Volume:
        raster = self.raster
        array, steps = _read_values(raster, values, chosen, mapped=policies.mapped)
        if len(chosen) < raster.grid[0]:
            steps = (*steps, f"{len(chosen)} of {raster.grid[0]} slices read")
        return Volume(
            array=array,
            affine=geometry.subset_affine(raster.affine, chosen),
            modality=raster.modality,
            units=raster.units,
            photometric=raster.photometric,
            inverted=raster.inverted,
            space=raster.space,
            channels=raster.channel_names,
            display_range=raster.display_range,
            report=ReadReport(
                format=raster.format,
                files=raster.files[:1],
                transforms=(*raster.steps, *steps),
                warnings=raster.warnings,
            ),
        )


def _read_values(
    raster: Raster, values: StoredValues, chosen: Sequence[int], *, mapped: bool
) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    if (raster.slope, raster.intercept) != (1.0, 0.0):
        step = describe_rescale(raster.slope, raster.intercept)
        return values.read_rescaled(chosen), (step,)
    stored = map_values(raster, chosen) if mapped else None
    stored = values.read_stored(chosen) if stored is None else stored
    if raster.photometric != "RGB":
        return stored, ()
    if raster.channels == 4:
        return stored[:3], ("transparency dropped",)
    stated = raster.color == "RGB"
    return stored, () if stated else ("three bytes per voxel read as red, green and blue",)
