"""Exponential moving average of weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

from torch import Tensor
from torch.optim.swa_utils import AveragedModel

if TYPE_CHECKING:
    from medimg.models.classifier import TransferClassifier

__all__ = ["WeightAverage"]


class WeightAverage(AveragedModel):
    """
    Exponential moving average of a model's parameters and buffers.

    Lightning's own callback starts a new average with each fit; this one runs through all phases.
    """

    def __init__(self, model: TransferClassifier, decay: float) -> None:
        super().__init__(model, avg_fn=partial(_average, decay=decay), use_buffers=True)
        self.update_parameters(model)

    @property
    def classifier(self) -> TransferClassifier:
        """Model with the averaged weights."""
        return cast("TransferClassifier", self.module)


def _average(average: Tensor, current: Tensor, count: Tensor | int, *, decay: float) -> Tensor:
    """Return the updated average; it moves faster in the first steps, far from where training ends."""
    share = 1.0 - min(decay, (1.0 + float(count)) / (10.0 + float(count)))
    return average + share * (current - average)
