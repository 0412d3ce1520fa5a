"""How far a target is from the source, told before training: by tags, pictures and embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medimg.adapt import coral_loss, mmd_loss, proxy_a_distance
from medimg.adapt.shift_report import Difference, Distances, ShiftReport
from medimg.data.acquisition_tags import NUMBERED, NUMBERS, TEXTS, read_acquisition_tags
from medimg.errors import TrainingError
from medimg.features.dataset_features import item_features
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier

__all__ = ["STATISTICS", "domain_shift", "image_statistics", "statistics_of"]

#: Mean and standard deviation of the brightness (black 0, white 1); mean step from pixel to pixel, by the
#: contrast; noise as Immerkær estimates it.
STATISTICS: Final = ("brightness", "contrast", "sharpness", "noise")


def statistics_of(pictures: Tensor) -> Tensor:
    """
    Return numbers on pictures.

    The noise is ``sqrt(pi / 2) / 6`` times the mean absolute response to a mask that is blind to edges
    (Immerkær, Fast Noise Variance Estimation, 1996).

    Parameters
    ----------
    pictures : Tensor
        (N, H, W), black 0, white 1.

    Returns
    -------
    Tensor
        (N, 4): see :data:`STATISTICS`.

    Examples
    --------
    >>> statistics_of(torch.full((1, 8, 8), 0.5))
    tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    brightness = pictures.mean(dim=(1, 2))
    contrast = pictures.std(dim=(1, 2), correction=0)
    steps = (pictures.diff(dim=1).abs().mean(dim=(1, 2)) + pictures.diff(dim=2).abs().mean(dim=(1, 2))) / 2
    mask = pictures.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    noise = (
        F.conv2d(pictures[:, None], mask[None, None]).abs().mean(dim=(1, 2, 3)) * math.sqrt(math.pi / 2) / 6
    )
    return torch.stack([brightness, contrast, steps / contrast.clamp_min(1e-6), noise], dim=1)


def image_statistics(data: LabeledDataset, indices: Sequence[int]) -> NDArray[np.float64]:
    """
    Return numbers on items of a data set; those of a bag are the mean over its slices.

    Parameters
    ----------
    data : ImageDataset
        The pictures.
    indices : sequence of int
        Which items.

    Returns
    -------
    numpy.ndarray
        (n, 4): see :data:`STATISTICS`.
    """
    recipe = data.preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (recipe.mean, recipe.std))
    rows = []
    for index in indices:
        image = data[index][0]
        light = (image * std + mean).mean(dim=-3)
        rows.append(statistics_of(light if light.ndim == 3 else light[None]).mean(dim=0))
    return torch.stack(rows).double().numpy()


_KEYWORDS: Final = (*TEXTS, *NUMBERED, *NUMBERS)


def domain_shift(
    source: LabeledDataset,
    target: LabeledDataset,
    *,
    model: TransferClassifier | None = None,
    folds: int = 5,
    seed: int = 0,
    limit: int | None = 1000,
    batch_size: int = 32,
    progress: bool = False,
) -> ShiftReport:
    """
    Compare two data sets before training on one for the other.

    Parameters
    ----------
    source, target : ImageDataset
        Made by one recipe. Labels are not looked at.
    model : TransferClassifier, optional
        Its backbone gives embeddings, of which distances are computed; no distances without it.
    folds : int
        Of the cross-validation of the proxy A-distance, in which no patient is on both sides.
    seed : int
        Of folds and choice.
    limit : int, optional
        The most items of each side whose pictures are looked at, chosen at random; None for all.
    batch_size : int
        Pictures at once.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    ShiftReport

    Raises
    ------
    TrainingError
        If the recipes differ, or there are fewer patients than folds on a side.
    PreprocessError
        If the model's recipe is another one.

    Examples
    --------
    >>> print(medimg.domain_shift(train, new_scanner, model=model))  # doctest: +SKIP
    """
    check_same_preprocessing(
        target.preprocess,
        source.preprocess,
        name="the target",
        other="the source",
        hint="use target.with_preprocess(source.preprocess)",
        error=TrainingError,
    )
    sides = [_Side.of(data, limit, seed) for data in (source, target)]
    statistics = [image_statistics(side.data, side.chosen) for side in sides]
    pictures = [_numeric(name, *(s[:, n] for s in statistics)) for n, name in enumerate(STATISTICS)]
    distances = None
    if model is not None:
        distances = _distances(model, sides, folds, seed, batch_size, progress=progress)
    return ShiftReport(
        items=(len(source), len(target)),
        patients=(len(set(source.patients)), len(set(target.patients))),
        shared_patients=len(set(source.patients) & set(target.patients)),
        tags=tuple(_tag_differences(source, target)),
        pictures=tuple(pictures),
        distances=distances,
    )


