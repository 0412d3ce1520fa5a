"""Weight of a distance relative to the classification loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from medimg._validation import check_choice, check_number
from medimg.adapt.adversarial_losses import ramp

__all__ = ["TermWeight", "cap_field", "check_cap", "ramped_field"]


def ramped_field() -> Any:
    """Return the field "ramped" of a method."""
    return field(default=False, metadata={"before": False})


def cap_field() -> Any:
    """Return the field "cap" of a method."""
    return field(default=None, metadata={"before": None})


def check_cap(ramped: bool, cap: float | None) -> None:
    """Raise TrainingError if a setting of a weight is invalid."""
    check_choice("ramped", ramped, (True, False))
    if cap is not None:
        check_number("cap", cap, above=0)


@dataclass(frozen=True, slots=True)
class TermWeight:
    """
    Weight of a distance, which may be ramped up, and capped by the gradients of the embeddings.

    Attributes
    ----------
    final : float
        Weight at the end of the training.
    ramped : bool
        Whether the weight is multiplied by :func:`medimg.adapt.ramp`.
    cap : float or None
        Largest norm of the distance's gradient, relative to that of the classification loss, both with
        respect to the embeddings of the source.
    """

    final: float
    ramped: bool = False
    cap: float | None = None

    def at(self, progress: float, losses: Tensor, distance: Tensor, embeddings: Tensor) -> float | Tensor:
        """Return the weight, without gradient, at a completed share of the training."""
        weight = self.final * ramp(progress) if self.ramped else self.final
        if self.cap is None or not embeddings.requires_grad:
            return weight
        plain, pulling = (
            torch.linalg.vector_norm(torch.autograd.grad(loss, embeddings, retain_graph=True)[0].float())
            for loss in (losses.mean(), distance)
        )
        most = self.cap * plain / pulling.clamp_min(torch.finfo(pulling.dtype).tiny)
        limited: Tensor = most.clamp(max=weight)
        return limited
