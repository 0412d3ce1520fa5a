"""Fitting on validation data what a model's probabilities mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medimg.calibration.conformal import check_coverage, conformal_quantiles
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.operating_points import check_criterion, operating_points
from medimg.calibration.result import Calibration
from medimg.calibration.temperature_scaling import CalibrationData, fit_temperature
from medimg.errors import TrainingError
from medimg.features.dataset_features import item_features
from medimg.models._input_checks import checked_finite
from medimg.models.backbones.heads import head_logits
from medimg.models.digest import parameters_digest
from medimg.models.pooling import pool_embeddings
from medimg.models.training_images import check_not_trained_on, record_training_images
from medimg.training.checks import check_apart

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from medimg.calibration.operating_points import Criterion
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["calibrate"]

_BINS = 15


def calibrate(
    model: TransferClassifier,
    val: LabeledDataset,
    *,
    train: LabeledDataset | None = None,
    method: Literal["temperature"] | None = "temperature",
    operating_point: Criterion = None,
    coverage: float | None = 0.9,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool | None = False,
) -> Calibration:
    """
    Fit on validation data what a model's probabilities mean, and what is decided by them.

    The result is stored in ``model.calibration`` and in its checkpoint. From then on ``predict_proba`` and
    ``predict`` give calibrated probabilities, and ``predict`` decides by the operating point and tells
    prediction sets; ``model.calibration = None`` goes back. Training drops it.

    Parameters
    ----------
    model : TransferClassifier
        Trained. Its parameters are left as they are.
    val : ImageDataset
        Images that the model was not trained on, best not those either that it is evaluated on. Its unit is
        what thresholds and sets will hold for; with ``pool="none"`` the probability of a series is the mean
        of its slices'.
    train : ImageDataset, optional
        The training data: what usual images are like, so that ``predict`` tells how unusual others are.
    method : {"temperature"} or None
        Divide the logits by one number, of several labels by one each, that gives the lowest negative log
        likelihood; None leaves them.
    operating_point : "youden", {"sensitivity": x}, {"cost": c} or None
        The threshold of the second of two classes, and of each label: that of the highest sensitivity +
        specificity; of the highest specificity with at least this sensitivity; of the lowest cost, where a
        miss costs as much as `c` false alarms. Of more classes each against the rest, in a column of its
        own. None: the likeliest class, labels from 0.5 on.
    coverage : float or None
        How often a prediction set holds the class of an image of a new patient, at least. Of several labels:
        how often one that is there is in the set. None: no sets.
    cache : path-like, optional
        A folder where embeddings are kept; see :func:`medimg.embed`.
    batch_size, num_workers : int
        Pictures at once; processes that read.
    progress : bool, optional
        Whether to show a progress bar; None shows one where a person watches.

    Returns
    -------
    Calibration

    Raises
    ------
    TrainingError
        If data and model don't fit, a setting is unsound, or a class has no example for its threshold.
    PreprocessError
        If a data set is made by another recipe.
    LeakageError
        If the model was trained on images of `val`, or `train` shares a patient, series or file with it.

    Notes
    -----
    Temperature: Guo et al., ICML 2017. Sets: least ambiguous ones (Sadinle, Lei and Wasserman, 2019) with
    quantiles over patients; see ``medimg.calibration.conformal``. Their coverage is that of data which chose
    neither the model's epoch nor the temperature; that of two classes does not depend on the temperature.

    Examples
    --------
    >>> found = medimg.calibrate(model, val, operating_point={"sensitivity": 0.95})  # doctest: +SKIP
    >>> found.to_pandas()  # doctest: +SKIP
    """
    criterion, wanted = check_criterion(operating_point), check_coverage(coverage)
    if method not in ("temperature", None):
        raise TrainingError(f'method is "temperature" or None; found {method!r}')
    _check(model, val, "validation")
    if train is not None:
        _check(model, train, "training")
        check_apart(train, val)
    check_not_trained_on(model, val)
    options = {"cache": cache, "batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    vectors, starts = _vectors(model, val, **options)
    judged = CalibrationData(_logits(model, vectors), starts, np.asarray(val.labels), model.task)
    temperature = fit_temperature(judged) if method else np.ones(len(judged.losses()))
    proba, truth = judged.probabilities(temperature), judged.truth()
    calibration = Calibration(
        unit=val.unit,
        items=len(val),
        patients=len(set(val.patients)),
        temperature=tuple(temperature.tolist()),
        loss=(float(judged.losses().mean()), float(judged.losses(temperature).mean())),
        operating_point=criterion,
        points=operating_points(proba, truth, model.classes, model.task, criterion),
        coverage=wanted,
        quantiles=conformal_quantiles(proba, truth, val.patients, model.task, wanted),
        bins=(
            *_bins("raw", judged.probabilities(), truth, model.task),
            *_bins("calibrated", proba, truth, model.task),
        ),
        parameters_sha256=parameters_digest(model),
        outliers=None if train is None else _outliers(model, train, vectors, options),
    )
    model.calibration = calibration
    record_training_images(model, val=val)
    return calibration


def _check(model: TransferClassifier, data: LabeledDataset, which: str) -> None:
    """Refuse data that don't fit the model; series of slices that are scored apart do."""
    if not hasattr(data, "preprocess") or not hasattr(data, "patients") or len(data) == 0:
        raise TrainingError(
            f"the {which} data are to be an ImageDataset with items: take a part of one with "
            "medimg.split(dataset)"
        )
    for name, found, expected in (
        ("classes", tuple(data.classes), model.classes),
        ("task", data.task, model.task),
    ):
        if found != expected:
            raise TrainingError(
                f"the {which} data set has {name}={found!r}, the model has {expected!r}: make both the same"
            )


