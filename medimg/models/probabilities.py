"""Logits into probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medimg.models._input_checks import checked_finite

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier

__all__ = ["model_probabilities", "probabilities"]


def probabilities(logits: Tensor, task: str, temperature: Sequence[float] = (1.0,)) -> NDArray[np.float64]:
    """
    Turn logits into probabilities, in float64.

    Parameters
    ----------
    logits : Tensor
        (n, K).
    task : {"multiclass", "multilabel"}
        Softmax over the classes, or a sigmoid of each.
    temperature : sequence of float
        What logits are divided by: one number, or one for each label.

    Returns
    -------
    numpy.ndarray
        (n, K) float64.

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
    """
    Turn a model's logits into its probabilities: calibrated ones, if it is calibrated.

    Parameters
    ----------
    model : TransferClassifier
        Its task and calibration count.
    logits : Tensor
        (n, K).

    Returns
    -------
    numpy.ndarray
        (n, K) float64.

    Raises
    ------
    TrainingError
        If a logit is not finite, of which no class is the likeliest.
    """
    calibration = model.calibration
    checked_finite(logits, "logits")
    return probabilities(logits, model.task, calibration.temperature if calibration else (1.0,))
