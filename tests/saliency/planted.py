"""Pictures with one bright patch at a known place, and networks that are made to depend on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from medimg import Preprocess, TransferClassifier, Volume, Window
from medimg.core.geometry import image_affine
from medimg.saliency.explanation import Explanation

CLASSES = ("plain", "patch")
#: Pictures whose values from 0 to 1 are brightness, and black is no signal at all.
SEEN = Window.from_range(0.0, 1.0)


def bump(side: int) -> npt.NDArray[np.float32]:
    """A patch without edges: 1 in the middle, 0 at its border."""
    slope = np.sin(np.pi * (np.arange(side) + 0.5) / side) ** 2
    patch: npt.NDArray[np.float32] = (slope[:, None] * slope).astype(np.float32)
    return patch


def planted(count: int, size: int, side: int, seed: int = 0) -> tuple[Volume, npt.NDArray[np.int64]]:
    """A volume whose slices are black but for one patch each, and the first row and column of each patch."""
    places = np.random.default_rng(seed).integers(0, size - side, (count, 2), endpoint=True)
    array = np.zeros((1, count, size, size), np.float32)
    for plane, (row, column) in zip(array[0], places, strict=True):
        plane[row : row + side, column : column + side] = bump(side)
    return Volume(array, image_affine()), places


def on_patch(found: Explanation, places: npt.NDArray[np.int64], side: int) -> npt.NDArray[np.bool_]:
    """Pointing game: whether the greatest heat of each slice lies in its patch."""
    hits = []
    for plane, place in zip(found.heat, places, strict=True):
        # beyond the outermost cells heat stays what it is: its peak is where that begins
        highest = np.argwhere(plane >= plane.max() * (1 - 1e-5))
        middle = (np.array(plane.shape) - 1) / 2
        peak = highest[np.abs(highest - middle).sum(axis=1).argmin()]
        hits.append(bool(plane.max() > 0 and ((peak >= place) & (peak < place + side)).all()))
    return np.array(hits)


def classifier(name: str, size: int, contrast: float, seed: int = 0, **options: Any) -> TransferClassifier:
    """Random weights; black is 0 for the network, and white is `contrast`."""
    recipe = Preprocess(window=SEEN, size=size, mean=(0.0,) * 3, std=(1 / contrast,) * 3)
    torch.manual_seed(seed)
    model = TransferClassifier(name, classes=CLASSES, weights=None, preprocess=recipe, **options)
    return model.eval()


def see_plainly(network: nn.Module, seed: int = 0) -> None:
    """
    Make all weights positive, those of convolutions strongest in the middle.

    Brightness then passes to the last layer, blurred and in other proportions for each channel.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue
        weight = torch.rand(module.weight.shape, generator=generator)
        for axis in range(2, weight.ndim):
            places = torch.arange(weight.shape[axis]) - (weight.shape[axis] - 1) / 2
            shape = [-1 if n == axis else 1 for n in range(weight.ndim)]
            weight *= torch.exp(-2 * places**2).reshape(shape)
        total = weight.flatten(1).sum(dim=1).reshape(-1, *[1] * (weight.ndim - 1))
        module.weight.data = weight / total
        if module.bias is not None:
            module.bias.data.zero_()


def see_without_attention(network: nn.Module) -> None:
    """Silence what MaxViT's windows add, attention and perceptron, and make the rest see plainly."""
    see_plainly(network)
    for module in network.modules():
        if type(module).__name__ == "PartitionAttentionLayer":
            for part in (module.attn_layer, module.mlp_layer):
                assert isinstance(part, nn.Sequential)
                last = [m for m in part.modules() if isinstance(m, nn.Linear)][-1]
                nn.init.zeros_(last.weight)


def tell_brightness(network: nn.Module) -> None:
    """Give patches of Swin a part that is always there: norms would make all brightness alike without."""
    stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    assert stem.bias is not None
    nn.init.normal_(stem.bias, std=0.5)


def see_late(network: nn.Module) -> None:
    """Let the class token of a vision transformer see the picture in the last layer only."""
    *early, _ = [m for m in network.modules() if isinstance(m, nn.MultiheadAttention)]
    for attention in early:
        nn.init.zeros_(attention.out_proj.weight)
        nn.init.zeros_(attention.out_proj.bias)


def depend_on_patch(model: TransferClassifier, size: int, side: int) -> None:
    """Set the head to what a patch changes in the embedding."""
    volume, _ = planted(16, size, side, seed=100)
    plain = volume.with_array(np.zeros_like(volume.array)).take([0])
    with torch.no_grad():
        parts = model.preprocess(volume).split(8)
        changed = torch.cat([model.embed(part) for part in parts]).mean(dim=0)
        direction = changed - model.embed(model.preprocess(plain))[0]
        direction /= direction.norm()
        model.head.weight.copy_(torch.stack([-direction, direction]).reshape(model.head.weight.shape))
        assert model.head.bias is not None
        model.head.bias.zero_()
