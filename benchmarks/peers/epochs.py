"""Once through a data set, in shuffled batches, as training does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.utils.data import DataLoader, Dataset

from medimg.data.dataloader import EpochSampler, make_training_loader

if TYPE_CHECKING:
    from collections.abc import Callable

    import medimg

__all__ = ["Epoch", "by_loaders", "plain_epoch", "training_epoch"]

_BATCH: Final = 32
_LOADERS: Final = 8


@dataclass(frozen=True, slots=True)
class Epoch:
    """
    What an epoch went through.

    Attributes
    ----------
    count : int
        How many pictures were loaded.
    items : sequence
        What they were loaded from: (picture, label).
    """

    count: int
    items: Any


def plain_epoch(items: Dataset[Any]) -> int:
    """Load every batch by torch's own loader in this process; return how many pictures there were."""
    shuffled = DataLoader(items, batch_size=_BATCH, shuffle=True, generator=_seeded())
    return sum(len(pictures) for pictures, *_ in shuffled)


def by_loaders(items: Any) -> Callable[[], Epoch]:
    """Prepare epochs by torch's own loader with eight processes, which stay from one epoch to the next."""
    loader = DataLoader(
        items,
        batch_size=_BATCH,
        shuffle=True,
        num_workers=_LOADERS,
        persistent_workers=True,
        generator=_seeded(),
    )
    return lambda: Epoch(sum(len(pictures) for pictures, *_ in loader), items)


def training_epoch(items: medimg.ImageDataset) -> int:
    """Load every batch as ``fine_tune`` does, in this process; return how many pictures there were."""
    sampler = EpochSampler(len(items), seed=0)
    loader = make_training_loader(items, batch_size=_BATCH, workers=0, pin_memory=False, sampler=sampler)
    return sum(len(pictures) for pictures, *_ in loader)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
