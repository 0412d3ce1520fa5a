"""From probabilities of images to those of the units that are scored: images, series or patients."""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, cast, get_args

import numpy as np
from numpy.typing import NDArray

from medimg.data.protocols import EvaluationDataset, Model
from medimg.errors import DatasetError, TrainingError
from medimg.metrics.units import ScoredUnits, decide
from medimg.preprocessing.preprocess import check_same_preprocessing

__all__ = ["Unit", "check_pair", "check_units", "make_units", "thresholds_of"]

Unit = Literal["patient", "series", "image"]


def make_units(
    dataset: EvaluationDataset,
    probabilities: NDArray[np.float64],
    unit: Unit,
    thresholds: tuple[float, ...] | None = None,
) -> ScoredUnits:
    """
    Group the items of a dataset into units and average their probabilities.

    Parameters
    ----------
    dataset : ImageDataset
        The items that were predicted.
    probabilities : ndarray of float, shape (n, K)
        One row per item.
    unit : {"patient", "series", "image"}
        What is scored.
    thresholds : tuple of float, optional
        See :func:`thresholds_of`.

    Returns
    -------
    ScoredUnits
        In the order in which the dataset first names them.

    Raises
    ------
    DatasetError
        If the unit is unknown or finer than the items, a label is impossible, a patient is not named, the
        labels within a unit differ, or a series belongs to two patients.
    TrainingError
        If the probabilities are not finite or not probabilities.
    """
    truth, patient, patient_names, item_unit = _grouped(dataset, unit)
    scores = _checked(probabilities, truth.shape, dataset.task)
    first = np.unique(item_unit, return_index=True)[1]
    means = _means(scores, item_unit, len(first))
    return ScoredUnits(
        truth=truth[first],
        predicted=decide(means, dataset.task, thresholds),
        probabilities=means,
        patient=patient[first],
        item_unit=item_unit,
        item_probabilities=scores,
        patient_names=patient_names,
    )


def check_units(dataset: EvaluationDataset, unit: Unit) -> None:
    """
    Refuse a unit that a dataset can't be scored by, before anything is predicted.

    Parameters
    ----------
    dataset : ImageDataset
        The items.
    unit : {"patient", "series", "image"}
        What is to be scored.

    Raises
    ------
    DatasetError
        See :func:`make_units`.
    """
    _grouped(dataset, unit)


def thresholds_of(model: Any) -> tuple[float, ...] | None:
    """
    Give the thresholds that a model decides by.

    Parameters
    ----------
    model : TransferClassifier
        Its ``calibration`` may hold operating points; one that was calibrated before its parameters were
        changed is refused where it predicts.

    Returns
    -------
    tuple of float or None
        One for each label, or one for the second of two classes; None where the most probable class, or 0.5,
        decides.
    """
    points = getattr(getattr(model, "calibration", None), "points", ())
    decides = points and (model.task == "multilabel" or len(model.classes) == 2)
    return tuple(float(point.threshold) for point in points) if decides else None


def check_pair(model: Model, dataset: EvaluationDataset) -> None:
    """
    Refuse a dataset that the model was not made for.

    Parameters
    ----------
    model : TransferClassifier
        The model.
    dataset : ImageDataset
        What it is to be evaluated on.

    Raises
    ------
    DatasetError
        If the dataset is empty, or its classes, task or recipe are not the model's.
    """
    if len(dataset) == 0:
        raise DatasetError("The dataset has no images; evaluation needs at least one. Check the split.")
    if tuple(dataset.classes) != tuple(model.classes):
        raise DatasetError(
            f"The dataset has the classes {list(dataset.classes)}, the model {list(model.classes)}; they "
            "must be the same, in the same order. Make the dataset with classes=model.classes."
        )
    if dataset.task != model.task:
        raise DatasetError(
            f"The dataset's task is {dataset.task!r}, the model's {model.task!r}; they must be the same."
        )
    check_same_preprocessing(dataset.preprocess, model.preprocess, error=DatasetError)


def _grouped(
    dataset: EvaluationDataset, unit: Unit
) -> tuple[NDArray[np.bool_], NDArray[np.int64], tuple[str, ...], NDArray[np.int64]]:
    """Indicators and patient of each item, the patients' names, and the unit of each item."""
    _check_unit(unit, dataset)
    truth = _indicators(dataset)
    patient, patient_names = _patients(dataset)
    item_unit = _number(_keys(dataset, unit, patient))
    first = np.unique(item_unit, return_index=True)[1]
    _check_labels(truth, truth[first][item_unit], item_unit, unit, dataset.unit)
    _check_patients(patient, patient[first][item_unit], item_unit)
    return truth, patient, patient_names, item_unit


