"""Saliency maps of a classifier, in the geometry of the source."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medimg._public import set_module
from medimg._validation import check_batch_size, check_choice, did_you_mean
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.errors import TrainingError, also
from medimg.io.read import read
from medimg.io.series_index import SeriesIndex
from medimg.models.backbones.heads import feature_count
from medimg.models.data_checks import check_model, check_source
from medimg.models.module_mode import module_mode
from medimg.models.pooling import slice_weights
from medimg.models.predict import check_calibration
from medimg.models.probabilities import model_probabilities
from medimg.saliency._back_projection import PixelMapping
from medimg.saliency._field_center import measure_field_centers
from medimg.saliency._grad_cam import (
    METHODS,
    Method,
    activation_maps,
    head_gradient,
    source_logits,
)
from medimg.saliency._target_layer import Layer, find_layer
from medimg.saliency.explanation import Explanation

if TYPE_CHECKING:
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["explain"]


@set_module("medimg")
def explain(
    model: TransferClassifier,
    source: Source | Volume,
    target: str | int | None = None,
    *,
    slices: int | Sequence[int] | None = None,
    method: Method = "gradcam",
    layer: str | None = None,
    batch_size: int = 8,
    progress: Progress = "auto",
) -> Explanation:
    """
    Compute the saliency map of a class for an image or series.

    The saliency map is made of the activations of the last layer with spatial resolution (Grad-CAM, Selvaraju
    et al., ICCV 2017), and mapped back through the preprocessing to the pixels of the source. It shows where
    evidence for the class was found, not what the evidence is, nor whether it is correct.

    Parameters
    ----------
    model : TransferClassifier
        Model to explain; its parameters, gradients and modes do not change. The map of an ensemble is the
        mean of those of its members, each from 0 to 1.
    source : str, Path, list of these, Series, Volume, or image of another library
        One image or series; see :func:`medimg.read`.
    target : str or int, optional
        Name or index of the class; by default the most probable one. With pooling the logit of the series is
        explained, through the pooling; without pooling that of each slice.
    slices : int or sequence of int, optional
        Indices in the volume of the slices to map; by default all that the preprocessing uses. The prediction
        is always that of all of these.
    method : {"gradcam", "hirescam"}
        "hirescam" weights each cell by its own gradient instead of the mean over the image (Draelos and
        Carin, 2020): identical before global average pooling, more exact if later layers distinguish
        positions, as in AlexNet, VGG and vision transformers.
    layer : str, optional
        Layer of ``model.backbone`` with the activations, by its name in ``named_modules()``.
    batch_size : int
        Number of images per batch.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    Explanation
        Heat from 0 to 1, on the same scale in all slices.

    Raises
    ------
    TrainingError
        If the class, method, layer or slice does not exist, no layer of the network has spatial resolution,
        or parameters were changed after calibration.
    PreprocessError
        If the preprocessing does not fit the image.
    ReadError, SeriesError
        If the source can't be read.

    Examples
    --------
    >>> import medimg
    >>> model = medimg.TransferClassifier(
    ...     "squeezenet1_1", classes=["normal", "nodule"], weights=None, preprocess=medimg.Preprocess(size=96)
    ... )
    >>> volume = medimg.Volume.from_array(np.zeros((4, 64, 80), np.int16), modality="CT", units="HU")
    >>> found = medimg.explain(model, volume, "nodule")
    >>> found.heat.shape, found.target, found.slices
    ((4, 64, 80), 'nodule', (0, 1, 2, 3))
    """
    check_model(model)
    check_source(source, "explain", error=TrainingError)
    if isinstance(source, SeriesIndex):
        raise TrainingError(
            f"explain takes one image or series; found a scan of {len(source)}: pass one of them, such as "
            "index[0]"
        )
    check_choice("method", method, METHODS)
    check_batch_size(batch_size)
    check_calibration(model)
    wanted = None if target is None else _class_index(model, target)
    volume = source if isinstance(source, Volume) else read(source)
    device = next(model.parameters()).device
    # callers may be in inference mode
    with module_mode(model, training=False), torch.inference_mode(mode=False), torch.enable_grad():
        with torch.no_grad():
            rendered = model.preprocess.render(volume)
        mapping = PixelMapping.of(volume, model.preprocess, rendered.slices)
        if slices is not None:
            mapping = mapping.select_slices(_check_slices(slices, mapping.slices))
        planes = rendered.planes

        def batches(indices: Sequence[int]) -> Iterator[tuple[Tensor, list[int]]]:
            for start in range(0, len(indices), batch_size):
                part = list(indices[start : start + batch_size])
                yield model.preprocess.normalize(planes[part]).to(device), part

        with torch.no_grad():
            embeddings = torch.cat([model.embed(images) for images, _ in batches(range(len(planes)))])
            scores = model_probabilities(model, source_logits(model, embeddings)).mean(axis=0)
            weights = slice_weights(embeddings, model.pool, model.attention)
        chosen = int(scores.argmax()) if wanted is None else wanted
        first, _ = next(batches(mapping.images[:2]))
        found = []
        for member, own in _split_members(model, embeddings):
            gradient = head_gradient(member, own, chosen)
            grid = find_layer(member.backbone, first.to(own.dtype), layer)
            grid = measure_field_centers(member.backbone, grid, model.preprocess.hw, batch_size)
            parts = ((images.to(own.dtype), gradient[part]) for images, part in batches(mapping.images))
            cams = activation_maps(
                member.backbone, grid, _with_progress(parts, len(mapping.images), progress), method
            )
            found.append((*_source_heat(mapping, cams, grid), grid))
    heat, outside, grid = _join_heats(found)
    counts = np.bincount(rendered.slices, weights.double().cpu().numpy(), volume.shape[1])
    return Explanation(
        heat=heat,
        slices=mapping.slices,
        weights=counts[list(mapping.slices)] / counts.sum(),
        target=model.classes[chosen],
        probability=float(scores[chosen]),
        outside=outside,
        method=method,
        layer=grid.name,
        cells=grid.cells,
        volume=volume,
        recipe=model.preprocess,
    )


def _split_members(model: TransferClassifier, embeddings: Tensor) -> list[tuple[TransferClassifier, Tensor]]:
    """Return the members of an ensemble with their embeddings (N, F); a single model with its own."""
    members = getattr(model, "members", (model,))
    parts = torch.split(embeddings, [feature_count(one) for one in members], dim=1)
    return [(one, own.to(one.head.weight.dtype)) for one, own in zip(members, parts, strict=True)]


def _join_heats(
    found: Sequence[tuple[npt.NDArray[np.float32], float, Layer]],
) -> tuple[npt.NDArray[np.float32], float, Layer]:
    """Return the mean of heat maps, with a maximum of 1 again, and the layers with the finest cells."""
    if len(found) == 1:
        return found[0]
    heat: npt.NDArray[np.float32] = np.mean(np.stack([heat for heat, _, _ in found]), axis=0)
    most = float(heat.max())
    if most > 0:
        np.divide(heat, most, out=heat)
    names = dict.fromkeys(grid.name for _, _, grid in found)
    finest = max((grid for _, _, grid in found), key=lambda grid: grid.cells)
    return heat, float(np.mean([outside for _, outside, _ in found])), replace(finest, name=", ".join(names))


def _source_heat(
    mapping: PixelMapping, cams: npt.NDArray[np.float32], layer: Layer
) -> tuple[npt.NDArray[np.float32], float]:
    """Return heat (slices, H, W) with a maximum of 1, and its fraction in the padding."""
    heat = mapping.to_source(cams, layer.axes)
    highest, outside = mapping.padding_heat(cams, layer.axes)
    most = max(float(heat.max()), highest)
    if most > 0:
        np.divide(heat, most, out=heat)
    return heat, outside


def _with_progress(
    batches: Iterator[tuple[Tensor, Tensor]], total: int, progress: Progress
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches, with a progress bar if it is wanted."""
    with progress_bar(desc="explaining", unit="image", progress=progress, total=total) as bar:
        for images, gradient in batches:
            yield images, gradient
            bar.update(len(images))


