"""Where a classifier looks: heat maps in the geometry of the source."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medimg._public import set_module
from medimg._validation import check_batch_size, check_choice
from medimg.core.progress import progress_bar
from medimg.core.volume import Volume
from medimg.errors import TrainingError
from medimg.io.read import read
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
    logits_of,
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
    progress: bool = False,
) -> Explanation:
    """
    Show where in an image a classifier finds a class.

    The heat map of a picture is made of the activations of the last layer that keeps rows and columns
    (Selvaraju et al., Grad-CAM, ICCV 2017), and is mapped back through the recipe to the pixels of the
    source. It shows where evidence for the class was found, not what the evidence is, nor whether it is
    right.

    Parameters
    ----------
    model : TransferClassifier
        Its recipe makes the pictures. Neither its parameters nor their gradients nor its mode change.
    source : str, Path, list of these, Series or Volume
        One image or series; see :func:`medimg.read`.
    target : str or int, optional
        The class, by its name or its place; by default the likeliest one. With pooling the logit of the
        series is explained, through the pooling; without it each slice's own.
    slices : int or sequence of int, optional
        Which slices to make heat maps of, as indices in the volume as it was read; by default all that the
        recipe takes. The prediction is made of all of these in any case.
    method : {"gradcam", "hirescam"}
        "hirescam" weighs each cell by its own gradient rather than by the mean over the picture (Draelos and
        Carin, 2020): the same behind a mean over the cells, more exact where places are told apart behind
        the layer, as in AlexNet, VGG and vision transformers.
    layer : str, optional
        A layer of ``model.backbone`` to take the activations of, by its name in ``named_modules()``.
    batch_size : int
        Pictures at once.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    Explanation
        Heat from 0 to 1, the same scale in all slices.

    Raises
    ------
    TrainingError
        If there is no such class, method or layer, the recipe takes no such slice, no layer of the network
        keeps rows and columns, or its calibration no longer holds.
    PreprocessError
        If the recipe does not fit the image.
    ReadError, SeriesError
        If the source can't be read.

    Examples
    --------
    >>> import medimg
    >>> from medimg.core.geometry import image_affine
    >>> model = medimg.TransferClassifier(
    ...     "squeezenet1_1", classes=["normal", "nodule"], weights=None, preprocess=medimg.Preprocess(size=96)
    ... )
    >>> volume = medimg.Volume(np.zeros((1, 4, 64, 80), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    >>> found = medimg.explain(model, volume, "nodule")
    >>> found.heat.shape, found.target, found.slices
    ((4, 64, 80), 'nodule', (0, 1, 2, 3))
    """
    _check(model, method, batch_size)
    check_calibration(model)
    wanted = None if target is None else _class_index(model, target)
    volume = source if isinstance(source, Volume) else read(source)
    device = next(model.parameters()).device
    # callers may be in inference mode
    with module_mode(model, training=False), torch.inference_mode(mode=False), torch.enable_grad():
        with torch.no_grad():
            rendered = model.preprocess.render(volume)
        places = PixelMapping.of(volume, model.preprocess, rendered.slices)
        if slices is not None:
            places = places.chosen(_checked_slices(slices, places.slices))
        planes = rendered.planes

        def batches(indices: Sequence[int]) -> Iterator[tuple[Tensor, list[int]]]:
            for start in range(0, len(indices), batch_size):
                part = list(indices[start : start + batch_size])
                yield model.preprocess.normalize(planes[part]).to(device), part

        with torch.no_grad():
            embeddings = torch.cat([model.embed(pictures) for pictures, _ in batches(range(len(planes)))])
            scores = model_probabilities(model, logits_of(model, embeddings)).mean(axis=0)
            weights = slice_weights(embeddings, model.pool, model.attention)
        chosen = int(scores.argmax()) if wanted is None else wanted
        gradient = head_gradient(model, embeddings, chosen)
        first, _ = next(batches(places.pictures[:2]))
        grid = find_layer(model.backbone, first, layer)
        grid = measure_field_centers(model.backbone, grid, model.preprocess.hw, batch_size)
        parts = ((pictures, gradient[part]) for pictures, part in batches(places.pictures))
        cams = activation_maps(model.backbone, grid, _watched(parts, len(places.pictures), progress), method)
    heat, outside = _spread(places, cams, grid)
    counts = np.bincount(rendered.slices, weights.double().cpu().numpy(), volume.shape[1])
    return Explanation(
        heat=heat,
        slices=places.slices,
        weights=counts[list(places.slices)] / counts.sum(),
        target=model.classes[chosen],
        probability=float(scores[chosen]),
        outside=outside,
        method=method,
        layer=grid.name,
        cells=grid.cells,
        volume=volume,
        recipe=model.preprocess,
    )


def _spread(
    places: PixelMapping, cams: npt.NDArray[np.float32], layer: Layer
) -> tuple[npt.NDArray[np.float32], float]:
    """Return the heat of the slices, the greatest being 1, and how much of it lies in the padding."""
    heat = places.spread(cams, layer.axes)
    highest, outside = places.outside(cams, layer.axes)
    most = max(float(heat.max()), highest)
    if most > 0:
        np.divide(heat, most, out=heat)
    return heat, outside


def _watched(
    batches: Iterator[tuple[Tensor, Tensor]], total: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    with progress_bar(desc="explaining", unit="image", progress=progress, total=total) as bar:
        for pictures, gradient in batches:
            yield pictures, gradient
            bar.update(len(pictures))


def _check(model: TransferClassifier, method: str, batch_size: int) -> None:
    check_choice("method", method, METHODS)
    check_batch_size(batch_size)


def _class_index(model: TransferClassifier, target: str | int) -> int:
    if isinstance(target, str) and target in model.classes:
        return model.classes.index(target)
    if not isinstance(target, str | bool):
        try:
            place = operator.index(target)
        except TypeError:
            place = -1
        if 0 <= place < len(model.classes):
            return place
    raise TrainingError(
        f"no class {target!r}; the model knows {', '.join(map(repr, model.classes))}, or their places from 0"
    )


def _checked_slices(slices: int | Sequence[int], taken: tuple[int, ...]) -> list[int]:
    given = [slices] if isinstance(slices, int | np.integer) else slices
    try:
        wanted = [operator.index(n) for n in given]
    except TypeError:
        raise TrainingError(f"slices is an index or several; found {slices!r}") from None
    missing = sorted(set(wanted) - set(taken))
    if missing or not wanted:
        known = f"{taken[0]} to {taken[-1]}" if len(taken) == taken[-1] - taken[0] + 1 else f"{list(taken)}"
        raise TrainingError(
            f"slices={missing or 'none at all'} were asked for; the recipe takes {known} of this volume. "
            'Slices are counted from 0 as they lie in the volume; a recipe with slices="all" takes all'
        )
    return wanted
