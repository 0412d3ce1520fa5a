"""Batches of a data set, bags of unequal length included."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler, Sampler

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from medimg.prep import Preprocess

__all__ = ["Batch", "LabeledImages", "collate", "evaluation_loader", "training_loader"]


class LabeledImages(Protocol):
    """What learning asks of a data set; :class:`medimg.ImageDataset` is one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""

    @property
    def unit(self) -> str:
        """What an item is: ``"slice"`` or ``"series"``."""

    @property
    def preprocess(self) -> Preprocess:
        """The recipe the items are made by."""

    @property
    def labels(self) -> NDArray[np.generic]:
        """Class index (n,) or indicators (n, K)."""

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item. Never shown."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Tensor, int | Tensor]: ...


class Batch(NamedTuple):
    """
    Several items.

    Attributes
    ----------
    images : Tensor
        (B, 3, H, W), or (B, N, 3, H, W) with N the length of the longest bag; shorter ones end in zeros.
    labels : Tensor
        (B,) int64 or (B, K) float32.
    mask : Tensor or None
        (B, N) bool: which slices are there; None where all are.
    indices : Tensor
        (B,) int64: which items of the data set these are.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor | None
    indices: Tensor


class _Indexed(Dataset[tuple[Tensor, Any, int]]):
    """Items together with their index, by which duplicates of distributed sampling are known."""

    def __init__(self, items: LabeledImages) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        image, label = self.items[index]
        return image, label, index

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any, int]]:
        several = getattr(self.items, "__getitems__", None)
        if several is None:
            return [self[index] for index in indices]
        return [(*item, index) for item, index in zip(several(indices), indices, strict=True)]


def collate(items: Sequence[tuple[Tensor, Any, int]]) -> Batch:
    """
    Put items together.

    Parameters
    ----------
    items : sequence of (Tensor, label, index)
        Images (3, H, W), or bags (N, 3, H, W) of any lengths.

    Returns
    -------
    Batch

    Examples
    --------
    >>> batch = collate([(torch.ones(2, 3, 8, 8), 0, 0), (torch.ones(3, 3, 8, 8), 1, 1)])
    >>> tuple(batch.images.shape), batch.mask.sum(dim=1).tolist()
    ((2, 3, 3, 8, 8), [2, 3])
    """
    images = [image for image, _, _ in items]
    labels = torch.stack([torch.as_tensor(label) for _, label, _ in items])
    indices = torch.tensor([index for _, _, index in items])
    lengths = [len(image) for image in images]
    if images[0].ndim == 3 or len(set(lengths)) == 1:
        return Batch(_stacked(images), labels, None, indices)
    padded = images[0].new_zeros(len(images), max(lengths), *images[0].shape[1:])
    for row, image in zip(padded, images, strict=True):
        row[: len(image)] = image
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Batch(padded, labels, mask, indices)


def _stacked(images: list[Tensor]) -> Tensor:
    """Stack images; those that lie one behind the other in one block of memory already are not copied."""
    first, size = images[0], images[0].numel()
    block = first.untyped_storage().data_ptr()
    in_a_row = all(
        image.is_contiguous()
        and image.shape == first.shape
        and image.dtype == first.dtype
        and image.untyped_storage().data_ptr() == block
        and image.storage_offset() == first.storage_offset() + n * size
        for n, image in enumerate(images)
    )
    if not in_a_row or first.requires_grad:
        return torch.stack(images)
    return first.as_strided((len(images), *first.shape), (size, *first.stride()))


def training_loader(
    items: LabeledImages,
    *,
    batch_size: int,
    num_workers: int,
    pin_memory: bool,
    generator: torch.Generator,
    sampler: Sampler[int] | None = None,
) -> DataLoader[tuple[Tensor, Any, int]]:
    """
    Return shuffled batches, in an order that the generator alone decides.

    A last batch of a single item is left out of an epoch, since batch normalization can't be trained on one.
    """
    lone = len(items) > batch_size > 1 and len(items) % batch_size == 1
    return DataLoader(
        _Indexed(items),
        batch_size=batch_size,
        sampler=sampler or RandomSampler(_Indexed(items), generator=generator),
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        drop_last=lone,
        generator=generator,
        persistent_workers=num_workers > 0,
    )


def evaluation_loader(
    items: LabeledImages, *, batch_size: int, num_workers: int, pin_memory: bool = False
) -> DataLoader[tuple[Tensor, Any, int]]:
    """Return batches in the order of the data set."""
    return DataLoader(
        _Indexed(items),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        # without one of its own, a loader draws from torch's global random state
        generator=torch.Generator(),
    )
