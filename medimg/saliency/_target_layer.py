"""The layer of a network whose activations a heat map is made of: the last that still tells places apart."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from medimg.errors import TrainingError
from medimg.saliency._receptive_field import Axis, ReceptiveField

__all__ = ["Layer", "capture_activation", "find_layer"]

TensorLayout: TypeAlias = Literal["channels first", "channels last", "tokens"]

#: Class, distillation and register tokens that may stand before those of the picture.
_MOST_EXTRA_TOKENS: Final = 16


@dataclass(frozen=True, slots=True)
class Layer:
    """
    A layer whose output lies on a grid of cells over the picture.

    Attributes
    ----------
    name : str
        In ``backbone.named_modules()``.
    cells : tuple of 2 ints
        Rows and columns of the grid.
    layout : {"channels first", "channels last", "tokens"}
        (B, C, h, w), (B, h, w, C), or (B, extra + h·w, C).
    axes : tuple of 2 Axis
        Where in a picture the cells lie.
    """

    name: str
    cells: tuple[int, int]
    layout: TensorLayout = "channels first"
    axes: tuple[Axis, Axis] = (Axis(), Axis())

    def maps(self, output: Tensor) -> Tensor:
        """
        Return what the layer gave, or a gradient of it, as (B, C, h, w).

        Examples
        --------
        >>> layer = Layer("blocks.3.norm", (2, 3), "tokens")
        >>> layer.maps(torch.zeros(5, 1 + 6, 8)).shape
        torch.Size([5, 8, 2, 3])
        """
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        rows, columns = self.cells
        tokens = output[:, -rows * columns :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], rows, columns)


def find_layer(backbone: nn.Module, pictures: Tensor, name: str | None = None) -> Layer:
    """
    Find the last layer whose output lies on a grid over the picture and acts on the embedding cell by cell.

    All layers are watched while some pictures pass. An output is a grid if it is (B, C, h, w) or (B, h, w, C)
    with h and w above 1, as wide for its height as the pictures, and no finer than the grid before; or if it
    is (B, T, C) with as many tokens as the last grid has cells, and some more before them. It acts cell by
    cell if the embedding has a gradient there: behind the last attention of a vision transformer, which only
    the class token leaves, it has none.

    Parameters
    ----------
    backbone : nn.Module
        (B, 3, H, W) to (B, F), in evaluation mode.
    pictures : Tensor
        (B, 3, H, W), one or more.
    name : str, optional
        The layer, if it is chosen by hand.

    Returns
    -------
    Layer

    Raises
    ------
    TrainingError
        If there is no such layer.

    Examples
    --------
    >>> body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> found = find_layer(body, torch.randn(1, 3, 16, 12))
    >>> found.name, found.cells, found.axes[0]
    ('1', (14, 10), Axis(start=1.0, step=1.0))
    """
    modules = dict(backbone.named_modules())
    if name is not None and (name not in modules or not name):
        near = difflib.get_close_matches(str(name), modules, n=3, cutoff=0.3)
        raise TrainingError(
            f"the backbone has no layer {name!r}; the nearest are {', '.join(map(repr, near)) or 'none'}. "
            "Its layers are the names in model.backbone.named_modules()"
        )
    # two pictures at least: windows of one picture would look like a batch
    batch = pictures[:2] if len(pictures) > 1 else pictures.repeat(2, 1, 1, 1)
    fields = ReceptiveField((int(batch.shape[2]), int(batch.shape[3])))
    outputs, gradients = _trace(backbone, batch, modules, fields)
    grids = [replace(grid, axes=fields.of(grid.cells)) for grid in _grids(outputs, fields.size, len(batch))]
    if name is not None:
        return _named(name, grids, outputs)
    for layer in reversed(grids):
        gradient = gradients.get(layer.name)
        if gradient is not None and bool(layer.maps(gradient).any()):
            return layer
    if grids:
        return grids[-1]
    raise TrainingError(
        "no layer of this backbone keeps rows and columns, so that it has no heat map; expected an output "
        "(B, C, h, w) or (B, h, w, C) with h and w above 1. With larger pictures the last layers keep more"
    )


def _named(name: str, grids: list[Layer], outputs: dict[str, Tensor]) -> Layer:
    for layer in grids:
        if layer.name == name:
            return layer
    shape = tuple(outputs[name].shape) if name in outputs else "no single tensor"
    raise TrainingError(
        f"the layer {name!r} gives {shape}, expected rows and columns above 1 of a grid over the picture; "
        f"such layers are {', '.join(repr(layer.name) for layer in grids[-4:]) or 'none'}"
    )


def _trace(
    backbone: nn.Module, batch: Tensor, modules: dict[str, nn.Module], fields: ReceptiveField
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Return the last output of each module, in the order of computation, and a gradient there."""
    outputs: dict[str, Tensor] = {}

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        fields.note(module, inputs, output)
        outputs.pop(name, None)
        if isinstance(output, Tensor):
            outputs[name] = output

    handles = [m.register_forward_hook(partial(note, name)) for name, m in modules.items() if name]
    try:
        embedding = backbone(batch.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    # any direction will do, if no part of the embedding is at right angles to it
    direction = torch.linspace(1.0, 2.0, embedding.shape[1], device=embedding.device, dtype=embedding.dtype)
    direction[1::2] *= -1.0
    known = {name: output for name, output in outputs.items() if output.requires_grad}
    score = (embedding * direction).sum()
    found = torch.autograd.grad(score, list(known.values()), allow_unused=True) if known else ()
    return outputs, dict(zip(known, found, strict=True))


def _grids(outputs: dict[str, Tensor], size: tuple[int, int], batch: int) -> list[Layer]:
    """Return the layers whose outputs lie on a grid, in the order of computation."""
    grids: list[Layer] = []
    finest = size
    for name, output in outputs.items():
        if output.shape[0] != batch or not output.is_floating_point():
            continue
        if output.ndim == 4:
            found = _spatial(name, tuple(output.shape), size)
            if found is not None and all(n <= most for n, most in zip(found.cells, finest, strict=True)):
                grids.append(found)
                finest = found.cells
        elif output.ndim == 3 and grids:
            extra = output.shape[1] - finest[0] * finest[1]
            if 0 <= extra <= _MOST_EXTRA_TOKENS:
                grids.append(Layer(name, finest, "tokens"))
    return grids


def _spatial(name: str, shape: tuple[int, ...], size: tuple[int, int]) -> Layer | None:
    """Tell which axes of (B, ., ., .) are rows and columns, by the aspect of the picture."""
    _, a, b, c = shape
    aspect = np.log(size[0] / size[1])
    first = Layer(name, (b, c))
    last = Layer(name, (a, b), "channels last")
    possible = [layer for layer in (first, last) if min(layer.cells) > 1]
    return min(possible, key=lambda p: abs(np.log(p.cells[0] / p.cells[1]) - aspect), default=None)


@contextmanager
def capture_activation(backbone: nn.Module, layer: Layer) -> Iterator[list[Tensor]]:
    """
    Hold on to what a layer gives, in a list of one, while the context lasts.

    It is the tensor itself: where a layer behind changes it in place, as DenseNet's last ReLU does, it and
    its gradient are what the layers behind see.
    """
    held: list[Tensor] = []

    def hold(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        held[:] = [output]

    handle = backbone.get_submodule(layer.name).register_forward_hook(hold)
    try:
        yield held
    finally:
        handle.remove()
        held.clear()
