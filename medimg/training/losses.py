"""Classification loss with class weights and label smoothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medimg.training.class_weights import class_weights, positive_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from medimg.training.class_weights import Balance

__all__ = ["ClassificationLoss", "make_loss"]


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
        weight = class_weights(labels, task, outputs, balanced=True)
    else:
        weight = positive_weights(labels)
    return ClassificationLoss(task, torch.tensor(weight, dtype=torch.float32), smoothing)
