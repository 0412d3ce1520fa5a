"""What must hold before training starts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from medimg.data.items import ItemFacts
from medimg.data.leakage.check_leaks import check_splits
from medimg.errors import LeakageError, TrainingError
from medimg.preprocessing.preprocess import check_same_preprocessing
from medimg.training.losses import check_labels

if TYPE_CHECKING:
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["check_apart", "check_data"]


def check_data(model: TransferClassifier, train: LabeledDataset, val: LabeledDataset | None) -> None:
    """
    Refuse data that don't fit the model, or each other.

    Raises
    ------
    TrainingError
        If a data set is empty, has other classes, another task, recipe or unit than the model; or a class has
        no training example.
    LeakageError
        If a patient, study, series, file or SOP instance is in both, or the same pixels as far as they were
        compared before.
    """
    _check_fit(model, train, "training")
    check_labels(train.labels, model.classes, model.task)
    if val is None:
        return
    _check_fit(model, val, "validation")
    if train.unit != val.unit:
        raise TrainingError(
            f"the training data give items of unit={train.unit!r}, the validation data of {val.unit!r}: "
            "make both the same"
        )
    check_apart(train, val)


def check_apart(train: LabeledDataset, val: LabeledDataset) -> None:
    """
    Refuse validation data that share something with the training data.

    Raises
    ------
    LeakageError
        If a patient, study, series, file or SOP instance is in both, or the same pixels as far as they were
        compared before.
    """
    _check_files_apart(train, val)
    shared = set(train.patients) & set(val.patients) - {""}
    if shared:
        raise LeakageError(
            f"{len(shared)} of {len(set(val.patients))} patients of the validation data are in the training "
            "data too, so that its scores would say nothing; split with medimg.split(dataset)"
        )
    if isinstance(train, ItemFacts) and isinstance(val, ItemFacts):
        check_splits(train, val)


def _check_files_apart(train: LabeledDataset, val: LabeledDataset) -> None:
    """Refuse the same series or file on both sides, whoever it is said to belong to."""
    for what in ("series_uids", "sources"):
        sides = [
            {os.path.realpath(name) for name in getattr(data, what, ()) if name} for data in (train, val)
        ]
        shared = sides[0] & sides[1]
        if shared:
            raise LeakageError(
                f"{len(shared)} of {len(sides[1])} series or files of the validation data are in the "
                "training data too, so that its scores would say nothing; split with medimg.split(dataset)"
            )


def _check_fit(model: TransferClassifier, data: LabeledDataset, which: str) -> None:
    if not hasattr(data, "preprocess") or not hasattr(data, "patients"):
        raise TrainingError(
            f"the {which} data is a {type(data).__name__}, expected an ImageDataset: take a part of one with "
            "dataset.subset(indices) or medimg.split(dataset)"
        )
    if len(data) == 0:
        raise TrainingError(f"the {which} data set is empty; expected at least one item")
    for name, found, expected in (
        ("classes", tuple(data.classes), model.classes),
        ("task", data.task, model.task),
    ):
        if found != expected:
            raise TrainingError(
                f"the {which} data set has {name}={found!r}, the model has {expected!r}: make both the same"
            )
    check_same_preprocessing(
        data.preprocess, model.preprocess, name=f"the {which} dataset", error=TrainingError
    )
    if data.unit == "series" and model.pool == "none":
        raise TrainingError(
            f'the {which} data set gives bags (unit="series"), and a model with pool="none" takes single '
            'pictures: use unit="slice", or pool="mean", "max" or "attention"'
        )
    if data.unit == "slice" and model.pool == "attention":
        raise TrainingError(
            f'pool="attention" learns from whole series, and the {which} data give single pictures: its '
            'attention would stay random. Use unit="series", or pool="mean" or "max"'
        )
    labels = np.asarray(data.labels)
    expected_shape = (len(data),) if model.task == "multiclass" else (len(data), len(model.classes))
    if labels.shape != expected_shape:
        raise TrainingError(
            f"the labels of the {which} data set have shape {labels.shape}, expected {expected_shape}"
        )
    top = len(model.classes) - 1 if model.task == "multiclass" else 1
    if not np.isfinite(labels).all() or labels.min() < 0 or labels.max() > top:
        raise TrainingError(
            f"the labels of the {which} data set range from {labels.min()} to {labels.max()}, expected "
            f"values from 0 to {top}"
        )
