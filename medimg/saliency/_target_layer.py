"""The layer of a network for saliency maps: the last with spatial resolution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from medimg._validation import did_you_mean
from medimg.errors import TrainingError, also
from medimg.saliency._receptive_field import Axis, ReceptiveField

__all__ = ["Layer", "capture_activation", "find_layer"]

TensorLayout: TypeAlias = Literal["channels first", "channels last", "tokens"]

#: Most class, distillation and register tokens before those of the image.
_MOST_EXTRA_TOKENS: Final = 16
#: Cells by which the order of tokens is measured, as fractions of rows and columns.
_PROBES: Final = (
    (0.2, 0.2), (0.2, 0.8), (0.35, 0.5), (0.5, 0.35), (0.5, 0.65), (0.65, 0.5), (0.8, 0.2), (0.8, 0.8),
)  # fmt: skip
#: Correlation of the places of tokens with their cells: 0.999 and more for tokens in the order of the image.
_LEAST_CORRELATION: Final = 0.5

#: By network: whether tokens are in order, by layer and image size.
_orders: WeakKeyDictionary[nn.Module, dict[tuple[str, tuple[int, ...]], bool]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Layer:
    """
    A layer with an output on a grid of (rows, columns) cells: (B, C, h, w), (B, h, w, C) or (B, T, C).

    `axes` are the centers of the cells in the image.
    """

    name: str
    cells: tuple[int, int]
    layout: TensorLayout = "channels first"
    axes: tuple[Axis, Axis] = (Axis(), Axis())

    def maps(self, output: Tensor) -> Tensor:
        """Return an output of the layer, or its gradient, as (B, C, h, w)."""
        if self.layout == "channels first":
            return output
        if self.layout == "channels last":
            return output.permute(0, 3, 1, 2)
        rows, columns = self.cells
        tokens = output[:, -rows * columns :].transpose(1, 2)
        return tokens.reshape(*tokens.shape[:2], rows, columns)


def find_layer(backbone: nn.Module, images: Tensor, name: str | None = None) -> Layer:
    """
    Find the last layer with an output on a grid over images (B, C, H, W) that acts on embeddings by cell.

    It acts by cell if it has a gradient: after the last attention of a vision transformer, where only the
    class token is used, it has none. Tokens must be in the order of the image: Hiera sorts them by windows.
    """
    modules = dict(backbone.named_modules())
    if name is not None and (name not in modules or not name):
        raise also(TrainingError, KeyError)(
            f"the backbone has no layer {name!r}; its layers are the names in "
            f"model.backbone.named_modules(){did_you_mean(name, modules, most=3)}"
        )
    # at least two images: windows of one image would look like a batch
    batch = images[:2] if len(images) > 1 else images.repeat(2, 1, 1, 1)
    fields = ReceptiveField((int(batch.shape[2]), int(batch.shape[3])))
    outputs, gradients = _trace(backbone, batch, modules, fields)
    grids = [replace(grid, axes=fields.of(grid.cells)) for grid in _grids(outputs, fields.size, len(batch))]
    if name is not None:
        layer = _select_layer(name, grids, outputs)
        if not _is_in_order(backbone, layer, batch):
            raise TrainingError(
                f"the tokens of the layer {name!r} are not in the order of the image, so that they show no "
                "places in it; leave out layer="
            )
        return layer
    for layer in reversed(grids):
        gradient = gradients.get(layer.name)
        acts = gradient is not None and bool(layer.maps(gradient).any())
        if acts and _is_in_order(backbone, layer, batch):
            return layer
    if grids:
        return grids[-1]
    raise TrainingError(
        "no layer of this backbone has spatial resolution, so there is no heat map; expected an output "
        "(B, C, h, w) or (B, h, w, C) with h and w above 1, which larger images may give"
    )


def _is_in_order(backbone: nn.Module, layer: Layer, batch: Tensor) -> bool:
    """Return whether tokens lie as their cells do; it is measured once for a network and a size."""
    if layer.layout != "tokens":
        return True
    known, key = _orders.setdefault(backbone, {}), (layer.name, tuple(batch.shape[2:]))
    if key not in known:
        known[key] = _measure_order(backbone, layer, batch)
    return known[key]


def _measure_order(backbone: nn.Module, layer: Layer, batch: Tensor) -> bool:
    """Compare the cells of some tokens with the centers of what these depend on, mostly their own place."""
    cells = [tuple(int(part * n) for part, n in zip(probe, layer.cells, strict=True)) for probe in _PROBES]
    noise = torch.randn(len(cells), *batch.shape[1:], generator=torch.Generator().manual_seed(0))
    images = noise.to(batch.device, batch.dtype).requires_grad_()
    with capture_activation(backbone, layer) as held:
        backbone(images)
        maps = layer.maps(held[0])
        energy = torch.stack([maps[n, :, i, j].float().square().sum() for n, (i, j) in enumerate(cells)])
        (gradient,) = torch.autograd.grad(energy.sum(), images)
    field = gradient.detach().double().square().sum(dim=1).cpu()
    total = field.sum(dim=(1, 2))
    if not bool((total.isfinite() & (total > 0)).all()):
        return True  # nothing can be measured
    for axis, expected in enumerate(torch.tensor(cells, dtype=torch.float64).T):
        profile = field.sum(dim=2 - axis)
        places = profile @ torch.arange(profile.shape[1], dtype=torch.float64) / total
        if float(torch.corrcoef(torch.stack([places, expected]))[0, 1]) < _LEAST_CORRELATION:
            return False
    return True


def _select_layer(name: str, grids: list[Layer], outputs: dict[str, Tensor]) -> Layer:
    """Return the layer of a name, whose output must be a grid."""
    for layer in grids:
        if layer.name == name:
            return layer
    shape = tuple(outputs[name].shape) if name in outputs else "no single tensor"
    raise TrainingError(
        f"the output of the layer {name!r} is {shape}, expected a grid with rows and columns above 1; "
        f"layers with a grid are {', '.join(repr(layer.name) for layer in grids[-4:]) or 'none'}"
    )


def _trace(
    backbone: nn.Module, batch: Tensor, modules: dict[str, nn.Module], fields: ReceptiveField
) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Return the last output of each module, in the order of computation, and its gradient."""
    outputs: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        fields.record(module, inputs, output)
        outputs.pop(name, None)
        if isinstance(output, Tensor):
            outputs[name] = output

    handles = [m.register_forward_hook(partial(record, name)) for name, m in modules.items() if name]
    try:
        embedding = backbone(batch.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    # any direction that is not orthogonal to a part of the embedding
    direction = torch.linspace(1.0, 2.0, embedding.shape[1], device=embedding.device, dtype=embedding.dtype)
    direction[1::2] *= -1.0
    known = {name: output for name, output in outputs.items() if output.requires_grad}
    score = (embedding * direction).sum()
    found = torch.autograd.grad(score, list(known.values()), allow_unused=True) if known else ()
    return outputs, dict(zip(known, found, strict=True))


def _grids(outputs: dict[str, Tensor], size: tuple[int, int], batch: int) -> list[Layer]:
    """
    Return the layers with an output on a grid, in the order of computation.

    A grid is (B, C, h, w) or (B, h, w, C) with the aspect of the images and no finer than the grid before, or
    (B, T, C) with as many tokens as the last grid has cells and a few more before them.
    """
    grids: list[Layer] = []
    finest = size
    for name, output in outputs.items():
        if output.shape[0] != batch or not output.is_floating_point():
            continue
        if output.ndim == 4:
            found = _grid_layer(name, tuple(output.shape), size)
            if found is not None and all(n <= most for n, most in zip(found.cells, finest, strict=True)):
                grids.append(found)
                finest = found.cells
        elif output.ndim == 3 and grids:
            extra = output.shape[1] - finest[0] * finest[1]
            if 0 <= extra <= _MOST_EXTRA_TOKENS:
                grids.append(Layer(name, finest, "tokens"))
    return grids


def _grid_layer(name: str, shape: tuple[int, ...], size: tuple[int, int]) -> Layer | None:
    """Return the layer of an output (B, ., ., .), rows and columns of which have the aspect of the image."""
    _, a, b, c = shape
    aspect = np.log(size[0] / size[1])
    first = Layer(name, (b, c))
    last = Layer(name, (a, b), "channels last")
    possible = [layer for layer in (first, last) if min(layer.cells) > 1]
    return min(possible, key=lambda p: abs(np.log(p.cells[0] / p.cells[1]) - aspect), default=None)


@contextmanager
def capture_activation(backbone: nn.Module, layer: Layer) -> Iterator[list[Tensor]]:
    """
    Give a list that receives the output of a layer.

    It is the tensor itself: if a later layer changes it in place, as DenseNet's last ReLU does, output and
    gradient are those that later layers see.
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
