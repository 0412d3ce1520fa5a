"""Probabilities from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medimg.models.input_checks import check_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier

__all__ = ["model_probabilities", "probabilities"]


def probabilities(logits: Tensor, task: str, temperature: Sequence[float] = (1.0,)) -> NDArray[np.float64]:
    """
    Return probabilities (n, K) float64 of logits (n, K): softmax, or with "multilabel" a sigmoid of each.

    Logits are divided by the temperature: one number, or one per label.

    Examples
    --------
    >>> import torch
    >>> probabilities(torch.zeros(1, 2), "multiclass").tolist()
    [[0.5, 0.5]]
    """
    scores = logits.detach().cpu().double()
    if any(value != 1 for value in temperature):
        scores = scores / scores.new_tensor(temperature)
    result: NDArray[np.float64] = (
        scores.softmax(dim=1) if task == "multiclass" else scores.sigmoid()
    ).numpy()
    return result


def model_probabilities(model: TransferClassifier, logits: Tensor) -> NDArray[np.float64]:
    """Return a model's probabilities (n, K) float64 of finite logits (n, K), calibrated if the model is."""
    calibration = model.calibration
    check_finite(logits, "logits")
    return probabilities(logits, model.task, calibration.temperature if calibration else (1.0,))
