"""
Measured centers of effective receptive fields.

A convolution of stride 2 that uses its padding on one side only, as at every even size, is centered half a
pixel up and left of its cell. In training, kernels shift weight to the other side (Alsallakh et al., Mind the
Pad, ICLR 2021), so strides and paddings give the centers of random networks only.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from medimg.models.backbones.stems import input_channels
from medimg.models.digest import parameters_digest
from medimg.saliency._receptive_field import Axis
from medimg.saliency._target_layer import Layer, capture_activation

__all__ = ["measure_field_centers"]

#: Images of noise, one for each measured cell.
_IMAGES: Final = 16
#: Offset from tiles, in cells, below which no measurement is needed.
_NEGLIGIBLE: Final = 0.05
#: Standard errors from which a shift is significant; with max pooling cells vary widely.
_SIGNIFICANT: Final = 3.0

_Axes: TypeAlias = tuple[Axis, Axis]
#: By network: the digest of its parameters, and the axes measured with these.
_known: WeakKeyDictionary[nn.Module, tuple[str, dict[tuple[str, tuple[int, int]], _Axes]]] = (
    WeakKeyDictionary()
)


def measure_field_centers(
    backbone: nn.Module, layer: Layer, size: tuple[int, int], batch_size: int = 8
) -> Layer:
    """
    Return a layer with measured centers of its cells, unless strides and paddings give tiles.

    The effective receptive field of a cell is the gradient of its energy with respect to the image (Luo et
    al., NeurIPS 2016); its center is the centroid of the squares, averaged over central cells of 16 fixed
    images of 1/f noise, and used if it differs by more than three standard errors.
    """
    tiles = [Axis.tiles(n, cells) for n, cells in zip(size, layer.cells, strict=True)]
    gaps = [abs(axis.start - tile.start) / tile.step for axis, tile in zip(layer.axes, tiles, strict=True)]
    if max(gaps) < _NEGLIGIBLE:
        return layer
    digest = parameters_digest(backbone)
    known = _known.get(backbone)
    if known is None or known[0] != digest:
        known = _known[backbone] = digest, {}
    kept, key = known[1], (layer.name, size)
    if key not in kept:
        kept[key] = _measure_axes(backbone, layer, size, batch_size)
    return replace(layer, axes=kept[key])


def _measure_axes(backbone: nn.Module, layer: Layer, size: tuple[int, int], batch_size: int) -> _Axes:
    """Return the axes with the measured centers of central cells."""
    chosen = _central_cells(layer.cells)
    parts = zip(
        torch.split(_noise(size, input_channels(backbone)), batch_size),
        torch.split(chosen, batch_size),
        strict=True,
    )
    field = torch.cat([_squared_gradients(backbone, layer, images, cells) for images, cells in parts])
    total = field.sum(dim=(1, 2))
    rows, columns = (_shift_axis(field.sum(dim=2 - n), total, layer.axes[n], chosen[:, n]) for n in range(2))
    return rows, columns


def _squared_gradients(backbone: nn.Module, layer: Layer, images: Tensor, cells: Tensor) -> Tensor:
    """Return the squared gradients (B, H, W) of the energy of one cell (B, 2) of each image (B, C, H, W)."""
    like = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
    images = images.to(like.device, like.dtype).requires_grad_()
    with capture_activation(backbone, layer) as held:
        backbone(images)
        maps = layer.maps(held[0])
        energy = torch.stack([maps[n, :, i, j].float().square().sum() for n, (i, j) in enumerate(cells)])
        (gradient,) = torch.autograd.grad(energy.sum(), images)
    return gradient.detach().double().square().sum(dim=1).cpu()


def _shift_axis(profiles: Tensor, totals: Tensor, axis: Axis, cells: Tensor) -> Axis:
    """Shift an axis to the centroids of the profiles (B, size) of cells (B,), if that is significant."""
    centers = profiles @ torch.arange(profiles.shape[1], dtype=profiles.dtype) / totals
    off = centers - (axis.start + cells * axis.step)
    off = off[off.isfinite()]
    if len(off) < 2 or abs(off.mean()) <= _SIGNIFICANT * off.std() / len(off) ** 0.5:
        return axis
    return replace(axis, start=axis.start + float(off.mean()))


def _noise(size: tuple[int, int], channels: int) -> Tensor:
    """Return noise (B, C, H, W) with an amplitude of 1/f and a variance of 1, always the same."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft2(torch.randn(_IMAGES, channels, *size, generator=generator))
    down, across = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
    frequency = (down.square() + across.square()).sqrt()
    frequency[0, 0] = 1 / max(size)
    images: Tensor = torch.fft.irfft2(spectrum / frequency, s=size)
    return images / images.std()


def _central_cells(cells: tuple[int, int]) -> Tensor:
    """Return one cell (B, 2) per image, evenly spaced in the central half."""
    middle = ([i for i in range(n) if abs(i - (n - 1) / 2) <= n / 4] for n in cells)
    candidates = torch.tensor(list(product(*middle)))
    return candidates[(torch.arange(_IMAGES) * len(candidates)) // _IMAGES]
