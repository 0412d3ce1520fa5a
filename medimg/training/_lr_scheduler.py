"""Learning-rate schedules: one cycle, cosine with warm-up."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, Final

import torch
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

if TYPE_CHECKING:
    from medimg.training._config import Schedule

__all__ = ["make_schedule", "warm_cosine"]

_WARM_UP: Final = 0.1  # share of a phase's steps
_RISE: Final = 0.25  # of one cycle
_START: Final = 25.0  # one cycle starts at the highest rate divided by this
_END: Final = 1e4  # and ends at its start divided by this


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
