"""Series of images in memory: arrays, identified by their content, and images of other libraries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core import geometry
from medimg.core.content_hash import content_hash, json_text
from medimg.errors import ReadError
from medimg.interop.image_object import ImageObject, open_image_object
from medimg.io.series import Series

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.core.volume import Volume
    from medimg.io.series import Policies

__all__ = ["ArrayReader", "KnownContent", "array_series", "object_series"]

_SHOWN_DIGITS: Final = 12
_NUMBERS = count()


def array_series(volume: Volume, name: str, array: npt.NDArray[Any] | None = None) -> Series:
    """
    Return the series of a volume that is in memory.

    Its file is a name in angle brackets, with a digest of the content, so that others have other names.

    Parameters
    ----------
    volume : Volume
        Image.
    name : str
        Name for messages and tables, such as "array 3".
    array : numpy.ndarray, optional
        (C, D, H, W) values in place of those of the volume, of the same shape and type, so that many images
        need one volume only.
    """
    values = volume.array if array is None else array
    digest = _hash_volume(volume, values)
    path = f"<{name} {digest[:_SHOWN_DIGITS]}>"
    return Series(
        uid=path,
        modality=volume.modality,
        description="",
        shape=volume.shape,
        affine=volume.affine,
        space=volume.space,
        files=(path,),
        format="array",
        reader=ArrayReader(volume, values, name, digest),
    )


def object_series(source: object) -> Series:
    """Return the series of another library's image, whose values are converted when they are read."""
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


class _MemoryReader(ABC):
    """Takes slices of a volume in memory, about which nothing needs a policy."""

    __slots__ = ()

    @abstractmethod
    def load(self) -> Volume:
        """Return the whole volume."""

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        """Return the volume of some slices."""
        return _take_slices(self.load(), slices)

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield a few slices at a time; the volume is loaded once."""
        volume = self.load()
        chosen = list(range(volume.shape[1]) if slices is None else slices)
        for start in range(0, len(chosen), size):
            yield _take_slices(volume, chosen[start : start + size])


def _take_slices(volume: Volume, slices: Sequence[int] | None) -> Volume:
    depth = volume.shape[1]
    if slices is None or len(chosen := geometry.ascending_slices(slices, depth)) == depth:
        return volume
    step = f"{len(chosen)} of {depth} slices read"
    part = volume.take(chosen)
    return replace(part, report=replace(part.report, transforms=(*volume.report.transforms, step)))


@dataclass(frozen=True, slots=True, eq=False)
class _ObjectReader(_MemoryReader):
    """Converts the values of another library's image."""

    image: ImageObject

    def load(self) -> Volume:
        return self.image.to_volume()


class KnownContent(ABC):
    """A reader of what needs no file to be identified: its digest is that of the content."""

    __slots__ = ()

    @property
    @abstractmethod
    def digest(self) -> str:
        """Hexadecimal digest of the content."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Size of the content in bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayReader(_MemoryReader, KnownContent):
    """Returns the values of an array, if they are still those it was made with."""

    volume: Volume = field(repr=False)
    array: npt.NDArray[Any] = field(repr=False)
    name: str
    content: str

    @property
    def digest(self) -> str:
        """Digest of the values and of all else that pixels are made of."""
        return self.content

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return int(self.array.nbytes)

    def load(self) -> Volume:
        """Return the whole volume; ReadError if the array has changed."""
        if _hash_volume(self.volume, self.array) != self.digest:
            raise ReadError(
                f"{self.name} has changed since its dataset was made; make the dataset again, of a copy of "
                "the array"
            )
        return self.volume if self.array is self.volume.array else replace(self.volume, array=self.array)


def _hash_volume(volume: Volume, values: npt.NDArray[Any]) -> str:
    """Return a digest of all that pixels are made of."""
    facts = [
        [list(values.shape), values.dtype.str, volume.affine.tobytes().hex(), volume.space],
        [volume.modality, volume.units, volume.photometric, volume.inverted, volume.display_range],
        [repr(volume.voi), list(volume.channels)],
    ]
    padding = b"" if volume.padding is None else np.packbits(volume.padding).tobytes()
    return content_hash([json_text(facts), padding, np.ascontiguousarray(values).data.cast("B")])