def _check_unit(unit: str, dataset: EvaluationDataset) -> None:
    if unit not in get_args(Unit):
        raise DatasetError(
            f"unit={unit!r} is unknown; expected one of {', '.join(map(repr, get_args(Unit)))}."
        )
    if unit == "image" and dataset.unit == "series":
        raise DatasetError(
            "unit='image' was asked for, but each item of this dataset is a whole series. "
            "Use unit='series' or 'patient', or a dataset with unit='slice'."
        )


def _indicators(dataset: EvaluationDataset) -> NDArray[np.bool_]:
    """Labels of either task as indicators (n, K)."""
    labels, n_classes = np.asarray(dataset.labels), len(dataset.classes)
    if dataset.task == "multilabel":
        if labels.shape != (len(dataset), n_classes) or not np.isin(labels, (0, 1)).all():
            raise DatasetError(
                f"The labels have the shape {labels.shape}; expected {(len(dataset), n_classes)} with "
                "nothing but 0 and 1, one column per class. Correct the table of labels."
            )
        return cast("NDArray[np.bool_]", labels.astype(bool))
    if labels.shape != (len(dataset),) or not np.isin(labels, np.arange(n_classes)).all():
        raise DatasetError(
            f"The labels have the shape {labels.shape}; expected ({len(dataset)},) with whole numbers from 0 "
            f"to {n_classes - 1}, one per image. Correct the table of labels."
        )
    return cast("NDArray[np.bool_]", labels[:, None] == np.arange(n_classes))


def _checked(probabilities: NDArray[Any], shape: tuple[int, ...], task: str) -> NDArray[np.float64]:
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.shape != shape:
        raise TrainingError(
            f"The model gave probabilities of shape {scores.shape}; expected {shape}, a row per image and a "
            "column per class. Check the model's predict_proba."
        )
    if not np.isfinite(scores).all():
        bad = int((~np.isfinite(scores)).any(axis=1).sum())
        raise TrainingError(
            f"The model's probabilities are not finite for {bad} of {len(scores)} images; expected numbers "
            "from 0 to 1. Training may have diverged: train again with a smaller lr."
        )
    sums = scores.sum(axis=1)
    if scores.min() < 0 or scores.max() > 1 or (task == "multiclass" and np.abs(sums - 1).max() > 1e-3):
        raise TrainingError(
            f"The model's outputs lie from {scores.min():.3g} to {scores.max():.3g} and their sums from "
            f"{sums.min():.3g} to {sums.max():.3g}; expected probabilities. Check that predict_proba "
            "applies softmax (multiclass) or sigmoid (multilabel)."
        )
    return scores


def _patients(dataset: EvaluationDataset) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    missing = sum(not name for name in dataset.patients)
    if missing:
        raise DatasetError(
            f"{missing} of {len(dataset)} images have no patient, and intervals resample patients. "
            "Name the column with the patients (patient=...) when making the dataset."
        )
    return _number(dataset.patients), tuple(dict.fromkeys(dataset.patients))


def _keys(dataset: EvaluationDataset, unit: Unit, patient: NDArray[np.int64]) -> Sequence[Hashable]:
    """Give keys that are equal within a unit; images without a series are series of their own file."""
    if unit == "image":
        return range(len(dataset))
    if unit == "patient":
        return cast("list[int]", patient.tolist())
    pairs = zip(dataset.series_uids, dataset.sources, strict=True)
    return [("uid", uid) if uid else ("source", source) for uid, source in pairs]


def _number(keys: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number equal keys alike, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _check_labels(
    truth: NDArray[np.bool_], of_unit: NDArray[np.bool_], item_unit: NDArray[np.int64], unit: Unit, item: str
) -> None:
    differ = np.unique(item_unit[(truth != of_unit).any(axis=1)])
    if len(differ):
        finer = "series" if item == "series" else "image"
        raise DatasetError(
            f"In {len(differ)} of {item_unit.max() + 1} units (unit={unit!r}) the images carry different "
            f"labels; a unit must have one. Evaluate with unit={finer!r}, or label whole units."
        )


def _check_patients(
    patient: NDArray[np.int64], of_unit: NDArray[np.int64], item_unit: NDArray[np.int64]
) -> None:
    differ = np.unique(item_unit[patient != of_unit])
    if len(differ):
        raise DatasetError(
            f"{len(differ)} of {item_unit.max() + 1} series belong to more than one patient; expected one. "
            "Correct the patients in the table of labels."
        )


def _means(scores: NDArray[np.float64], item_unit: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Mean of the rows of each unit, shape (n, K)."""
    counts = np.bincount(item_unit, minlength=n)
    sums = [np.bincount(item_unit, weights=column, minlength=n) for column in scores.T]
    return np.stack(sums, axis=1) / counts[:, None]
