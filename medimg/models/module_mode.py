"""Training or evaluation mode, and gradients, for the duration of a block or call."""

from __future__ import annotations

from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import nn

__all__ = ["module_mode", "with_gradients"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def with_gradients(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a function compute gradients, and make tensors that can have them, in whatever mode torch is."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with torch.inference_mode(mode=False), torch.enable_grad():
            return function(*args, **kwargs)

    return call


@contextmanager
def module_mode(module: nn.Module, *, training: bool) -> Iterator[None]:
    """
    Put a module into training or evaluation mode; restore the mode of every submodule on exit.

    Modes may differ between submodules (frozen parts stay in evaluation mode), so each one is restored by
    itself. Gradients are the caller's: ``with module_mode(model, training=False), torch.inference_mode():``.
    """
    modes = {part: part.training for part in module.modules()}
    try:
        module.train(training)
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
