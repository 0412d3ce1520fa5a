"""Optimizers: which parameter learns how fast, and when."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from medimg.learn.classifier import TransferClassifier

__all__ = ["make_optimizer", "warm_cosine"]

_DECAY: Final = 0.01  # AdamW's own default
_WARM_UP: Final = 0.1  # share of a phase's steps


def make_optimizer(model: TransferClassifier, lr: float, backbone_lr: float) -> torch.optim.AdamW:
    """
    Return AdamW over the trainable parameters.

    Parameters
    ----------
    model : TransferClassifier
        Whatever is frozen in it takes no part.
    lr, backbone_lr : float
        Of head and pooling; of the backbone.

    Returns
    -------
    torch.optim.AdamW
        The first group is the head's. Norms and biases, which have one dimension, don't decay.
    """
    backbone = set(model.backbone.parameters())
    others = [p for p in model.parameters() if p not in backbone]
    groups = [*_groups(others, lr), *_groups(model.backbone.parameters(), backbone_lr)]
    return torch.optim.AdamW(groups, lr=lr)


def _groups(parameters: Iterable[nn.Parameter], lr: float) -> list[dict[str, Any]]:
    trainable = [p for p in parameters if p.requires_grad]
    decaying = [p for p in trainable if p.ndim > 1]
    others = [p for p in trainable if p.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": decaying, "lr": lr, "weight_decay": _DECAY},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def warm_cosine(step: int, total: int) -> float:
    """
    Return by what to multiply the learning rate at a step.

    A linear rise over the first tenth of the steps, then half a cosine down to 0 (Loshchilov and Hutter,
    SGDR, 2017, without restarts).

    Parameters
    ----------
    step : int
        From 0.
    total : int
        Steps of the phase.

    Returns
    -------
    float
        Above 0 at every step before the last one has been made.

    Examples
    --------
    >>> [round(warm_cosine(step, 20), 2) for step in (0, 1, 2, 11, 19, 20)]
    [0.33, 0.67, 1.0, 0.5, 0.01, 0.0]
    """
    warm_up = int(total * _WARM_UP)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    progress = min((step - warm_up) / max(total - warm_up, 1), 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
