"""Domain shift between two datasets: by DICOM tags, image statistics and embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from medimg._public import set_module
from medimg.adapt import coral_loss, mmd_loss, proxy_a_distance
from medimg.adapt.shift_report import Difference, Distances, ShiftReport
from medimg.data.acquisition_tags import NUMBERED, NUMBERS, TEXTS, read_acquisition_tags
from medimg.data.patients import patient_key
from medimg.errors import PreprocessError, TrainingError
from medimg.features.dataset_features import item_features
from medimg.models.data_checks import check_dataset, check_images, check_same_unit
from medimg.preprocessing.preprocess import check_same_preprocessing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.io.series import Series
    from medimg.models.classifier import TransferClassifier

__all__ = ["STATISTICS", "compute_statistics", "domain_shift"]

#: Mean and standard deviation of the intensity (black 0, white 1); mean absolute difference of neighboring
#: pixels, divided by the contrast; noise by Immerkær's estimator.
STATISTICS: Final = ("brightness", "contrast", "sharpness", "noise")


def compute_statistics(images: Tensor) -> Tensor:
    """
    Return :data:`STATISTICS` (N, 4) of images (N, H, W) with intensities from 0 to 1.

    The noise is ``sqrt(pi / 2) / 6`` times the mean absolute response to a mask that is insensitive to edges
    (Immerkær, Fast Noise Variance Estimation, 1996).

    Examples
    --------
    >>> compute_statistics(torch.full((1, 8, 8), 0.5))
    tensor([[0.5000, 0.0000, 0.0000, 0.0000]])
    """
    intensity = images.mean(dim=(1, 2))
    contrast = images.std(dim=(1, 2), correction=0)
    steps = (images.diff(dim=1).abs().mean(dim=(1, 2)) + images.diff(dim=2).abs().mean(dim=(1, 2))) / 2
    mask = images.new_tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    noise = F.conv2d(images[:, None], mask[None, None]).abs().mean(dim=(1, 2, 3)) * math.sqrt(math.pi / 2) / 6
    return torch.stack([intensity, contrast, steps / contrast.clamp_min(1e-6), noise], dim=1)


def _compute_item_statistics(data: LabeledDataset, indices: Sequence[int]) -> NDArray[np.float64]:
    """Return :data:`STATISTICS` (n, 4) of items of a dataset, for bags and volumes the mean over slices."""
    recipe = data.preprocess
    shape = (-1, *(1,) * recipe.dims)
    mean, std = (torch.tensor(values).view(shape) for values in recipe.normalization)
    # in 3-D the slices of a volume are left
    channel = 0 if recipe.dims == 3 else -3
    rows = []
    for index in indices:
        image = data[index][0]
        gray = (image * std + mean).mean(dim=channel)
        rows.append(compute_statistics(gray if gray.ndim == 3 else gray[None]).mean(dim=0))
    return torch.stack(rows).double().numpy()


_KEYWORDS: Final = (*TEXTS, *NUMBERED, *NUMBERS)


@set_module("medimg")
def domain_shift(
    source: LabeledDataset,
    target: LabeledDataset,
    *,
    model: TransferClassifier | None = None,
    folds: int = 5,
    seed: int = 0,
    limit: int | None = 1000,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress = "auto",
) -> ShiftReport:
    """
    Measure the domain shift between two datasets.

    Parameters
    ----------
    source, target : ImageDataset
        Datasets with the same preprocessing and unit. Labels are not used; the images may have none
        (``ImageDataset.from_folder(folder, label=None)``).
    model : TransferClassifier, optional
        Model whose backbone computes embeddings for the distances; no distances without it.
    folds : int
        Number of patient-wise cross-validation folds of the proxy A-distance.
    seed : int
        Seed for folds and sampling.
    limit : int, optional
        Largest number of items of each dataset that are read, sampled at random; None for all.
    batch_size : int
        Number of images per batch.
    workers : int, optional
        Number of processes that read the images for embeddings; by default they are read in this process.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    ShiftReport
        Differences of tags, image statistics and embeddings.

    Raises
    ------
    TrainingError
        If source or target is not a dataset, preprocessing or unit differ, or one has fewer patients than
        folds.
    PreprocessError
        If the model has another preprocessing.

    Examples
    --------
    >>> print(medimg.domain_shift(train, new_scanner, model=model))  # doctest: +SKIP
    """
    for name, data in (("the source", source), ("the target", target)):
        check_images(data, name)
    check_same_unit(source, target, ("the source data", "the target data"))
    if model is not None:
        check_dataset("domain_shift", model, source, "the source", preprocess_error=PreprocessError)
    check_same_preprocessing(
        target.preprocess,
        source.preprocess,
        name="the target",
        other="the source",
        hint="use target.with_preprocess(source.preprocess)",
        error=TrainingError,
    )
    samples = [_Sample.draw(data, limit, seed) for data in (source, target)]
    statistics = [_compute_item_statistics(sample.data, sample.indices) for sample in samples]
    images = [_compare_numbers(name, *(s[:, n] for s in statistics)) for n, name in enumerate(STATISTICS)]
    distances = None
    if model is not None:
        options = {"batch_size": batch_size, "workers": workers, "progress": progress}
        distances = _compare_embeddings(model, samples, folds, seed, options)
    return ShiftReport(
        items=(len(source), len(target)),
        patients=(len(set(source.patients)), len(set(target.patients))),
        shared_patients=len(
            {patient_key(p) for p in set(source.patients)} & {patient_key(p) for p in set(target.patients)}
        ),
        tags=tuple(_compare_tags(source, target)),
        images=tuple(images),
        distances=distances,
    )


@dataclass(frozen=True, slots=True)
class _Sample:
    """Dataset, and the indices of the items that are read."""

    data: LabeledDataset
    indices: list[int]

    @classmethod
    def draw(cls, data: LabeledDataset, limit: int | None, seed: int) -> _Sample:
        """Sample `limit` items; all if there are not more."""
        indices = np.arange(len(data))
        if limit is not None and len(data) > limit:
            indices = np.sort(np.random.default_rng(seed).permutation(len(data))[:limit])
        return cls(data, [int(n) for n in indices])

    def subset(self) -> LabeledDataset:
        """Return the items as a dataset."""
        if len(self.indices) == len(self.data):
            return self.data
        subset: Any = getattr(self.data, "subset", None)
        if subset is None:
            raise TrainingError(f"a {type(self.data).__name__} has no subset(); pass limit=None")
        part: LabeledDataset = subset(self.indices)
        return part


def _compare_tags(source: LabeledDataset, target: LabeledDataset) -> list[Difference]:
    """Return the differences of acquisition tags and voxel spacings, the largest first."""
    several = [list(dict.fromkeys(getattr(data, "series", ()))) for data in (source, target)]
    first: Sequence[Series] = several[0]
    # in one call, so that numbered values, such as sites, get the same numbers
    tags = read_acquisition_tags([*several[0], *several[1]], _KEYWORDS)
    sides = tags[: len(first)], tags[len(first) :]
    found = []
    for keyword in _KEYWORDS:
        values = [[row[keyword] for row in side if row[keyword] != ""] for side in sides]
        if not any(values):
            continue
        if keyword in NUMBERS:
            found.append(_compare_numbers(keyword, *(np.asarray(v, dtype=np.float64) for v in values)))
        else:
            found.append(_compare_texts(keyword, *([str(row[keyword]) for row in side] for side in sides)))
    for axis, name in enumerate(("slice spacing, mm", "row spacing, mm", "column spacing, mm")):
        spacings = [np.asarray([s.spacing[axis] for s in side if s.space == "patient"]) for side in several]
        if all(len(side) for side in spacings):
            found.append(_compare_numbers(name, *spacings))
    return sorted(found, key=lambda difference: -difference.size)


def _compare_numbers(name: str, source: NDArray[np.float64], target: NDArray[np.float64]) -> Difference:
    """Compare numbers (n,), (n',) by the Kolmogorov-Smirnov statistic."""
    if not (len(source) and len(target)):
        return Difference(name, _format_range(source), _format_range(target), 1.0)
    every = np.concatenate([source, target])
    shares = [np.searchsorted(np.sort(side), every, side="right") / len(side) for side in (source, target)]
    return Difference(
        name, _format_range(source), _format_range(target), float(np.abs(shares[0] - shares[1]).max())
    )


def _format_range(values: NDArray[np.float64]) -> str:
    if not len(values):
        return "not stated"
    low, middle, high = (f"{v:.3g}" for v in (values.min(), np.median(values), values.max()))
    return middle if low == high else f"{middle} ({low} to {high})"


def _compare_texts(name: str, source: list[str], target: list[str]) -> Difference:
    """Compare texts by the total variation distance."""
    names = sorted({*source, *target})
    shares = [[side.count(n) / max(len(side), 1) for n in names] for side in (source, target)]
    size = sum(abs(a - b) for a, b in zip(*shares, strict=True)) / 2
    return Difference(name, _format_counts(source), _format_counts(target), size)


def _format_counts(values: list[str]) -> str:
    names = sorted(set(values), key=lambda n: (-values.count(n), n))
    shown = [f"{name or 'not stated'} {values.count(name)}" for name in names[:4]]
    return ", ".join(shown) + (f", {len(names) - 4} more" if len(names) > 4 else "")


def _compare_embeddings(
    model: TransferClassifier,
    samples: list[_Sample],
    folds: int,
    seed: int,
    options: Mapping[str, Any],
) -> Distances:
    pooled = [item_features(model, sample.subset(), **options).pooled("mean") for sample in samples]
    source, target = (embeddings.double() for embeddings in pooled)
    patients = [[sample.data.patients[n] for n in sample.indices] for sample in samples]
    distance = proxy_a_distance(
        source.numpy(),
        target.numpy(),
        source_patients=patients[0],
        target_patients=patients[1],
        folds=folds,
        seed=seed,
    )
    points = _project(source, target)
    return Distances(
        a_distance=distance,
        coral=float(coral_loss(source, target)),
        mmd=float(mmd_loss(source, target)),
        source=points[0],
        target=points[1],
    )


def _project(source: torch.Tensor, target: torch.Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return embeddings (n, F), (n', F) along the first two principal components of both together."""
    both = torch.cat([source, target])
    centered = both - both.mean(dim=0)
    _, _, directions = torch.linalg.svd(centered, full_matrices=False)
    # the sign of a direction is arbitrary: the largest entry is positive
    axes = directions[:2]
    largest = axes.abs().argmax(dim=1, keepdim=True)
    points = (centered @ (axes * axes.gather(1, largest).sign()).T).float().numpy()
    return points[: len(source)], points[len(source) :]
