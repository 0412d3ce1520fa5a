"""Once through a data set, in batches."""

from __future__ import annotations

from typing import Any, Final

from torch.utils.data import DataLoader, Dataset

__all__ = ["all_batches"]

_BATCH: Final = 32


def all_batches(items: Dataset[Any]) -> int:
    """Load every batch, in order, in this process; return how many pictures there were."""
    return sum(len(pictures) for pictures, *_ in DataLoader(items, batch_size=_BATCH))
