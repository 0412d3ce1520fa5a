"""Receptive-field arithmetic: the centers of the cells of a grid in the input image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Axis", "ReceptiveField"]


@dataclass(frozen=True, slots=True)
class Axis:
    """Rows or columns of a grid: cell `i` has its center at ``start + i * step`` pixels, pixel `k` at `k`."""

    start: float = 0.0
    step: float = 1.0

    @classmethod
    def tiles(cls, size: int, cells: int) -> Axis:
        """Return the axis of cells that tile an image, as patches do."""
        step = size / cells
        return cls(step / 2 - 0.5, step)

    def then(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """
        Return the axis after a convolution or a pooling layer.

        Examples
        --------
        >>> Axis().then(kernel=3, stride=2, padding=1), Axis().then(kernel=2, stride=2, padding=0)
        (Axis(start=0.0, step=2.0), Axis(start=0.5, step=2.0))
        """
        first = dilation * (kernel - 1) / 2 - padding
        return Axis(self.start + first * self.step, self.step * stride)


@dataclass(slots=True)
class ReceptiveField:
    """
    Receptive-field centers of the grids of a network by their sizes, recorded during a forward pass.

    A convolution of stride 2 with a padded kernel of 3 is centered on every second pixel, the first included:
    after five, cells of 32 pixels have their centers at 0, 32, 64, …, half a cell up and left of tiles.
    """

    size: tuple[int, int]
    _known: dict[tuple[int, ...], tuple[Axis, Axis]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known[self.size] = (Axis(), Axis())

    def record(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Record the output grid of a convolution or pooling layer with a known input grid."""
        if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or not inputs:
            return
        if not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return
        before, after = tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:])
        if before in self._known and after not in self._known:
            rows, columns = self._known[before]
            by_rows, by_columns = _layer_settings(module, 0), _layer_settings(module, 1)
            self._known[after] = (rows.then(*by_rows), columns.then(*by_columns))

    def of(self, cells: tuple[int, int]) -> tuple[Axis, Axis]:
        """Return the axes of a grid of cells; tiles if it was not recorded."""
        tiles = (Axis.tiles(self.size[0], cells[0]), Axis.tiles(self.size[1], cells[1]))
        return self._known.get(cells, tiles)


def _layer_settings(module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, axis: int) -> tuple[int, int, int, int]:
    """Return kernel size, stride, padding and dilation of a layer along an axis."""

    def along(value: Any) -> int:
        return int(value[axis] if isinstance(value, tuple | list) else value)

    kernel, dilation = along(module.kernel_size), along(getattr(module, "dilation", 1))
    padding: Any = module.padding
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else dilation * (kernel - 1) // 2
    return kernel, along(module.stride), along(padding), dilation
