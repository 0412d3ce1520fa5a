"""Series of an image of another library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count
from typing import TYPE_CHECKING

from medimg.core import geometry
from medimg.interop.image_object import ImageObject, open_image_object
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medimg.core.volume import Volume

__all__ = ["open_object"]

_NUMBERS = count()


def open_object(source: object) -> Series:
    """Return the series of an image in memory, whose values are converted when they are read."""
    found = open_image_object(source)
    # no two images have one name, by which files are compared
    name = f"<{found.format} image {next(_NUMBERS)}>"
    return Series(
        uid=name,
        modality=found.modality,
        description="",
        shape=found.shape,
        affine=found.affine,
        space=found.space,
        files=(name,),
        format=found.format,
        reader=_ObjectReader(found),
    )


@dataclass(frozen=True, slots=True)
class _ObjectReader:
    """Converts the values of an image."""

    image: ImageObject

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        return _take_slices(self.image.to_volume(), slices)

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield a few slices at a time; the values are converted once."""
        volume = self.image.to_volume()
        chosen = geometry.ascending_slices(
            range(volume.shape[1]) if slices is None else slices, volume.shape[1]
        )
        for start in range(0, len(chosen), size):
            yield _take_slices(volume, chosen[start : start + size])


def _take_slices(volume: Volume, slices: Sequence[int] | None) -> Volume:
    if slices is None or len(slices) == volume.shape[1]:
        return volume
    part = volume.take(slices)
    step = f"{part.shape[1]} of {volume.shape[1]} slices read"
    return replace(part, report=replace(part.report, transforms=(*volume.report.transforms, step)))
