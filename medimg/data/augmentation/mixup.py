"""Mixup of pairs of images and their losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["MixedBatch", "mixup"]


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """Pairs of a mixed batch: the weight of the first image, and the index (B,) int64 of the second."""

    share: float
    partners: Tensor

    def losses(self, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> Tensor:
        """Return losses (B,) against both labels of each pair, weighted by their shares."""
        first, second = loss(logits, labels), loss(logits, labels[self.partners])
        return self.share * first + (1.0 - self.share) * second


def mixup(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, MixedBatch]:
    """
    Mix each image of a batch (B, C, H, W) with another one (Zhang et al., mixup, ICLR 2018).

    The weight is drawn from Beta(alpha, alpha), once per batch, by a generator of the CPU.

    >>> blend, pairs = mixup(torch.eye(2).view(2, 1, 1, 2), 0.2, torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(blend.sum(dim=3), torch.ones(2, 1, 1)))
    True
    """
    partners = torch.randperm(len(images), generator=generator)
    drawn = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(drawn).beta(alpha, alpha))
    partners = partners.to(images.device)
    return share * images + (1.0 - share) * images[partners], MixedBatch(share, partners)
