"""The tensors of many sources, and which of them are of which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from medimg.errors import MedimgError

__all__ = ["SourceTensors", "TensorBatch"]


@dataclass(frozen=True, slots=True, eq=False)
class SourceTensors:
    """
    The tensors of one of many sources.

    Attributes
    ----------
    index : int
        Which source, from 0.
    tensor : torch.Tensor
        (N, 3, H, W) float32, normalized; N is 0 where the source could not be read.
    slices : tuple of int
        For each picture, the index of its slice in the volume.
    sop_instance_uids : tuple of str
        Of the slice of each picture; "" where there is none.
    error : MedimgError or None
        Why the source could not be read.
    """

    index: int
    tensor: torch.Tensor = field(repr=False)
    slices: tuple[int, ...] = field(default=(), repr=False)
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    error: MedimgError | None = None


@dataclass(frozen=True, slots=True, eq=False)
class TensorBatch(Sequence["torch.Tensor"]):
    """
    The tensors of many sources, one after the other.

    As a sequence it gives for each source its part of the tensor: (n, 3, H, W), n = 0 where it failed.

    Attributes
    ----------
    tensor : torch.Tensor
        (N, 3, H, W) float32, normalized, in the order of the sources.
    counts : tuple of int
        How many pictures each source has; 0 where it failed.
    slices : tuple of int
        For each picture, the index of its slice in its volume.
    sop_instance_uids : tuple of str
        Of the slice of each picture; "" where there is none.
    errors : mapping of int to MedimgError
        Why sources failed, by their index.
    """

    tensor: torch.Tensor = field(repr=False)
    counts: tuple[int, ...] = field(repr=False)
    slices: tuple[int, ...] = field(repr=False)
    sop_instance_uids: tuple[str, ...] = field(repr=False)
    errors: Mapping[int, MedimgError] = field(repr=False)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each source begins in the tensor, and where the last one ends: one more than sources."""
        return tuple(accumulate(self.counts, initial=0))

    @property
    def sources(self) -> npt.NDArray[np.int64]:
        """The index of the source of each picture: (N,) int64; ``labels[batch.sources]`` are its labels."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, index: int) -> torch.Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[torch.Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> torch.Tensor | tuple[torch.Tensor, ...]:
        places = range(len(self))[index]
        offsets = self.offsets
        if isinstance(places, int):
            return self.tensor[offsets[places] : offsets[places + 1]]
        return tuple(self.tensor[offsets[n] : offsets[n + 1]] for n in places)

    def __repr__(self) -> str:
        size = "×".join(map(str, self.tensor.shape))
        return f"TensorBatch({len(self)} sources, {len(self.errors)} failed, {size})"