def _class_index(model: TransferClassifier, target: str | int) -> int:
    """Return the index of a class by its name or index."""
    if isinstance(target, str) and target in model.classes:
        return model.classes.index(target)
    if not isinstance(target, str | bool):
        try:
            index = operator.index(target)
        except TypeError:
            index = -1
        if 0 <= index < len(model.classes):
            return index
    raise also(TrainingError, KeyError)(
        f"the model has no class {target!r}; expected {', '.join(map(repr, model.classes))}, or an index "
        f"from 0{did_you_mean(target, model.classes)}"
    )


def _check_slices(slices: int | Sequence[int], taken: tuple[int, ...]) -> list[int]:
    """Return slice indices, which the preprocessing must use."""
    given = [slices] if isinstance(slices, int | np.integer) else slices
    try:
        wanted = [operator.index(n) for n in given]
    except TypeError:
        raise TrainingError(f"slices must be an index or several; found {slices!r}") from None
    missing = sorted(set(wanted) - set(taken))
    if missing or not wanted:
        known = f"{taken[0]} to {taken[-1]}" if len(taken) == taken[-1] - taken[0] + 1 else f"{list(taken)}"
        raise TrainingError(
            f"slices={missing or '[]'} are not among those that the preprocessing uses of this volume, "
            f"{known}; "
            'indices count from 0 in the volume; a recipe with slices="all" uses all'
        )
    return wanted
