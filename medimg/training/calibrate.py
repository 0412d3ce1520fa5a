"""Calibration of a model on validation data: temperature, thresholds, prediction sets, outliers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medimg._public import set_module
from medimg._validation import check_choice
from medimg.calibration.conformal import check_coverage, conformal_quantiles
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.operating_points import check_criterion, operating_points
from medimg.calibration.result import Calibration
from medimg.calibration.temperature_scaling import CalibrationData, fit_temperature
from medimg.errors import PreprocessError
from medimg.features.dataset_features import item_features
from medimg.models.backbones.heads import head_logits
from medimg.models.data_checks import check_dataset, check_same_unit
from medimg.models.digest import parameters_digest
from medimg.models.input_checks import check_finite
from medimg.models.pooling import pool_embeddings
from medimg.models.training_images import check_not_trained_on, record_training_images
from medimg.training.checks import check_disjoint

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from medimg.calibration.operating_points import Criterion
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["calibrate"]

_BINS = 15


@set_module("medimg")
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
    Fit temperature, decision thresholds and prediction sets of a model on validation data.

    The result is stored in ``model.calibration`` and in its checkpoint. From then on ``predict_proba`` and
    ``predict`` return calibrated probabilities, and ``predict`` decides by the operating point and returns
    prediction sets. ``model.calibration = None`` removes it, and so does training.

    Parameters
    ----------
    model : TransferClassifier
        Trained model; its parameters are not changed.
    val : ImageDataset
        Images that the model was not trained on, and preferably not those of its evaluation. Thresholds and
        sets hold for the unit of its items; with ``pool="none"`` the probability of a series is the mean over
        its slices.
    train : ImageDataset, optional
        Training data, to which an out-of-distribution detector is fitted.
    method : {"temperature"} or None
        Temperature scaling of the logits, for "multilabel" with one temperature per label, by the lowest
        negative log-likelihood; None for no scaling.
    operating_point : "youden", {"sensitivity": x}, {"cost": c} or None
        Threshold of the second of two classes, of each of several classes against the rest (in a separate
        column), or of each label: by the highest sensitivity + specificity; the highest specificity with at
        least this sensitivity; or the lowest cost, if a false negative costs as much as `c` false positives.
        None: the most likely class, and 0.5 for labels.
    coverage : float or None
        Smallest probability that a prediction set contains the class of an image of a new patient; for
        "multilabel", that it contains a label that is present. None: no sets.
    cache : path-like, optional
        Folder for cached embeddings; see :func:`medimg.embed`.
    batch_size, num_workers : int
        Number of images per batch; number of worker processes for reading.
    progress : bool, optional
        Whether to show a progress bar; None for only in an interactive terminal.

    Returns
    -------
    Calibration
        Fitted temperature, thresholds, set quantiles and out-of-distribution detector.

    Raises
    ------
    TrainingError
        If data and model or the units of `val` and `train` don't match, a setting is invalid, or a class has
        no example for its threshold.
    PreprocessError
        If a dataset has another preprocessing than the model.
    LeakageError
        If the model was trained on images of `val`, or `train` shares a patient, series or file with it.

    Notes
    -----
    Temperature: Guo et al., ICML 2017. Sets: least ambiguous set-valued classifiers (Sadinle, Lei and
    Wasserman, 2019) with quantiles over patients; see ``medimg.calibration.conformal``. The coverage is
    guaranteed for validation data that selected neither the model's epoch nor the temperature; with two
    classes it does not depend on the temperature.

    Examples
    --------
    >>> found = medimg.calibrate(model, val, operating_point={"sensitivity": 0.95})  # doctest: +SKIP
    >>> found.to_pandas()  # doctest: +SKIP
    """
    criterion, wanted = check_criterion(operating_point), check_coverage(coverage)
    check_choice("method", method, ("temperature", None))
    check_dataset("calibrate", model, val, "the validation dataset", preprocess_error=PreprocessError)
    if train is not None:
        check_dataset("calibrate", model, train, "the training dataset", preprocess_error=PreprocessError)
        check_same_unit(train, val, ("the training data", "the validation data"))
        check_disjoint(train, val)
    check_not_trained_on(model, val)
    options = {"cache": cache, "batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    vectors, starts = _compute_head_inputs(model, val, **options)
    data = CalibrationData(_compute_logits(model, vectors), starts, np.asarray(val.labels), model.task)
    temperature = fit_temperature(data) if method else np.ones(len(data.losses()))
    proba, truth = data.probabilities(temperature), data.truth()
    calibration = Calibration(
        unit=val.unit,
        items=len(val),
        patients=len(set(val.patients)),
        temperature=tuple(temperature.tolist()),
        loss=(float(data.losses().mean()), float(data.losses(temperature).mean())),
        operating_point=criterion,
        points=operating_points(proba, truth, model.classes, model.task, criterion),
        coverage=wanted,
        quantiles=conformal_quantiles(proba, truth, val.patients, model.task, wanted),
        bins=(
            *_bin_probabilities("raw", data.probabilities(), truth, model.task),
            *_bin_probabilities("calibrated", proba, truth, model.task),
        ),
        parameters_sha256=parameters_digest(model),
        outliers=None if train is None else _fit_detector(model, train, vectors, options),
    )
    model.calibration = calibration
    record_training_images(model, val=val)
    return calibration


def _compute_head_inputs(
    model: TransferClassifier, data: LabeledDataset, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return inputs of the head (n, F), and the first row of each item: one per item, or one per slice."""
    features = item_features(model, data, **options)
    if data.unit == "slice" or model.pool == "none":
        return features.embeddings.numpy(), features.offsets[:-1].numpy()
    weight = model.head.weight
    bags = torch.tensor_split(features.embeddings, features.offsets[1:-1])
    with torch.no_grad():
        moved = (bag.to(weight.device, weight.dtype)[None] for bag in bags)
        pooled = [pool_embeddings(bag, None, model.pool, model.attention) for bag in moved]
    return torch.cat(pooled).float().cpu().numpy(), np.arange(len(pooled))


def _compute_logits(model: TransferClassifier, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return logits (n, K) of inputs of the head (n, F)."""
    weight = model.head.weight
    with torch.no_grad():
        rows = torch.from_numpy(vectors).to(weight.device, weight.dtype)
        return np.asarray(check_finite(head_logits(model.head, rows), "logits").double().cpu().numpy())


def _fit_detector(
    model: TransferClassifier,
    train: LabeledDataset,
    held_out: NDArray[np.float32],
    options: Mapping[str, Any],
) -> MahalanobisDetector:
    """Return a detector fitted to the embeddings of the training data, calibrated by `held_out` (n, F)."""
    vectors, starts = _compute_head_inputs(model, train, **options)
    counts = np.diff(np.append(starts, len(vectors)))
    labels = np.asarray(train.labels)
    groups = labels if model.task == "multiclass" else np.zeros(len(labels))
    return MahalanobisDetector.fit(vectors, np.repeat(groups.astype(np.int64), counts), held_out)


def _bin_probabilities(
    name: str, proba: NDArray[np.float64], truth: NDArray[np.bool_], task: str
) -> list[tuple[str, float, float, int]]:
    """Return name, mean probability, frequency and count of each bin of a reliability diagram."""
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
