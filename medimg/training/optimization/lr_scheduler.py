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


def make_schedule(
    optimizer: torch.optim.Optimizer, kind: Schedule, steps: int, *, cycles_momentum: bool = True
) -> LRScheduler:
    """
    Return the schedule of a phase, stepped after each step; each parameter group is at its highest rate.

    "one_cycle": up along a cosine for a quarter of the steps and down for the rest, the momentum the other
    way round if `cycles_momentum` (Smith and Topin, Super-Convergence, 2018).
    """
    if kind == "one_cycle" and steps > 1:
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps + 1,  # the scheduler is stepped after the last step too
            pct_start=min(max(_RISE, 1.0 / steps), 0.5),
            div_factor=_START,
            final_div_factor=_END,
            cycle_momentum=cycles_momentum,
        )
    factor = partial(warm_cosine, total=steps) if kind != "constant" else _constant
    return LambdaLR(optimizer, factor)


def _constant(_: int) -> float:
    return 1.0


def warm_cosine(step: int, total: int) -> float:
    """
    Return the factor of a step (from 0): linear over the first tenth, then half a cosine down to 0.

    Loshchilov and Hutter, SGDR, 2017, without restarts.

    >>> [round(warm_cosine(step, 20), 2) for step in (0, 1, 2, 11, 19, 20)]
    [0.33, 0.67, 1.0, 0.5, 0.01, 0.0]
    """
    warm_up = int(total * _WARM_UP)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    progress = min((step - warm_up) / max(total - warm_up, 1), 1.0)
    return 0.5 * (1.0 + math.cos(math.pi * progress))
