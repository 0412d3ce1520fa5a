"""Rendered images of one source: in memory or mapped from a file, in the type that they are stored in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import torch
from isal import isal_zlib

from medimg._native.library import load_library
from medimg._native.normalizing import normalize
from medimg.errors import ReadError
from medimg.preprocessing.array_intensity import list_normalization
from medimg.preprocessing.intensity import normalize_into

if TYPE_CHECKING:
    import ctypes

    import numpy.typing as npt

    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.render import Rendered

__all__ = [
    "DTYPES",
    "DamagedError",
    "RenderedImages",
    "StoredDtype",
    "compute_crc32",
    "decode_intensity",
    "encode_intensity",
    "normalize_images",
]

#: Types that images can be stored in.
StoredDtype: TypeAlias = Literal["float16", "uint8", "float32"]
DTYPES: Final[dict[StoredDtype, torch.dtype]] = {
    "float16": torch.float16,
    "uint8": torch.uint8,
    "float32": torch.float32,
}

# Small enough for a core's cache
_CHUNK: Final = 4


class DamagedError(ReadError):
    """Cached images are not those that were written."""


@dataclass(slots=True, eq=False)
class RenderedImages:
    """
    The images of one source, before normalization.

    They may be mapped from a file, and must not be written to.
    """

    planes: torch.Tensor  # (N, 1 or 3, *size) float32 or float16, 0 to 1, or uint8, 0 to 255
    slices: tuple[int, ...]
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    #: (N,) of each mapped image, checked when it is first taken; None for images in memory
    crc32: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    #: whether their reader keeps them, and bounds how many
    is_kept: bool = field(default=False, kw_only=True, repr=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def from_rendered(cls, rendered: Rendered) -> RenderedImages:
        """Wrap images that were just rendered."""
        return cls(rendered.planes, rendered.slices, rendered.sop_instance_uids)

    def take(self, image: int | None = None) -> torch.Tensor:
        """Return one image (1, 1 or 3, H, W), or all, as stored; DamagedError if mapped bytes changed."""
        wanted = range(len(self.planes)) if image is None else (image,)
        if self.crc32 is not None:
            for n in wanted:
                if n not in self._checked:
                    if _crc32(self.planes[n]) != self.crc32[n]:
                        raise DamagedError("its pixels don't match their checksum")
                    self._checked.add(n)
        return self.planes if image is None else self.planes[image : image + 1]


def compute_crc32(images: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return the CRC-32 of each image: (N,) int64."""
    return np.array([_crc32(image) for image in images], dtype=np.int64)


def _crc32(image: torch.Tensor) -> int:
    return isal_zlib.crc32(image.numpy().reshape(-1).view(np.uint8).data)


def encode_intensity(images: torch.Tensor, dtype: StoredDtype) -> torch.Tensor:
    """
    Convert intensities, 0 to 1, to the stored type.

    Rounding errors are at most 2⁻¹² (0.00025) in float16, 1/510 (0.002) in uint8, 0 in float32.

    Examples
    --------
    >>> encode_intensity(torch.tensor([0.0, 0.5, 1.0]), "uint8").tolist()
    [0, 128, 255]
    """
    if dtype == "uint8":
        return (images * 255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)
    return images.to(DTYPES[dtype])


def decode_intensity(images: torch.Tensor) -> torch.Tensor:
    """Convert stored images to float32, 0 (black) to 1 (white); float32 images are returned unchanged."""
    if images.dtype == torch.uint8:
        return images.to(torch.float32).div_(255.0)
    return images.to(torch.float32)


def normalize_images(
    recipe: Preprocess, images: list[torch.Tensor], out: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Normalize stored images (n, 1 or C, *size) into `out` or a new tensor, (N, C, *size) float32.

    Bit-for-bit what ``recipe.normalize`` returns.
    """
    count = sum(given.shape[0] for given in images)
    if out is None:
        # numpy allocates huge pages if the system has them
        out = torch.from_numpy(np.empty((count, *recipe.image_shape), np.float32))
    library = load_library()
    done = 0
    for group in _group_by_layout(images, _CHUNK if library is None else count):
        more = done + sum(given.shape[0] for given in group)
        if library is not None and all(given.is_contiguous() for given in group):
            _normalize_compiled(library, recipe, group, out[done:more])
        else:
            # a few images at a time, so that they stay in a core's cache
            planes = decode_intensity(torch.cat(group) if len(group) > 1 else group[0])
            normalize_into(out[done:more], planes, *recipe.normalization)
        done = more
    return out


def _normalize_compiled(
    library: ctypes.CDLL, recipe: Preprocess, images: list[torch.Tensor], out: torch.Tensor
) -> None:
    normalize(
        library,
        [image for given in images for image in given.numpy()],
        list_normalization(*recipe.normalization),
        out.numpy(),
        torch.get_num_threads(),
    )


def _group_by_layout(images: list[torch.Tensor], most: int) -> list[list[torch.Tensor]]:
    """Group neighbors of the same dtype and number of channels, up to `most` images."""
    groups: list[list[torch.Tensor]] = []
    last, room = None, 0
    for given in images:
        for part in torch.split(given, most) if given.shape[0] > most else (given,):
            size, found = part.shape[0], (part.dtype, part.shape[1])
            if found != last or size > room:
                groups.append([])
                last, room = found, most
            groups[-1].append(part)
            room -= size
    return groups
