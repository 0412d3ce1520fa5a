"""Checks of model and data before training."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from medimg.data.items import ItemFacts
from medimg.data.leakage.check_leaks import check_splits
from medimg.data.patients import patient_key
from medimg.errors import LeakageError
from medimg.models.data_checks import check_dataset, check_same_unit
from medimg.training.class_weights import check_labels

if TYPE_CHECKING:
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["check_data", "check_disjoint"]


def check_data(model: TransferClassifier, train: LabeledDataset, val: LabeledDataset | None) -> None:
    """Raise TrainingError if data don't match the model or each other, LeakageError if they overlap."""
    check_dataset("fine_tune", model, train, "the training dataset")
    check_labels(train.labels, model.classes, model.task)
    if val is None:
        return
    check_dataset("fine_tune", model, val, "the validation dataset")
    check_same_unit(train, val, ("the training data", "the validation data"))
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
