"""Logistic regression on embeddings, returned as the weights of a linear layer."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from medimg.training.class_weights import class_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["LinearFit", "LinearProbe", "log_loss"]

_MOST_STEPS: Final = 1000
_SGD_EPOCHS: Final = 30
_SGD_BATCH: Final = 256
_SGD_RATE: Final = 3e-3
#: Logit of a class without examples, whose probability is then about 0.
_ABSENT: Final = -30.0


@dataclass(frozen=True, slots=True, eq=False)
class LinearFit:
    """Linear layer on embeddings, standardization included: weight (K, F) and bias (K,) in float64."""

    weight: NDArray[np.float64]
    bias: NDArray[np.float64]
    task: str

    def probabilities(self, x: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Return probabilities (n, K) float64 of embeddings (n, F), by softmax or sigmoid."""
        from scipy.special import expit, softmax

        logits = x.astype(np.float64) @ self.weight.T + self.bias
        return np.asarray(softmax(logits, axis=1) if self.task == "multiclass" else expit(logits))


@dataclass(frozen=True, slots=True)
class LinearProbe:
    """
    Fit of K outputs: softmax for "multiclass", one logistic regression per label for "multilabel".

    "logistic" is scikit-learn's ``LogisticRegression`` (L-BFGS); "sgd" minimizes the same penalized loss by
    Adam, in 30 epochs with batches of 256 items, for large data.
    """

    task: str
    outputs: int
    method: str
    balanced: bool
    seed: int

    def path(
        self, x: NDArray[np.float32], labels: NDArray[np.generic], strengths: Iterable[float]
    ) -> Iterator[LinearFit]:
        """Yield a fit for each C (`strengths`), warm-started from the one before; `x` is (n, F)."""
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        scaled = scaler.fit_transform(x.astype(np.float64))
        fits = self._fit_sgd(scaled, labels, strengths) if self.method == "sgd" else None
        for weight, bias in fits or self._fit_logistic(scaled, labels, strengths):
            folded = weight / scaler.scale_
            yield LinearFit(folded, bias - folded @ scaler.mean_, self.task)

    def _fit_logistic(
        self, x: NDArray[np.float64], labels: NDArray[np.generic], strengths: Iterable[float]
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        if self.task == "multiclass":
            models = [_Regression(labels.astype(np.int64), self.balanced)]
        else:
            models = [_Regression((column > 0.5).astype(np.int64), self.balanced) for column in labels.T]
        for strength in strengths:
            fitted = [model.fit(x, strength) for model in models]
            if self.task == "multiclass":
                yield _expand_classes(*fitted[0], self.outputs)
            else:
                yield _join_labels(fitted)

    def _fit_sgd(
        self, x: NDArray[np.float64], labels: NDArray[np.generic], strengths: Iterable[float]
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        inputs = torch.from_numpy(x.astype(np.float32))
        one_label = self.task == "multiclass"
        targets = torch.from_numpy(np.asarray(labels, np.int64 if one_label else np.float32))
        weights = torch.from_numpy(_item_weights(labels, self.task, self.outputs, self.balanced)).float()
        weight = torch.zeros(self.outputs, x.shape[1], requires_grad=True)
        bias = torch.zeros(self.outputs, requires_grad=True)
        generator = torch.Generator().manual_seed(self.seed)
        steps = _SGD_EPOCHS * -(-len(x) // _SGD_BATCH)
        # a regression of two classes has one row of weights, twice as long as each of these
        share = 1.0 if one_label and self.outputs == 2 else 0.5
        for strength in strengths:
            optimizer = torch.optim.Adam([weight, bias], lr=_SGD_RATE)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for _ in range(_SGD_EPOCHS):
                order = torch.randperm(len(x), generator=generator)
                for batch in torch.split(order, _SGD_BATCH):
                    logits = inputs[batch] @ weight.T + bias
                    loss = _item_losses(logits, targets[batch], one_label) * weights[batch]
                    penalty = share * weight.square().sum() / (strength * len(x))
                    optimizer.zero_grad()
                    torch.autograd.backward(loss.sum() / len(batch) + penalty)
                    optimizer.step()
                    schedule.step()
            yield weight.detach().double().numpy(), bias.detach().double().numpy()


class _Regression:
    """scikit-learn's logistic regression, also for labels of a single class."""

    def __init__(self, labels: NDArray[np.int64], balanced: bool) -> None:
        from sklearn.linear_model import LogisticRegression

        self.labels = labels
        self.classes = np.unique(labels)
        self.model = LogisticRegression(
            class_weight="balanced" if balanced else None, max_iter=_MOST_STEPS, warm_start=True
        )

    def fit(
        self, x: NDArray[np.float64], strength: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Return classes, weights and intercepts, in one row for two classes like scikit-learn's."""
        from sklearn.exceptions import ConvergenceWarning

        if len(self.classes) < 2:
            return self.classes, np.zeros((1, x.shape[1])), np.zeros(1)
        with warnings.catch_warnings():
            # weights of separable classes grow, ever more slowly, as far as C permits
            warnings.simplefilter("ignore", ConvergenceWarning)
            self.model.set_params(C=strength).fit(x, self.labels)
        return self.classes, self.model.coef_.copy(), self.model.intercept_.copy()


def _expand_classes(
    classes: NDArray[np.int64], weight: NDArray[np.float64], bias: NDArray[np.float64], outputs: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (K, F) and biases (K,); two classes get half the difference each: the same softmax."""
    if len(classes) == 2:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    full_weight, full_bias = np.zeros((outputs, weight.shape[1])), np.full(outputs, _ABSENT)
    full_weight[classes], full_bias[classes] = weight, bias
    return full_weight, full_bias


def _join_labels(
    fitted: list[tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (K, F) and biases (K,) of the regressions of K labels."""
    weight = np.concatenate([w for _, w, _ in fitted])
    alone = {0: _ABSENT, 1: -_ABSENT}
    bias = [b[0] if len(classes) == 2 else alone[int(classes[0])] for classes, _, b in fitted]
    return weight, np.array(bias)


def log_loss(
    labels: NDArray[np.generic],
    probabilities: NDArray[np.float64],
    task: str,
    weights: NDArray[np.float64],
    patients: Sequence[str],
) -> tuple[float, float]:
    """
    Return the weighted mean negative log-likelihood of probabilities (n, K), and its error over patients.

    >>> loss, error = log_loss(np.array([0, 1]), np.full((2, 2), 0.5), "multiclass", np.ones(2), ["a", "b"])
    >>> round(loss, 4), error
    (0.6931, 0.0)
    """
    clipped = np.clip(probabilities, 1e-15, 1 - 1e-15)
    if task == "multiclass":
        classes = labels.astype(np.int64)
        losses, weight = -np.log(clipped[np.arange(len(clipped)), classes]), weights[classes]
    else:
        true = np.asarray(labels) > 0.5
        losses = -np.log(np.where(true, clipped, 1 - clipped))
        weight = np.where(true, weights[1], weights[0])
    mean = (losses * weight).sum() / weight.sum()
    residuals = ((losses - mean) * weight).reshape(len(losses), -1).sum(axis=1)
    _, patient = np.unique(np.asarray(patients, dtype=np.str_), return_inverse=True)
    error = np.sqrt((np.bincount(patient, residuals) ** 2).sum()) / weight.sum()
    return float(mean), float(error)


def _item_weights(
    labels: NDArray[np.generic], task: str, outputs: int, balanced: bool
) -> NDArray[np.float64]:
    """Return the weight of each item: (n,), or (n, K) of each label."""
    weights = class_weights(labels, task, outputs, balanced)
    if task == "multiclass":
        return np.asarray(weights[labels.astype(np.int64)])
    return np.asarray(np.where(np.asarray(labels) > 0.5, weights[1], weights[0]))


def _item_losses(logits: torch.Tensor, targets: torch.Tensor, one_label: bool) -> torch.Tensor:
    """Return losses (n,), or (n, K) of each label."""
    if one_label:
        return torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
