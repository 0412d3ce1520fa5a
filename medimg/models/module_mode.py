"""Training or evaluation mode for the duration of a `with` block."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["module_mode"]


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
