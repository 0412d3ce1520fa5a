"""Optimizers and schedules: which parameter learns how fast, and when."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from medimg.learn.stages import stages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.settings import Schedule

__all__ = ["make_optimizer", "make_schedule", "warm_cosine"]

_WARM_UP: Final = 0.1  # share of a phase's steps
_RISE: Final = 0.25  # of one cycle
_START: Final = 25.0  # one cycle starts at the highest rate divided by this
_END: Final = 1e4  # and ends at its start divided by this
#: What decays: the weights of layers that multiply. Not norms, biases, embeddings of positions or scales.
_DECAYING: Final = ("weight", "in_proj_weight")


def make_optimizer(
    model: TransferClassifier,
    lr: float,
    backbone_lr: float,
    *,
    layer_decay: float = 1.0,
    weight_decay: float = 0.01,
    others: nn.Module | None = None,
) -> torch.optim.AdamW:
    """
    Return AdamW over the trainable parameters.

    Parameters
    ----------
    model : TransferClassifier
        Whatever is frozen in it takes no part.
    lr, backbone_lr : float
        Of head and pooling; of the backbone's last stage.
    layer_decay : float
        Each stage before that learns as many times as fast as the next (Howard and Ruder, ULMFiT, ACL 2018:
        discriminative fine-tuning).
    weight_decay : float
        Of weights that multiply: norms, biases, embeddings of positions and scales of layers don't decay.
    others : nn.Module, optional
        What else is trained, at the head's rate.

    Returns
    -------
    torch.optim.AdamW
        The first group is the head's.
    """
    backbone = set(model.backbone.parameters())
    head = [(n, p) for n, p in model.named_parameters() if p not in backbone]
    head += [] if others is None else list(others.named_parameters())
    parts = list(stages(model.backbone))
    named = {parameter: name for name, parameter in model.backbone.named_parameters()}
    groups = [*_groups(head, lr, weight_decay)]
    for depth, stage in enumerate(reversed(parts)):
        members = [(named[p], p) for p in stage.parameters()]
        groups += _groups(members, backbone_lr * layer_decay**depth, weight_decay)
    return torch.optim.AdamW(groups, lr=lr)


def _groups(
    named: Iterable[tuple[str, nn.Parameter]], lr: float, weight_decay: float
) -> Iterator[dict[str, Any]]:
    trainable = [(name, p) for name, p in named if p.requires_grad]
    decaying = [p for name, p in trainable if p.ndim > 1 and name.rpartition(".")[2] in _DECAYING]
    chosen = set(decaying)
    others = [p for _, p in trainable if p not in chosen]
    for members, decay in ((decaying, weight_decay), (others, 0.0)):
        if members:
            yield {"params": members, "lr": lr, "weight_decay": decay}


def make_schedule(optimizer: torch.optim.Optimizer, kind: Schedule, steps: int) -> LRScheduler:
    """
    Return how the rates run through the steps of a phase.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Each group at its highest rate.
    kind : {"one_cycle", "cosine", "constant"}
        "one_cycle": up along a cosine for a quarter of the steps and down for the rest, the momentum the
        other way round (Smith and Topin, Super-Convergence, 2018). "cosine": :func:`warm_cosine`.
        "constant": no change.
    steps : int
        Of the phase.

    Returns
    -------
    torch.optim.lr_scheduler.LRScheduler
        To be stepped after each step of the optimizer.
    """
    if kind == "one_cycle" and steps > 1:
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps + 1,  # the scheduler is stepped after the last step too
            pct_start=min(max(_RISE, 1.0 / steps), 0.5),
            div_factor=_START,
            final_div_factor=_END,
        )
    factor = partial(warm_cosine, total=steps) if kind != "constant" else _same
    return LambdaLR(optimizer, factor)


def _same(_: int) -> float:
    return 1.0


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
