"""Calibration of a model on validation data: probabilities, thresholds, prediction sets, outliers."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import torch

from medimg._public import set_module
from medimg._validation import check_choice, check_number
from medimg.calibration.calibration_methods import (
    Method,
    choose_map,
    count_flat,
    fit_map,
    list_candidates,
)
from medimg.calibration.conformal import check_coverage, conformal_quantiles
from medimg.calibration.logit_map import LogitMap, count_temperatures
from medimg.calibration.mahalanobis import MahalanobisDetector
from medimg.calibration.operating_points import check_criterion, operating_points
from medimg.calibration.result import Calibration
from medimg.calibration.temperature_scaling import CalibrationData
from medimg.data.splits.kfold import assign_folds
from medimg.errors import MedimgWarning, PreprocessError, TrainingError
from medimg.features.dataset_features import item_features
from medimg.metrics.curves import compute_reliability
from medimg.models.backbones.heads import head_logits
from medimg.models.data_checks import check_dataset, check_same_unit
from medimg.models.digest import members_digest, parameters_digest
from medimg.models.input_checks import check_finite
from medimg.models.pooling import pool_embeddings
from medimg.models.training_images import check_not_trained_on, record_training_images
from medimg.training.checks import check_disjoint
from medimg.training.class_weights import BALANCES, list_class_weights

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from medimg.calibration.operating_points import Criterion
    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["calibrate"]

_FOLDS: Final = 5
_SUMMARY: Final = 'model.training_summary["{}"]'


@set_module("medimg")
def calibrate(
    model: TransferClassifier,
    val: LabeledDataset,
    *,
    train: LabeledDataset | None = None,
    method: Method = "auto",
    operating_point: Criterion = None,
    coverage: float | None = 0.9,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress = "auto",
) -> Calibration:
    """
    Fit probabilities, decision thresholds and prediction sets of a model on validation data.

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
    method : {"auto", "temperature", "platt", "vector", "isotonic"} or None
        Calibration of the probabilities by the lowest negative log likelihood. "temperature": logits are
        divided by a number, for "multilabel" one per label. "platt": and a bias is added for each class or
        label (Platt scaling). "vector": a scale and a bias for each of three or more classes. "isotonic":
        isotonic regression of each class against the rest. "auto": the one with the lowest cross-validated
        loss over patients, and of those that do not differ by more than one standard error, or of few
        patients, the simplest. None: none.

        Weights of classes, by which the training was balanced, are first undone if they are recorded in the
        model, or follow from `train`: they are subtracted from the logits as logarithms, unless that
        increases the loss. So the most likely class of a calibrated model is rarely a rare one; choose an
        operating point.
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
    batch_size : int
        Number of images per batch.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    Calibration
        Fitted calibration map, thresholds, set quantiles and out-of-distribution detector.

    Raises
    ------
    TrainingError
        If data and model or the units of `val` and `train` don't match, a setting is invalid, or a class has
        no example for its threshold, or none for the method.
    PreprocessError
        If a dataset has another preprocessing than the model.
    LeakageError
        If the model was trained on images of `val`, or `train` shares a patient, series or file with it.

    Warns
    -----
    MedimgWarning
        If the validation data have one class only, so that the probabilities stay as they are, or the scores
        are no better than chance on them, so that all calibrated probabilities are nearly equal.

    Notes
    -----
    Temperature and vector scaling: Guo et al., ICML 2017. Platt scaling, with smoothed targets: Platt 1999.
    Isotonic regression: Zadrozny and Elkan, KDD 2002, centered (Oron and Flournoy 2017). Sets: least
    ambiguous set-valued classifiers (Sadinle, Lei and Wasserman, 2019) with quantiles over patients; see
    ``medimg.calibration.conformal``. The coverage is guaranteed for validation data that selected neither the
    model's epoch nor the calibration; with two classes it does not depend on a temperature.

    Examples
    --------
    >>> found = medimg.calibrate(model, val, operating_point={"sensitivity": 0.95})  # doctest: +SKIP
    >>> found.to_pandas()  # doctest: +SKIP
    """
    criterion, wanted = check_criterion(operating_point), check_coverage(coverage)
    check_choice("method", method, (*get_args(get_args(Method)[0]), None))
    check_dataset("calibrate", model, val, "the validation dataset", preprocess_error=PreprocessError)
    if train is not None:
        check_dataset("calibrate", model, train, "the training dataset", preprocess_error=PreprocessError)
        check_same_unit(train, val, ("the training data", "the validation data"))
        check_disjoint(train, val)
    check_not_trained_on(model, val)
    options = {"cache": cache, "batch_size": batch_size, "workers": workers, "progress": progress}
    vectors, starts = _compute_head_inputs(model, val, **options)
    data = CalibrationData(_compute_logits(model, vectors), starts, np.asarray(val.labels), model.task)
    fitted, selection = _fit_map(method, data, val.patients, _find_offset(model, train))
    _warn_of_flat_maps(fitted, data)
    calibrated, truth = data.mapped(fitted), data.truth()
    proba = calibrated.probabilities()
    calibration = Calibration(
        unit="series" if val.unit == "series" else "image",
        items=len(val),
        patients=len(set(val.patients)),
        temperature=fitted.temperature,
        loss=(float(data.losses().mean()), float(calibrated.losses().mean())),
        method=fitted.method,
        offset=fitted.offset,
        bias=fitted.bias,
        curves=fitted.curves,
        selection=selection,
        operating_point=criterion,
        points=operating_points(proba, truth, model.classes, model.task, criterion),
        coverage=wanted,
        quantiles=conformal_quantiles(proba, truth, val.patients, model.task, wanted),
        bins=(
            *_bin_probabilities("raw", data.probabilities(), truth, model.task),
            *_bin_probabilities("calibrated", proba, truth, model.task),
        ),
        parameters_sha256=parameters_digest(model),
        members_sha256=members_digest(model),
        outliers=None if train is None else _fit_detector(model, train, vectors, options),
    )
    model.calibration = calibration
    record_training_images(model, val=val)
    return calibration


def _fit_map(
    method: Method, data: CalibrationData, patients: Sequence[str], offset: Sequence[float]
) -> tuple[LogitMap, tuple[tuple[str, float], ...]]:
    """Return the map of a method, or of the best one, and the cross-validated losses of those tried."""
    outputs = data.logits.shape[1]
    none = LogitMap("none", (1.0,) * count_temperatures("none", data.task, outputs))
    truth = data.truth()
    varied = int((truth.any(axis=0) & ~truth.all(axis=0)).sum())
    if method is None:
        return none, ()
    if data.task == "multilabel" and 0 < varied < outputs:
        _warn(f"{outputs - varied} of {outputs} labels are in all items of the validation data, or in none")
    if not varied:
        _warn("all items of the validation data have the same class, or the same labels")
        return none, ()
    whose = np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)
    if method == "auto":
        return choose_map(data, whose, _assign_folds(data, patients), offset)
    _check_method(method, data, truth)
    return fit_map(method, data, whose, offset), ()


def _warn_of_flat_maps(fitted: LogitMap, data: CalibrationData) -> None:
    """Warn if temperatures are at their upper bound: probabilities no longer depend on the image."""
    flat = count_flat(fitted, data)
    if flat:
        whose = f" of {flat} of {len(data.logits[0])} labels" if data.task == "multilabel" else ""
        warnings.warn(
            f"on the validation data the scores{whose} are no better than chance: the calibrated "
            "probabilities are nearly the same for all images (temperature at its bound, "
            f"{max(fitted.temperature):.3g}); train the model further, or use more validation data",
            MedimgWarning,
            stacklevel=3,
        )


def _warn(found: str) -> None:
    warnings.warn(
        f"{found}: their probabilities can't be calibrated and stay as they are; use validation data with "
        "and without each",
        MedimgWarning,
        stacklevel=5,
    )


def _check_method(method: str, data: CalibrationData, truth: NDArray[np.bool_]) -> None:
    """Raise TrainingError if a method does not fit the task, or a class has no example."""
    outputs = data.logits.shape[1]
    if method == "vector" and (data.task == "multilabel" or outputs < 3):
        raise TrainingError(
            'method="vector" is for three classes or more; for two classes or labels it is method="platt"'
        )
    missing = int((~truth.any(axis=0)).sum())
    if data.task == "multiclass" and missing and method != "temperature":
        raise TrainingError(
            f"{missing} of {outputs} classes have no example in the validation data, so that "
            f"method={method!r} "
            'can\'t be fitted: use other validation data, or method="temperature"'
        )


def _assign_folds(data: CalibrationData, patients: Sequence[str]) -> NDArray[np.int64]:
    """Return the fold (n,) of each item, by patients; a single fold if there are too few for several."""
    whose = np.unique(np.asarray(patients), return_inverse=True)[1].astype(np.int64)
    if len(list_candidates(data, whose)) < 2:
        return np.zeros(len(whose), np.int64)
    return assign_folds(data.labels, patients, data.task, _FOLDS, seed=0)


def _find_offset(model: TransferClassifier, train: LabeledDataset | None) -> tuple[float, ...]:
    """Return minus the logarithms of the class weights of the training, (K,); () if none are known."""
    summary = model.training_summary or {}
    weights, outputs = summary.get("class_weights"), len(model.classes)
    balance = check_choice(_SUMMARY.format("balance"), summary.get("balance"), BALANCES)
    if weights is None and train is not None and balance is not None:
        weights = list_class_weights(np.asarray(train.labels), model.task, outputs, balance)
    if weights is None:
        return ()
    # the summary comes from a file
    if not isinstance(weights, list | tuple) or len(weights) != outputs:
        found = f"{len(weights)}" if isinstance(weights, list | tuple) else f"a {type(weights).__name__}"
        raise TrainingError(
            f"{_SUMMARY.format('class_weights')} must be a list of {outputs} numbers, one for each class, or "
            f"None; found {found}: load the model again, or correct the summary"
        )
    names = [_SUMMARY.format(f"class_weights[{n}]") for n in range(outputs)]
    numbers = [check_number(name, weight, above=0) for name, weight in zip(names, weights, strict=True)]
    return tuple((-np.log(np.array(numbers))).tolist())


def _compute_head_inputs(
    model: TransferClassifier, data: LabeledDataset, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return inputs of the head (n, F), and the first row of each item: one per item, or one per slice."""
    features = item_features(model, data, **options)
    if data.unit != "series" or model.pool == "none":
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
    found = compute_reliability(hits, scores)
    rows = zip(found.predicted.tolist(), found.observed.tolist(), found.n.tolist(), strict=True)
    return [(name, *row) for row in rows]
