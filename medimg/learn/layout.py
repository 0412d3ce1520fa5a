"""How pictures lie in memory while a network computes, and whether it is compiled."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medimg.learn.classifier import TransferClassifier

__all__ = ["laid_out", "prefers_channels_last"]

#: A transformer has one convolution, which cuts the picture into patches.
_FEW: Final = 4


def prefers_channels_last(model: TransferClassifier, choice: bool | str) -> bool:
    """
    Tell whether the backbone is computed pixel by pixel.

    Parameters
    ----------
    model : TransferClassifier
        The model.
    choice : bool or "auto"
        "auto": where the backbone consists of convolutions.

    Raises
    ------
    TrainingError
        If the choice is none of these.
    """
    if isinstance(choice, bool):
        return choice
    if choice != "auto":
        raise TrainingError(f'channels_last is True, False or "auto"; found {choice!r}')
    return sum(isinstance(module, nn.Conv2d) for module in model.backbone.modules()) > _FEW


@contextmanager
def laid_out(model: TransferClassifier, *, channels_last: bool, compiled: bool) -> Iterator[None]:
    """
    Lay the backbone's weights out for a while, compile it for a while.

    Parameters
    ----------
    model : TransferClassifier
        Its weights keep their values, bit by bit.
    channels_last, compiled : bool
        What is done.
    """
    if channels_last:
        model.backbone.to(memory_format=torch.channels_last)
    if compiled:
        model.backbone.compile()
    try:
        yield
    finally:
        if compiled:
            model.backbone._compiled_call_impl = None
        if channels_last:
            model.backbone.to(memory_format=torch.contiguous_format)
