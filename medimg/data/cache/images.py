"""The pictures of one source: in memory or mapped from a file, in the type that they are kept in."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import torch

from medimg.errors import ReadError
from medimg.preprocessing.intensity import normalize_into

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.preprocessing.preprocess import Preprocess
    from medimg.preprocessing.render import Rendered

__all__ = [
    "DTYPES",
    "DamagedError",
    "Kept",
    "RenderedImages",
    "checksums",
    "normalize",
    "stored_type",
    "to_intensity",
]

#: What pictures can be kept as.
Kept: TypeAlias = Literal["float16", "uint8", "float32"]
DTYPES: Final[dict[Kept, torch.dtype]] = {
    "float16": torch.float16,
    "uint8": torch.uint8,
    "float32": torch.float32,
}

# Small enough for a core's cache
_CHUNK: Final = 4


class DamagedError(ReadError):
    """Kept pictures are not those that were written."""


@dataclass(slots=True, eq=False)
class RenderedImages:
    """
    The pictures of one source, before normalization.

    Attributes
    ----------
    planes : torch.Tensor
        (N, 1 or 3, H, W) float32 or float16, 0 (black) to 1 (white), or uint8, 0 to 255; may be mapped from
        a file, and is not to be written to.
    slices : tuple of int
        See :class:`medimg.prep.Rendered`.
    sop_instance_uids : tuple of str
        See :class:`medimg.prep.Rendered`.
    checksums : numpy.ndarray or None
        (N,) CRC-32 of each, where they are mapped; each is checked when it is first taken.
    """

    planes: torch.Tensor
    slices: tuple[int, ...]
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    checksums: npt.NDArray[np.int64] | None = field(default=None, repr=False)
    _checked: set[int] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def of(cls, rendered: Rendered) -> RenderedImages:
        """Return what was rendered."""
        return cls(rendered.planes, rendered.slices, rendered.sop_instance_uids)

    def taken(self, picture: int | None = None) -> torch.Tensor:
        """
        Return one picture (1, 1 or 3, H, W), or all, in the type that they are kept in.

        Raises
        ------
        DamagedError
            If they are mapped, and their bytes have changed.
        """
        wanted = range(len(self.planes)) if picture is None else (picture,)
        if self.checksums is not None:
            for n in wanted:
                if n not in self._checked:
                    if _crc(self.planes[n]) != self.checksums[n]:
                        raise DamagedError("its pixels don't match their checksum")
                    self._checked.add(n)
        return self.planes if picture is None else self.planes[picture : picture + 1]


def checksums(planes: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return the CRC-32 of each picture: (N,) int64."""
    return np.array([_crc(plane) for plane in planes], dtype=np.int64)


def _crc(plane: torch.Tensor) -> int:
    return zlib.crc32(plane.numpy().reshape(-1).view(np.uint8).data)


def stored_type(planes: torch.Tensor, kind: Kept) -> torch.Tensor:
    """
    Return pictures, 0 to 1, in the type that they are to be kept in.

    Their brightness is off by at most 2⁻¹² (0.00025) in float16, 1/510 (0.002) in uint8, 0 in float32.

    Examples
    --------
    >>> stored_type(torch.tensor([0.0, 0.5, 1.0]), "uint8").tolist()
    [0, 128, 255]
    """
    if kind == "uint8":
        return (planes * 255.0).round_().clamp_(0.0, 255.0).to(torch.uint8)
    return planes.to(DTYPES[kind])


def to_intensity(planes: torch.Tensor) -> torch.Tensor:
    """Return kept pictures as float32, 0 (black) to 1 (white); what is so already, as it is."""
    if planes.dtype == torch.uint8:
        return planes.to(torch.float32).div_(255.0)
    return planes.to(torch.float32)


def normalize(
    recipe: Preprocess, pictures: list[torch.Tensor], out: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Normalize pictures from several places at once, a few at a time so that they stay in a core's cache.

    Parameters
    ----------
    recipe : Preprocess
        How to normalize.
    pictures : list of torch.Tensor
        (n, 1 or 3, H, W) each, as they are kept.
    out : torch.Tensor, optional
        Where to: (N, 3, H, W) float32, N the number of all of them.

    Returns
    -------
    torch.Tensor
        `out`, or a new one; the same bits as ``recipe.normalize`` gives of the brightness of each.
    """
    count = sum(given.shape[0] for given in pictures)
    if out is None:
        # numpy's memory comes in huge pages where the system has them
        out = torch.from_numpy(np.empty((count, 3, *recipe.hw), np.float32))
    done = 0
    for group in _alike(pictures):
        planes = to_intensity(torch.cat(group) if len(group) > 1 else group[0])
        more = done + planes.shape[0]
        normalize_into(out[done:more], planes, recipe.mean, recipe.std)
        done = more
    return out


def _alike(pictures: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Group neighbors of one type and number of channels, up to the size of a chunk."""
    groups: list[list[torch.Tensor]] = []
    kind, room = None, 0
    for given in pictures:
        for part in torch.split(given, _CHUNK) if given.shape[0] > _CHUNK else (given,):
            size, found = part.shape[0], (part.dtype, part.shape[1])
            if found != kind or size > room:
                groups.append([])
                kind, room = found, _CHUNK
            groups[-1].append(part)
            room -= size
    return groups
