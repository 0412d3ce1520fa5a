"""Freezing: a frozen part keeps its parameters and its statistics, bit by bit."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["freeze_through", "hold_frozen", "share_frozen"]


def freeze_through(body: nn.Module, upto: str | None) -> None:
    """
    Stop the gradients of a network's first part, or of all of it.

    Parameters
    ----------
    body : nn.Module
        The network; changed in place.
    upto : str or None
        The last module to freeze, by its name in ``named_modules()``; None freezes all. What comes before it
        in that order, which is the order of computation in torchvision's models, is frozen with it.

    Raises
    ------
    TrainingError
        If there is no such module.
    """
    names = [name for name, _ in body.named_modules()]
    if upto is None:
        last = len(names) - 1
    elif upto and upto in names:
        last = max(n for n, name in enumerate(names) if name == upto or name.startswith(f"{upto}."))
    else:
        children = [name for name, _ in body.named_children()]
        near = difflib.get_close_matches(upto, names, n=3)
        hint = f"; the nearest are {', '.join(map(repr, near))}" if near else ""
        raise TrainingError(
            f"the backbone has no part {upto!r} to freeze up to{hint}; its main parts are "
            f"{', '.join(map(repr, children))}"
        )
    for name in names[: last + 1]:
        for parameter in body.get_submodule(name).parameters(recurse=False):
            parameter.requires_grad_(False)


def hold_frozen(module: nn.Module) -> None:
    """
    Put every part whose parameters are all frozen into evaluation mode.

    In training mode its batch normalization would go on moving its statistics, and its dropout go on making
    noise, without a single parameter being trained.

    Parameters
    ----------
    module : nn.Module
        The network; changed in place.
    """
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
        return
    for child in module.children():
        hold_frozen(child)


def share_frozen(module: nn.Module) -> float:
    """Return which share of a network's parameters is frozen, from 0 to 1."""
    total = sum(p.numel() for p in module.parameters())
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    return frozen / total if total else 0.0
