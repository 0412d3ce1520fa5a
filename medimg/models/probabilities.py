"""Probabilities from logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from medimg.models.input_checks import check_finite

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier

__all__ = ["model_probabilities", "probabilities"]


def probabilities(logits: Tensor, task: str) -> NDArray[np.float64]:
    """
    Return probabilities (n, K) float64 of logits (n, K): softmax, or with "multilabel" a sigmoid of each.

    Examples
    --------
    >>> probabilities(torch.zeros(1, 2), "multiclass").tolist()
    [[0.5, 0.5]]
    """
    scores = logits.detach().cpu().double()
    result: NDArray[np.float64] = (
        scores.softmax(dim=1) if task == "multiclass" else scores.sigmoid()
    ).numpy()
    return result


def model_probabilities(model: TransferClassifier, logits: Tensor) -> NDArray[np.float64]:
    """Return a model's probabilities (n, K) float64 of finite logits (n, K), calibrated if the model is."""
    check_finite(logits, "logits")
    scores = logits.detach().cpu().double()
    if model.calibration is not None:
        scores = torch.from_numpy(model.calibration.logit_map.apply(scores.numpy(), model.task))
    return probabilities(scores, model.task)
