"""Classes of unequal size: what the loss or the sampling does about them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import WeightedRandomSampler

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["Balance", "ClassificationLoss", "check_labels", "make_loss", "make_sampler"]

#: What ``balance=`` takes.
Balance: TypeAlias = Literal["loss", "sampler"] | None


class ClassificationLoss(nn.Module):
    """
    Cross-entropy, for one class among several or for several labels at once.

    Parameters
    ----------
    task : {"multiclass", "multilabel"}
        Softmax or sigmoid.
    weight : Tensor, optional
        (K,): for "multiclass" the weight of each class, for "multilabel" that of its positives.
    """

    weight: Tensor | None

    def __init__(self, task: str, weight: Tensor | None = None) -> None:
        super().__init__()
        self.task = task
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of (B, K) logits, computed in float32."""
        scores = logits.float()
        if self.task == "multiclass":
            return F.cross_entropy(scores, labels, weight=self.weight)
        return F.binary_cross_entropy_with_logits(scores, labels.float(), pos_weight=self.weight)


def check_labels(labels: NDArray[np.generic], classes: Sequence[str], task: str) -> None:
    """
    Refuse training labels that can't teach every class.

    Parameters
    ----------
    labels : numpy.ndarray
        (n,) int or (n, K) float.
    classes : sequence of str
        Names of the classes.
    task : {"multiclass", "multilabel"}
        What the labels are.

    Raises
    ------
    TrainingError
        If a class has no example, or, for "multilabel", no counterexample: its output would never be trained,
        and a probability would be reported for it all the same.
    """
    if task == "multiclass":
        counts = np.bincount(labels.astype(np.int64), minlength=len(classes))
        untaught = [name for name, n in zip(classes, counts, strict=True) if n == 0]
    else:
        positives = np.sum(labels.astype(np.float64) > 0.5, axis=0)
        pairs = zip(classes, positives, strict=True)
        untaught = [name for name, n in pairs if n in (0, len(labels))]
    if untaught:
        lacking = "example" if task == "multiclass" else "example, or no counterexample,"
        raise TrainingError(
            f"no {lacking} of {', '.join(map(repr, untaught))} among the {len(labels)} training items; add "
            "some, split otherwise, or leave the class out of the data set and the model"
        )


def make_loss(labels: NDArray[np.generic], outputs: int, task: str, balance: Balance) -> ClassificationLoss:
    """
    Return the loss to train with.

    Parameters
    ----------
    labels : numpy.ndarray
        (n,) int or (n, K) float; every class is there.
    outputs : int
        Number K of classes.
    task : {"multiclass", "multilabel"}
        What the labels are.
    balance : {"loss", "sampler"} or None
        With "loss", class k weighs n / (K n_k) (scikit-learn's "balanced"), and the positives of a label
        weigh negatives / positives.

    Returns
    -------
    ClassificationLoss
    """
    if balance != "loss":
        return ClassificationLoss(task)
    if task == "multiclass":
        counts = np.bincount(labels.astype(np.int64), minlength=outputs)
        weight = len(labels) / (outputs * counts)
    else:
        positives = np.sum(labels.astype(np.float64) > 0.5, axis=0)
        weight = (len(labels) - positives) / positives
    return ClassificationLoss(task, torch.tensor(weight, dtype=torch.float32))


def make_sampler(labels: NDArray[np.generic], task: str, generator: torch.Generator) -> WeightedRandomSampler:
    """
    Return a sampler that draws every class equally often, with replacement.

    Raises
    ------
    TrainingError
        For "multilabel", where drawing one label more often draws the others along.
    """
    if task != "multiclass":
        raise TrainingError('balance="sampler" is for task="multiclass"; use balance="loss" for labels')
    classes = labels.astype(np.int64)
    weights = 1.0 / np.bincount(classes)[classes]
    return WeightedRandomSampler(weights.tolist(), len(classes), generator=generator)
