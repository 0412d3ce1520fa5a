"""Where in a picture the cells of a grid have the centers of their receptive fields."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

__all__ = ["Axis", "ReceptiveField"]


@dataclass(frozen=True, slots=True)
class Axis:
    """
    Rows or columns of a grid: cell `i` has its center at ``start + i * step``, where pixel `k` has it at `k`.

    Attributes
    ----------
    start, step : float
        In pixels of the picture.
    """

    start: float = 0.0
    step: float = 1.0

    @classmethod
    def tiles(cls, size: int, cells: int) -> Axis:
        """Return the axis of cells that cover a picture side by side, as patches do."""
        step = size / cells
        return cls(step / 2 - 0.5, step)

    def then(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Axis:
        """
        Return the axis behind a convolution or a pooling.

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
    The fields of all grids of a network, by their sizes, noted while a picture passes.

    A convolution of stride 2 with a padded kernel of 3 looks about every second pixel, the first one
    included: after five of these, cells of 32 pixels have their centers at 0, 32, 64 and so on, half a cell
    up and left of where they would lie side by side; training moves them back
    (``medimg.saliency._field_center``). Layers that are neither convolutions nor poolings make
    tiles, if they change the size at all.

    Attributes
    ----------
    size : tuple of 2 ints
        Rows and columns of the pictures.
    """

    size: tuple[int, int]
    _known: dict[tuple[int, ...], tuple[Axis, Axis]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known[self.size] = (Axis(), Axis())

    def note(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """Note what a layer does, if it is a convolution or a pooling of what is known."""
        if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) or not inputs:
            return
        if not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            return
        before, after = tuple(inputs[0].shape[-2:]), tuple(output.shape[-2:])
        if before in self._known and after not in self._known:
            rows, columns = self._known[before]
            by_rows, by_columns = _settings(module, 0), _settings(module, 1)
            self._known[after] = (rows.then(*by_rows), columns.then(*by_columns))

    def of(self, cells: tuple[int, int]) -> tuple[Axis, Axis]:
        """Return the axes of a grid; tiles where nothing is known of it."""
        tiles = (Axis.tiles(self.size[0], cells[0]), Axis.tiles(self.size[1], cells[1]))
        return self._known.get(cells, tiles)


def _settings(module: nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d, axis: int) -> tuple[int, int, int, int]:
    """Return kernel, stride, padding and dilation."""

    def along(value: Any) -> int:
        return int(value[axis] if isinstance(value, tuple | list) else value)

    kernel, dilation = along(module.kernel_size), along(getattr(module, "dilation", 1))
    padding: Any = module.padding
    if isinstance(padding, str):
        padding = 0 if padding == "valid" else dilation * (kernel - 1) // 2
    return kernel, along(module.stride), along(padding), dilation
