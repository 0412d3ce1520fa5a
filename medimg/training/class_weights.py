"""Weights for imbalanced classes: in the loss, or in how often items are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import torch

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = [
    "BALANCES",
    "Balance",
    "check_labels",
    "class_weights",
    "list_class_weights",
    "positive_weights",
    "sampling_weights",
]

#: Values of ``balance=``.
Balance: TypeAlias = Literal["loss", "sampler"] | None
BALANCES: Final[tuple[Balance, ...]] = ("loss", "sampler", None)


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


def class_weights(
    labels: NDArray[np.generic], task: str, outputs: int, balanced: bool
) -> NDArray[np.float64]:
    """
    Return weights (K,) of classes, or (2, K) of the absence and presence of each label.

    Balanced is scikit-learn's n / (number of classes x items of the class).

    >>> class_weights(np.array([0, 0, 0, 1]), "multiclass", 2, balanced=True).round(3).tolist()
    [0.667, 2.0]
    """
    if not balanced:
        return np.ones(outputs if task == "multiclass" else (2, outputs))
    if task == "multiclass":
        counts = np.bincount(labels.astype(np.int64), minlength=outputs)
        present = counts > 0
        return np.asarray(np.where(present, len(labels) / (present.sum() * np.maximum(counts, 1)), 0.0))
    positives = np.sum(np.asarray(labels) > 0.5, axis=0)
    counts = np.stack([len(labels) - positives, positives])
    return np.asarray(len(labels) / (2 * np.maximum(counts, 1)))


def positive_weights(labels: NDArray[np.generic]) -> NDArray[np.float64]:
    """
    Return the weight negatives / positives of the positives of each label of (n, K): (K,).

    >>> positive_weights(np.array([[0], [0], [1]])).tolist()
    [2.0]
    """
    positives = np.sum(labels.astype(np.float64) > 0.5, axis=0)
    return np.asarray((len(labels) - positives) / positives)


def list_class_weights(
    labels: NDArray[np.generic], task: str, outputs: int, balance: Balance
) -> list[float] | None:
    """
    Return by how much more an item of each class counts, or a label's presence than its absence: K numbers.

    Items that are drawn more often count as much as those with a weight in the loss; None without a balance.

    >>> list_class_weights(np.array([0, 0, 0, 1]), "multiclass", 2, "loss")
    [0.6666666666666666, 2.0]
    """
    if balance is None:
        return None
    weights = class_weights(labels, task, outputs, balanced=True)
    return [float(w) for w in (weights if task == "multiclass" else weights[1] / weights[0])]


def sampling_weights(labels: NDArray[np.generic], task: str) -> torch.Tensor:
    """
    Return sampling weights (n,) float64 of multiclass items, by which every class is drawn equally often.

    >>> sampling_weights(np.array([0, 0, 1]), "multiclass").tolist()
    [0.5, 0.5, 1.0]
    """
    if task != "multiclass":
        # drawing the positives of one label more often changes how often the others are drawn
        raise TrainingError(
            'balance="sampler" needs task="multiclass": use balance="loss" for task="multilabel"'
        )
    classes = labels.astype(np.int64)
    return torch.from_numpy(1.0 / np.bincount(classes)[classes])
