"""Aggregation of image-level probabilities over the units that are scored: images, series or patients."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from medimg._validation import check_choice
from medimg.data.protocols import EvaluationDataset, Model, ScoredDataset
from medimg.errors import DatasetError, TrainingError
from medimg.metrics.units import ScoredUnits, decide, to_indicators
from medimg.models.data_checks import check_dataset

__all__ = ["Unit", "check_pair", "check_units", "get_thresholds", "make_units"]

Unit = Literal["patient", "series", "image"]

_ROUNDING = 1e-6


def make_units(
    dataset: ScoredDataset,
    probabilities: NDArray[np.float64],
    unit: Unit,
    thresholds: tuple[float, ...] | None = None,
) -> ScoredUnits:
    """
    Group items into units, in the order of the dataset, and average their probabilities (n, K).

    Raises DatasetError as :func:`check_units` does, and TrainingError if these are not probabilities.
    """
    truth, patient, patient_names, item_unit = _group_items(dataset, unit)
    scores = _check_probabilities(probabilities, truth.shape, dataset.task)
    first = np.unique(item_unit, return_index=True)[1]
    counts = np.bincount(item_unit, minlength=len(first))
    sums = [np.bincount(item_unit, weights=column, minlength=len(first)) for column in scores.T]
    means = np.stack(sums, axis=1) / counts[:, None]
    return ScoredUnits(
        truth=truth[first],
        predicted=decide(means, dataset.task, thresholds),
        probabilities=means,
        patient=patient[first],
        item_unit=item_unit,
        item_probabilities=scores,
        patient_names=patient_names,
    )


def check_units(dataset: ScoredDataset, unit: Unit) -> None:
    """
    Raise DatasetError if a dataset can't be scored by a unit, before anything is predicted.

    The unit is unknown or finer than the items, a label is invalid, a patient is missing, the labels within a
    unit differ, or a series belongs to two patients.
    """
    _group_items(dataset, unit)


def get_thresholds(model: Any) -> tuple[float, ...] | None:
    """Return the operating points of a model, of each label or of the second of two classes, or None."""
    points = getattr(getattr(model, "calibration", None), "points", ())
    decides = points and (model.task == "multilabel" or len(model.classes) == 2)
    return tuple(float(point.threshold) for point in points) if decides else None


def check_pair(model: Model, dataset: EvaluationDataset) -> None:
    """Raise DatasetError if a dataset is empty or unlabeled, or its classes, task or preprocessing differ."""
    check_dataset("evaluate", model, dataset, error=DatasetError)


def _group_items(
    dataset: ScoredDataset, unit: Unit
) -> tuple[NDArray[np.bool_], NDArray[np.int64], tuple[str, ...], NDArray[np.int64]]:
    """Return indicators (n, K), patient (n,), names of the patients, and unit of each item (n,)."""
    check_choice("unit", unit, get_args(Unit), error=DatasetError)
    if unit == "image" and dataset.unit == "series":
        raise DatasetError(
            "unit='image' was requested, but each item of this dataset is a whole series; use unit='series' "
            "or 'patient', or a dataset with unit='image'"
        )
    truth = _check_labels(dataset)
    patient, patient_names = _number_patients(dataset)
    item_unit = _number_keys(_find_unit_keys(dataset, unit, patient))
    first = np.unique(item_unit, return_index=True)[1]
    differ = np.unique(item_unit[(truth != truth[first][item_unit]).any(axis=1)])
    if len(differ):
        finer = "series" if dataset.unit == "series" else "image"
        raise DatasetError(
            f"in {len(differ)} of {item_unit.max() + 1} units (unit={unit!r}) the images have different "
            f"labels; a unit must have one: evaluate with unit={finer!r}, or label whole units"
        )
    differ = np.unique(item_unit[patient != patient[first][item_unit]])
    if len(differ):
        raise DatasetError(
            f"{len(differ)} of {item_unit.max() + 1} series belong to more than one patient; expected one: "
            "correct the patients in the table of labels"
        )
    return truth, patient, patient_names, item_unit


def _check_labels(dataset: ScoredDataset) -> NDArray[np.bool_]:
    """Return labels of either task as indicators (n, K); raise DatasetError if they are invalid."""
    labels, n_classes = np.asarray(dataset.labels), len(dataset.classes)
    if dataset.task == "multilabel":
        if labels.shape != (len(dataset), n_classes) or not np.isin(labels, (0, 1)).all():
            raise DatasetError(
                f"the labels have the shape {labels.shape}; expected {(len(dataset), n_classes)} with 0 and "
                "1 only, one column per class: correct the table of labels"
            )
    elif labels.shape != (len(dataset),) or not np.isin(labels, np.arange(n_classes)).all():
        raise DatasetError(
            f"the labels have the shape {labels.shape}; expected ({len(dataset)},) with whole numbers from 0 "
            f"to {n_classes - 1}, one per image: correct the table of labels"
        )
    return to_indicators(labels, dataset.task, n_classes)


def _check_probabilities(
    probabilities: NDArray[Any], shape: tuple[int, ...], task: str
) -> NDArray[np.float64]:
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.shape != shape:
        raise TrainingError(
            f"the model returned probabilities of shape {scores.shape}; expected {shape}, one row per image "
            "and one column per class: check the model's predict_proba"
        )
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise TrainingError(
            f"the model's probabilities are not finite for {bad} of {len(scores)} images; expected numbers "
            "from 0 to 1: training may have diverged, train again with a smaller lr"
        )
    sums = scores.sum(axis=1)
    outside = scores.min() < -_ROUNDING or scores.max() > 1 + _ROUNDING
    if outside or (task == "multiclass" and np.abs(sums - 1).max() > 1e-3):
        raise TrainingError(
            f"the model's outputs range from {scores.min():.3g} to {scores.max():.3g} and their sums from "
            f"{sums.min():.3g} to {sums.max():.3g}; expected probabilities: check that predict_proba "
            "applies softmax (multiclass) or sigmoid (multilabel)"
        )
    return scores.clip(0, 1)


def _number_patients(dataset: ScoredDataset) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Return the number of each item's patient (n,), and the patients' names."""
    missing = sum(not name for name in dataset.patients)
    if missing:
        raise DatasetError(
            f"{missing} of {len(dataset)} images have no patient, and intervals resample patients; "
            "name the column of patients (patient=...) when making the dataset"
        )
    return _number_keys(dataset.patients), tuple(dict.fromkeys(dataset.patients))


def _find_unit_keys(dataset: ScoredDataset, unit: Unit, patient: NDArray[np.int64]) -> Sequence[Hashable]:
    """Return keys that are equal within a unit; images without a series are series of their own file."""
    if unit == "image":
        return range(len(dataset))
    if unit == "patient":
        return cast("list[int]", patient.tolist())
    pairs = zip(dataset.series_uids, dataset.sources, strict=True)
    return [("uid", uid) if uid else ("source", source) for uid, source in pairs]


def _number_keys(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Return the number of each key, in the order of first occurrence."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