@dataclass(frozen=True, slots=True)
class _Side:
    """A data set, and which of its items are looked at."""

    data: LabeledDataset
    chosen: list[int]

    @classmethod
    def of(cls, data: LabeledDataset, limit: int | None, seed: int) -> _Side:
        everything = np.arange(len(data))
        if limit is not None and len(data) > limit:
            everything = np.sort(np.random.default_rng(seed).permutation(len(data))[:limit])
        return cls(data, [int(n) for n in everything])

    def part(self) -> LabeledDataset:
        """Return the chosen items as a data set."""
        if len(self.chosen) == len(self.data):
            return self.data
        subset: Any = getattr(self.data, "subset", None)
        if subset is None:
            raise TrainingError(f"a {type(self.data).__name__} has no subset(); pass limit=None")
        part: LabeledDataset = subset(self.chosen)
        return part


def _tag_differences(source: LabeledDataset, target: LabeledDataset) -> list[Difference]:
    several = [list(dict.fromkeys(getattr(data, "series", ()))) for data in (source, target)]
    first: Sequence[Series] = several[0]
    # in one call, so that sites get the same numbers
    tags = read_acquisition_tags([*several[0], *several[1]], _KEYWORDS)
    sides = tags[: len(first)], tags[len(first) :]
    found = []
    for keyword in _KEYWORDS:
        values = [[row[keyword] for row in side if row[keyword] != ""] for side in sides]
        if not any(values):
            continue
        if keyword in NUMBERS:
            found.append(_numeric(keyword, *(np.asarray(v, dtype=np.float64) for v in values)))
        else:
            found.append(_categorical(keyword, *([str(row[keyword]) for row in side] for side in sides)))
    for axis, name in enumerate(("slice spacing, mm", "row spacing, mm", "column spacing, mm")):
        spacings = [np.asarray([s.spacing[axis] for s in side if s.space == "patient"]) for side in several]
        if all(len(side) for side in spacings):
            found.append(_numeric(name, *spacings))
    return sorted(found, key=lambda difference: -difference.size)


def _numeric(name: str, source: NDArray[np.float64], target: NDArray[np.float64]) -> Difference:
    """Compare numbers: the Kolmogorov-Smirnov statistic, the largest gap between both distributions."""
    if not (len(source) and len(target)):
        return Difference(name, _range(source), _range(target), 1.0)
    every = np.concatenate([source, target])
    shares = [np.searchsorted(np.sort(side), every, side="right") / len(side) for side in (source, target)]
    return Difference(name, _range(source), _range(target), float(np.abs(shares[0] - shares[1]).max()))


def _range(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "not stated"
    low, middle, high = (f"{v:.3g}" for v in (values.min(), np.median(values), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def _categorical(name: str, source: list[str], target: list[str]) -> Difference:
    """Compare words: the total variation distance, the share that would have to change."""
    names = sorted({*source, *target})
    shares = [[side.count(n) / max(len(side), 1) for n in names] for side in (source, target)]
    size = sum(abs(a - b) for a, b in zip(*shares, strict=True)) / 2
    return Difference(name, _counts(source), _counts(target), size)


def _counts(values: list[str]) -> str:
    names = sorted(set(values), key=lambda n: (-values.count(n), n))
    shown = [f"{name or 'not stated'} {values.count(name)}" for name in names[:4]]
    return ", ".join(shown) + (f", {len(names) - 4} more" if len(names) > 4 else "")


def _distances(
    model: TransferClassifier, sides: list[_Side], folds: int, seed: int, batch_size: int, *, progress: bool
) -> Distances:
    pooled = [
        item_features(model, side.part(), batch_size=batch_size, progress=progress).pooled("mean")
        for side in sides
    ]
    source, target = (embeddings.double() for embeddings in pooled)
    patients = [[side.data.patients[n] for n in side.chosen] for side in sides]
    distance = proxy_a_distance(
        source.numpy(),
        target.numpy(),
        source_patients=patients[0],
        target_patients=patients[1],
        folds=folds,
        seed=seed,
    )
    places = _plane(source, target)
    return Distances(
        a_distance=distance,
        coral=float(coral_loss(source, target)),
        mmd=float(mmd_loss(source, target)),
        source=places[0],
        target=places[1],
    )


def _plane(source: torch.Tensor, target: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both sides' embeddings along the two directions in which all of them vary most."""
    both = torch.cat([source, target])
    centered = both - both.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    # the sign of a direction is arbitrary: the largest entry is positive
    axes = directions[:2]
    largest = axes.abs().argmax(dim=1, keepdim=True)
    points = (centered @ (axes * axes.gather(1, largest).sign()).T).float().numpy()
    return points[: len(source)], points[len(source) :]