def _vectors(
    model: TransferClassifier, data: LabeledDataset, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return what the head sees, and the first row of each item: one row, or one for each slice."""
    features = item_features(model, data, **options)
    if data.unit == "slice" or model.pool == "none":
        return features.embeddings.numpy(), features.offsets[:-1].numpy()
    weight = model.head.weight
    bags = torch.tensor_split(features.embeddings, features.offsets[1:-1])
    with torch.no_grad():
        moved = (bag.to(weight.device, weight.dtype)[None] for bag in bags)
        pooled = [pool_embeddings(bag, None, model.pool, model.attention) for bag in moved]
    return torch.cat(pooled).float().cpu().numpy(), np.arange(len(pooled))


def _logits(model: TransferClassifier, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    weight = model.head.weight
    with torch.no_grad():
        rows = torch.from_numpy(vectors).to(weight.device, weight.dtype)
        return np.asarray(checked_finite(head_logits(model.head, rows), "logits").double().cpu().numpy())


def _outliers(
    model: TransferClassifier,
    train: LabeledDataset,
    held_out: NDArray[np.float32],
    options: Mapping[str, Any],
) -> MahalanobisDetector:
    vectors, starts = _vectors(model, train, **options)
    counts = np.diff(np.append(starts, len(vectors)))
    labels = np.asarray(train.labels)
    groups = labels if model.task == "multiclass" else np.zeros(len(labels))
    return MahalanobisDetector.fit(vectors, np.repeat(groups.astype(np.int64), counts), held_out)


def _bins(
    name: str, proba: NDArray[np.float64], truth: NDArray[np.bool_], task: str
) -> list[tuple[str, float, float, int]]:
    if task == "multilabel":
        scores, hits = proba.ravel(), truth.ravel()
    elif proba.shape[1] == 2:
        scores, hits = proba[:, 1], truth[:, 1]
    else:
        top = proba.argmax(axis=1)
        scores, hits = proba.max(axis=1), truth[np.arange(len(top)), top]
    which = np.minimum((scores * _BINS).astype(np.int64), _BINS - 1)
    parts = [which == b for b in np.unique(which)]
    return [(name, float(scores[p].mean()), float(hits[p].mean()), int(p.sum())) for p in parts]
