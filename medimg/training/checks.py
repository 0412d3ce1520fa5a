"""Checks of model and data before training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import numpy as np

from medimg.data.items import ItemFacts
from medimg.data.leakage.check_leaks import check_splits
from medimg.data.patients import patient_key
from medimg.errors import LeakageError, TrainingError
from medimg.preprocessing.preprocess import check_same_preprocessing
from medimg.training.class_weights import check_labels

if TYPE_CHECKING:
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["check_classes", "check_data", "check_disjoint"]


def check_data(model: TransferClassifier, train: LabeledDataset, val: LabeledDataset | None) -> None:
    """Raise TrainingError if data don't match the model or each other, LeakageError if they overlap."""
    _check_dataset(model, train, "training")
    check_labels(train.labels, model.classes, model.task)
    if val is None:
        return
    _check_dataset(model, val, "validation")
    if train.unit != val.unit:
        raise TrainingError(
            f"the training data have unit={train.unit!r}, the validation data {val.unit!r}; expected the same"
        )
    check_disjoint(train, val)


def check_disjoint(train: LabeledDataset, val: LabeledDataset) -> None:
    """Raise LeakageError if a patient, study, series, file, instance or known image is in both datasets."""
    _check_sources_disjoint(train, val)
    first, second = ({patient_key(patient) for patient in set(data.patients)} for data in (train, val))
    shared = first & second - {""}
    if shared:
        raise LeakageError(
            f"{len(shared)} of {len(set(val.patients))} patients of the validation data are also in the "
            "training data, which would invalidate the validation scores; split with medimg.split(dataset)"
        )
    if isinstance(train, ItemFacts) and isinstance(val, ItemFacts):
        check_splits(train, val)


def _check_sources_disjoint(train: LabeledDataset, val: LabeledDataset) -> None:
    """Raise LeakageError if a series or file is in both datasets, whichever patients are given."""
    for name in ("series_uids", "sources"):
        first, second = (
            {os.path.realpath(value) for value in getattr(data, name, ()) if value} for data in (train, val)
        )
        shared = first & second
        if shared:
            raise LeakageError(
                f"{len(shared)} of {len(second)} series or files of the validation data are also in the "
                "training data, which would invalidate the validation scores; split with "
                "medimg.split(dataset)"
            )


def check_classes(model: TransferClassifier, data: LabeledDataset, which: str) -> None:
    """Raise TrainingError unless `data` is a dataset with items and the model's classes and task."""
    if not hasattr(data, "preprocess") or not hasattr(data, "patients"):
        raise TrainingError(
            f"the {which} data are a {type(data).__name__}; expected an ImageDataset: select a part of one "
            "with dataset.subset(indices) or medimg.split(dataset)"
        )
    if len(data) == 0:
        raise TrainingError(f"the {which} dataset is empty; expected at least one item")
    for name, found, expected in (
        ("classes", tuple(data.classes), model.classes),
        ("task", data.task, model.task),
    ):
        if found != expected:
            raise TrainingError(
                f"the {which} dataset has {name}={found!r}, the model {expected!r}; expected the same"
            )


def _check_dataset(model: TransferClassifier, data: LabeledDataset, which: str) -> None:
    """Raise TrainingError if a dataset doesn't match the model, or its labels the classes."""
    check_classes(model, data, which)
    check_same_preprocessing(
        data.preprocess, model.preprocess, name=f"the {which} dataset", error=TrainingError
    )
    if data.unit == "series" and model.pool == "none":
        raise TrainingError(
            f'the {which} dataset has bags (unit="series"), and a model with pool="none" takes images: use '
            'unit="slice", or pool="mean", "max" or "attention"'
        )
    if data.unit == "slice" and model.pool == "attention":
        raise TrainingError(
            f'pool="attention" needs whole series, and the {which} dataset has single images, with which its '
            'attention would stay random: use unit="series", or pool="mean" or "max"'
        )
    labels = np.asarray(data.labels)
    expected_shape = (len(data),) if model.task == "multiclass" else (len(data), len(model.classes))
    if labels.shape != expected_shape:
        raise TrainingError(
            f"the labels of the {which} dataset have shape {labels.shape}; expected {expected_shape}"
        )
    top = len(model.classes) - 1 if model.task == "multiclass" else 1
    if not np.isfinite(labels).all() or labels.min() < 0 or labels.max() > top:
        raise TrainingError(
            f"the labels of the {which} dataset range from {labels.min()} to {labels.max()}; expected values "
            f"from 0 to {top}"
        )
