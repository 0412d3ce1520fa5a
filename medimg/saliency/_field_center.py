"""
Where trained networks really look: centers of effective receptive fields, measured.

A convolution of stride 2 whose padding is used on one side only, as at every even size, is centered half a
pixel up and left of its cell. Trained with it, kernels grow heavier on the other side (Alsallakh et al., Mind
the Pad, ICLR 2021), so that strides and paddings alone tell where the cells of a random network look, and not
those of a pretrained one.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Final, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from medimg.models.digest import parameters_digest
from medimg.saliency._receptive_field import Axis
from medimg.saliency._target_layer import Layer, capture_activation

__all__ = ["measure_field_centers"]

#: Pictures of noise, each of which tells the center of one cell.
_PICTURES: Final = 16
#: In cells: what is nearer to lying side by side needs no measurement.
_IN_PLACE: Final = 0.05
#: A shift is believed from so many standard errors on: in a network that pools maxima, cells differ widely.
_SURE: Final = 3.0

_Axes: TypeAlias = tuple[Axis, Axis]
#: For each network the digest of its parameters, and what was measured since they were so.
_known: WeakKeyDictionary[nn.Module, tuple[str, dict[tuple[str, tuple[int, int]], _Axes]]] = (
    WeakKeyDictionary()
)


def measure_field_centers(
    backbone: nn.Module, layer: Layer, size: tuple[int, int], batch_size: int = 8
) -> Layer:
    """
    Return a layer with the places of its cells measured, where strides and paddings are no sure guide.

    The effective receptive field of a cell is the gradient of its energy with respect to the picture (Luo et
    al., NeurIPS 2016); its center is the centroid of the squares. It is averaged over cells in the middle of
    16 pictures of noise with the spectrum of photographs (amplitude as 1/f), always the same ones, and is
    taken where it differs from what the strides say by more than three standard errors. The distance between
    cells is that of the strides.

    Parameters
    ----------
    backbone : nn.Module
        (B, 3, H, W) to (B, F), in evaluation mode.
    layer : Layer
        Whose cells.
    size : tuple of 2 ints
        Rows and columns of the pictures.
    batch_size : int
        Pictures at once.

    Returns
    -------
    Layer
        As it was where cells lie side by side, or where nothing of the pictures reaches it.
    """
    tiles = [Axis.tiles(n, cells) for n, cells in zip(size, layer.cells, strict=True)]
    gaps = [abs(axis.start - tile.start) / tile.step for axis, tile in zip(layer.axes, tiles, strict=True)]
    if max(gaps) < _IN_PLACE:
        return layer
    digest = parameters_digest(backbone)
    known = _known.get(backbone)
    if known is None or known[0] != digest:
        known = _known[backbone] = digest, {}
    kept, key = known[1], (layer.name, size)
    if key not in kept:
        kept[key] = _measure(backbone, layer, size, batch_size)
    return replace(layer, axes=kept[key])


def _measure(backbone: nn.Module, layer: Layer, size: tuple[int, int], batch_size: int) -> _Axes:
    chosen = _middle_cells(layer.cells)
    parts = zip(torch.split(_noise(size), batch_size), torch.split(chosen, batch_size), strict=True)
    field = torch.cat([_fields(backbone, layer, pictures, cells) for pictures, cells in parts])
    total = field.sum(dim=(1, 2))
    rows, columns = (_shift(field.sum(dim=2 - n), total, layer.axes[n], chosen[:, n]) for n in range(2))
    return rows, columns


def _fields(backbone: nn.Module, layer: Layer, pictures: Tensor, cells: Tensor) -> Tensor:
    """Return (B, H, W): how much each pixel says in one cell of each picture."""
    like = next((p for p in backbone.parameters() if p.is_floating_point()), torch.empty(0))
    pictures = pictures.to(like.device, like.dtype).requires_grad_()
    with capture_activation(backbone, layer) as held:
        backbone(pictures)
        maps = layer.maps(held[0])
        energy = torch.stack([maps[n, :, i, j].float().square().sum() for n, (i, j) in enumerate(cells)])
        (gradient,) = torch.autograd.grad(energy.sum(), pictures)
    return gradient.detach().double().square().sum(dim=1).cpu()


def _shift(profiles: Tensor, totals: Tensor, axis: Axis, cells: Tensor) -> Axis:
    """Move an axis to the centroids of profiles (B, size) of some cells."""
    centers = profiles @ torch.arange(profiles.shape[1], dtype=profiles.dtype) / totals
    off = centers - (axis.start + cells * axis.step)
    off = off[off.isfinite()]
    if len(off) < 2 or abs(off.mean()) <= _SURE * off.std() / len(off) ** 0.5:
        return axis
    return replace(axis, start=axis.start + float(off.mean()))


def _noise(size: tuple[int, int]) -> Tensor:
    """Return (B, 3, H, W) with an amplitude of 1/f and a variance of 1."""
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft2(torch.randn(_PICTURES, 3, *size, generator=generator))
    down, across = torch.fft.fftfreq(size[0])[:, None], torch.fft.rfftfreq(size[1])
    frequency = (down.square() + across.square()).sqrt()
    frequency[0, 0] = 1 / max(size)
    pictures: Tensor = torch.fft.irfft2(spectrum / frequency, s=size)
    return pictures / pictures.std()


def _middle_cells(cells: tuple[int, int]) -> Tensor:
    """Return one cell for each picture, (B, 2), evenly among those of the middle half."""
    middle = ([i for i in range(n) if abs(i - (n - 1) / 2) <= n / 4] for n in cells)
    all_of_them = torch.tensor(list(product(*middle)))
    return all_of_them[(torch.arange(_PICTURES) * len(all_of_them)) // _PICTURES]
