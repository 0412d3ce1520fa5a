"""What must hold before training starts."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING

import numpy as np

from medimg.data.facts import ItemFacts
from medimg.data.leaks import check_sides
from medimg.errors import LeakageError, PreprocessError, TrainingError
from medimg.learn.balance import check_labels

if TYPE_CHECKING:
    from torch import Tensor

    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.loaders import LabeledImages

__all__ = [
    "check_apart",
    "check_data",
    "check_input",
    "checked_classes",
    "real_number",
    "whole_number",
]


def check_input(x: Tensor, mask: Tensor | None, pool: str) -> None:
    """
    Refuse tensors that a classifier can't take.

    Raises
    ------
    PreprocessError
        It names the shape found and the one expected.
    """
    if x.ndim not in (4, 5) or x.shape[-3] != 3 or 0 in x.shape:
        raise PreprocessError(
            f"the model takes (B, 3, H, W) or (B, N, 3, H, W); found {tuple(x.shape)}. Make tensors with "
            "model.preprocess(source)"
        )
    if x.ndim == 5 and pool == "none":
        raise PreprocessError(
            f'a model with pool="none" takes single pictures (B, 3, H, W); found bags {tuple(x.shape)}. '
            'Use pool="mean", "max" or "attention", or a data set with unit="slice"'
        )
    if mask is None:
        return
    if x.ndim == 4 or mask.shape != x.shape[:2] or not bool(mask.any(dim=1).all()):
        raise PreprocessError(
            "a mask is (B, N) for bags (B, N, 3, H, W), with a slice in every bag; found "
            f"{tuple(mask.shape)} for {tuple(x.shape)}"
        )


def checked_classes(classes: Sequence[str], task: str) -> tuple[str, ...]:
    """
    Return the names of the classes, if they are sound.

    Raises
    ------
    TrainingError
        If the task is unknown, a name stands twice, or there are too few.
    """
    if task not in ("multiclass", "multilabel"):
        raise TrainingError(f'task is "multiclass" or "multilabel"; found {task!r}')
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TrainingError(f"classes is a list of names, in the order of the outputs; found {classes!r}")
    if not all(isinstance(name, str) and name for name in classes):
        raise TrainingError(f"classes is a sequence of names; found {classes!r}")
    names = tuple(classes)
    least = 2 if task == "multiclass" else 1
    if len(names) < least or len(set(names)) < len(names):
        raise TrainingError(
            f"a {task} model needs at least {least} different class names; found {names!r}"
            '. For one finding that is there or not, name both, such as ("normal", "pneumonia")'
        )
    return names


def whole_number(name: str, value: object) -> int:
    """
    Return a setting as an int, NumPy's integers too.

    Raises
    ------
    TrainingError
        If it is no whole number.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]  # anything is given, and most of it refused
    except TypeError:
        raise TrainingError(f"{name} is a whole number; found {value!r}") from None


def real_number(name: str, value: object) -> float:
    """
    Return a setting as a float, NumPy's too.

    Raises
    ------
    TrainingError
        If it is no number.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TrainingError(f"{name} is a number; found {value!r}")
    return float(value)


def check_data(model: TransferClassifier, train: LabeledImages, val: LabeledImages | None) -> None:
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


def check_apart(train: LabeledImages, val: LabeledImages) -> None:
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
        check_sides(train, val)


def _check_files_apart(train: LabeledImages, val: LabeledImages) -> None:
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


def _check_fit(model: TransferClassifier, data: LabeledImages, which: str) -> None:
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
    if data.preprocess.fingerprint != model.preprocess.fingerprint:
        raise TrainingError(
            f"the {which} data set is made by another recipe than the model's, which prediction will use "
            f"({_difference(model, data)}): make the model with preprocess=dataset.preprocess, or use "
            "dataset.with_preprocess(model.preprocess)"
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


def _difference(model: TransferClassifier, data: LabeledImages) -> str:
    found, expected = data.preprocess.to_dict(), model.preprocess.to_dict()
    fields = [
        f"{n}: {found.get(n)!r}, model {expected[n]!r}" for n in expected if found.get(n) != expected[n]
    ]
    return "; ".join(fields) or "another version of the recipe"
