"""Mixup: pairs of pictures, and of their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from medimg.learn.balance import ClassificationLoss

__all__ = ["Mixed", "mixed"]


@dataclass(frozen=True, slots=True)
class Mixed:
    """
    Which pictures were mixed, and how.

    Parameters
    ----------
    share : float
        Of the first of each pair.
    partners : Tensor
        (B,) int64: the second of each pair.
    """

    share: float
    partners: Tensor

    def losses(self, loss: ClassificationLoss, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (B,) losses against both labels of each pair, by their shares."""
        first: Tensor = loss(logits, labels)
        second: Tensor = loss(logits, labels[self.partners])
        return self.share * first + (1.0 - self.share) * second


def mixed(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Mixed]:
    """
    Mix each picture of a batch with another one of it (Zhang et al., mixup, ICLR 2018).

    Parameters
    ----------
    images : Tensor
        (B, 3, H, W).
    alpha : float
        The share is drawn from Beta(alpha, alpha), once for the batch.
    generator : torch.Generator
        Of the CPU.

    Returns
    -------
    images : Tensor
        Of the same shape.
    pairs : Mixed
        For the loss.

    Examples
    --------
    >>> blend, pairs = mixed(torch.eye(2).view(2, 1, 1, 2), 0.2, torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(blend.sum(dim=3), torch.ones(2, 1, 1)))
    True
    """
    partners = torch.randperm(len(images), generator=generator)
    drawn = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(drawn).beta(alpha, alpha))
    partners = partners.to(images.device)
    return share * images + (1.0 - share) * images[partners], Mixed(share, partners)
