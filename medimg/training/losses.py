"""Classes of unequal size: what the loss or the sampling does about them."""

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

#: What ``balance=`` takes.
Balance: TypeAlias = Literal["loss", "sampler"] | None


class ClassificationLoss(nn.Module):
    """
    Cross-entropy of each sample, for one class among several or for several labels at once.

    A batch's loss is the plain mean over its samples, weighted or not: so the mean over several processes is
    that of their batches together. The weights of a data set have a mean of 1.

    Parameters
    ----------
    task : {"multiclass", "multilabel"}
        Softmax or sigmoid.
    weight : Tensor, optional
        (K,): for "multiclass" the weight of each class, for "multilabel" that of its positives.
    smoothing : float
        Share of the target that is spread evenly over the classes (Szegedy et al., Rethinking the Inception
        Architecture, CVPR 2016), or halfway between 0 and 1 for labels.

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


def make_loss(
    labels: NDArray[np.generic], outputs: int, task: str, balance: Balance, smoothing: float = 0.0
) -> ClassificationLoss:
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
    smoothing : float
        Of the targets.

    Returns
    -------
    ClassificationLoss
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
    Return how likely each item is to be drawn, (n,) float64, so that every class is drawn equally often.

    Raises
    ------
    TrainingError
        For "multilabel", where drawing one label more often draws the others along.

    Examples
    --------
    >>> class_odds(np.array([0, 0, 1]), "multiclass").tolist()
    [0.5, 0.5, 1.0]
    """
    if task != "multiclass":
        raise TrainingError('balance="sampler" is for task="multiclass"; use balance="loss" for labels')
    classes = labels.astype(np.int64)
    return torch.from_numpy(1.0 / np.bincount(classes)[classes])


@dataclass(frozen=True, slots=True)
class MixedBatch:
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


def mixup(images: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, MixedBatch]:
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
    pairs : MixedBatch
        For the loss.

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
