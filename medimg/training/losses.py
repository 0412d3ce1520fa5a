"""Classification loss with class weights and label smoothing, class-balanced sampling, mixup."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Balance", "ClassificationLoss", "MixedBatch", "check_labels", "class_odds", "make_loss", "mixup"]

#: Values of ``balance=``.
Balance: TypeAlias = Literal["loss", "sampler"] | None


class ClassificationLoss(nn.Module):
    """
    Cross-entropy of each sample, softmax for "multiclass", sigmoid for "multilabel".

    A batch's loss is the plain mean over its samples, weighted or not: so the mean over several processes is
    that of their batches together. `weight` (K,) is that of each class, or of each label's positives. Label
    smoothing: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016.

    Examples
    --------
    >>> ClassificationLoss("multiclass")(torch.zeros(2, 2), torch.tensor([0, 1])).tolist()
    [0.6931471824645996, 0.6931471824645996]
    """

    weight: Tensor | None

    def __init__(self, task: str, weight: Tensor | None = None, smoothing: float = 0.0) -> None:
        super().__init__()
        self.task = task
        self.smoothing = smoothing
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss (B,) of each row of (B, K) logits, computed in float32."""
        scores = logits.float()
        if self.task == "multiclass":
            return F.cross_entropy(
                scores, labels, weight=self.weight, label_smoothing=self.smoothing, reduction="none"
            )
        targets = labels.float() * (1.0 - self.smoothing) + 0.5 * self.smoothing
        each = F.binary_cross_entropy_with_logits(scores, targets, pos_weight=self.weight, reduction="none")
        return each.mean(dim=1)


def check_labels(labels: NDArray[np.generic], classes: Sequence[str], task: str) -> None:
    """Raise TrainingError if a class has no example, or a label no negative one; it could not be learned."""
    if task == "multiclass":
        counts = np.bincount(labels.astype(np.int64), minlength=len(classes))
        missing = [name for name, n in zip(classes, counts, strict=True) if n == 0]
    else:
        positives = np.sum(labels.astype(np.float64) > 0.5, axis=0)
        pairs = zip(classes, positives, strict=True)
        missing = [name for name, n in pairs if n in (0, len(labels))]
    if missing:
        needed = "example" if task == "multiclass" else "positive or no negative example"
        raise TrainingError(
            f"no {needed} of {', '.join(map(repr, missing))} among the {len(labels)} training items: add "
            "some, use another split, or remove the class from dataset and model"
        )


def make_loss(
    labels: NDArray[np.generic], outputs: int, task: str, balance: Balance, smoothing: float = 0.0
) -> ClassificationLoss:
    """
    Return the loss for training labels (n,) or (n, K).

    With balance "loss", class k has weight n / (K n_k) (scikit-learn's "balanced"), and the positives of a
    label negatives / positives.
    """
    if balance != "loss":
        return ClassificationLoss(task, smoothing=smoothing)
    if task == "multiclass":
        counts = np.bincount(labels.astype(np.int64), minlength=outputs)
        weight = len(labels) / (outputs * counts)
    else:
        positives = np.sum(labels.astype(np.float64) > 0.5, axis=0)
        weight = (len(labels) - positives) / positives
    return ClassificationLoss(task, torch.tensor(weight, dtype=torch.float32), smoothing)


def class_odds(labels: NDArray[np.generic], task: str) -> Tensor:
    """
    Return sampling weights (n,) float64 of multiclass items, by which every class is drawn equally often.

    Examples
    --------
    >>> class_odds(np.array([0, 0, 1]), "multiclass").tolist()
    [0.5, 0.5, 1.0]
    """
    if task != "multiclass":
        # drawing the positives of one label more often changes how often the others are drawn
        raise TrainingError(
            'balance="sampler" needs task="multiclass": use balance="loss" for task="multilabel"'
        )
    classes = labels.astype(np.int64)
    return torch.from_numpy(1.0 / np.bincount(classes)[classes])


@dataclass(frozen=True, slots=True)
class MixedBatch:
    """Pairs of a mixed batch: the weight of the first image, and the index (B,) int64 of the second."""

    share: float
    partners: Tensor

    def losses(self, loss: ClassificationLoss, logits: Tensor, labels: Tensor) -> Tensor:
        """Return losses (B,) against both labels of each pair, weighted by their shares."""
        first: Tensor = loss(logits, labels)
        second: Tensor = loss(logits, labels[self.partners])
        return self.share * first + (1.0 - self.share) * second


def mixup(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, MixedBatch]:
    """
    Mix each image of a batch (B, 3, H, W) with another one (Zhang et al., mixup, ICLR 2018).

    The weight is drawn from Beta(alpha, alpha), once per batch, by a generator of the CPU.

    Examples
    --------
    >>> blend, pairs = mixup(torch.eye(2).view(2, 1, 1, 2), 0.2, torch.Generator().manual_seed(0))
    >>> bool(torch.allclose(blend.sum(dim=3), torch.ones(2, 1, 1)))
    True
    """
    partners = torch.randperm(len(images), generator=generator)
    drawn = int(torch.randint(2**62, (), generator=generator))
    share = float(np.random.default_rng(drawn).beta(alpha, alpha))
    partners = partners.to(images.device)
    return share * images + (1.0 - share) * images[partners], MixedBatch(share, partners)
