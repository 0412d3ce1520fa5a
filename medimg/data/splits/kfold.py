"""Folds by patient, stratified by class."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from medimg._public import set_module
from medimg._validation import check_seed, check_whole_number
from medimg.data.leakage.check_leaks import check_patients, check_types
from medimg.data.splits.split import check_by
from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from medimg.data.dataset import ImageDataset
    from medimg.data.leakage.check_leaks import Check
    from medimg.data.splits.split import SplitBy

__all__ = ["Indices", "assign_folds", "check_folds", "count_patients_by_class", "kfold", "split_by_fold"]

Indices: TypeAlias = "NDArray[np.int64]"


@set_module("medimg")
def kfold(
    dataset: ImageDataset,
    folds: int = 5,
    *,
    by: SplitBy = "patient",
    seed: int = 0,
    check: Check | None = "auto",
) -> list[tuple[ImageDataset, ImageDataset]]:
    """
    Divide a dataset into folds by patient, stratified by class, for cross-validation.

    Parameters
    ----------
    dataset : ImageDataset
        Dataset to divide.
    folds : int
        Number of folds, 2 or more.
    by : {"patient"}
        Grouping.
    seed : int
        Seed for shuffling, from 0 to 2³² - 1; the same seed gives the same folds, which are those of
        :func:`medimg.cross_validate`.
    check : {"auto", "pixels", "fast"} or None
        What is compared between patients; see :func:`medimg.split`.

    Returns
    -------
    list of tuple of ImageDataset
        For each fold the items outside it, to train on, and those in it, to test on; each holds every class.

    Raises
    ------
    LeakageError
        If no clean folds exist: a class has fewer patients than there are folds, or would be absent from one,
        or the same study, series, file, SOP instance or pixels belong to two patients.
    DatasetError
        If the number of folds or the seed is invalid, or `dataset` is not a dataset.

    Examples
    --------
    >>> for train, test in medimg.kfold(data, 5):  # doctest: +SKIP
    ...     medimg.fine_tune(model, train)
    """
    check_by(by)
    check_types(dataset)
    check_folds(dataset, folds, check)
    labels = np.asarray(dataset.labels)
    counts = count_patients_by_class(labels, dataset.patients, dataset.task, len(dataset.classes))
    for name, count in zip(dataset.classes, counts, strict=True):
        if count < folds:
            raise LeakageError(
                f"class {name!r} has {count} patient(s), and {folds} folds need at least {folds}: "
                "collect more, drop the class, or use fewer folds"
            )
    fold = assign_folds(labels, dataset.patients, dataset.task, folds, seed)
    parts = split_by_fold(fold)
    for _, held_out in parts:
        _check_classes(dataset, labels[held_out])
    return [(dataset.subset(train), dataset.subset(test)) for train, test in parts]


def check_folds(dataset: ImageDataset, folds: int, check: Check | None = "fast") -> None:
    """Raise an error if the number of folds is invalid, or data would leak between them."""
    check_whole_number("folds", folds, least=2, error=DatasetError)
    check_patients(dataset, check)


def _check_classes(dataset: ImageDataset, labels: NDArray[np.generic]) -> None:
    shown = count_patients_by_class(labels, range(len(labels)), dataset.task, len(dataset.classes))
    absent = [name for name, count in zip(dataset.classes, shown, strict=True) if not count]
    if absent:
        raise LeakageError(
            f"class {absent[0]!r} would be absent from a fold, as few patients have it, and these have other "
            "classes too, or far more items than others: use another seed or fewer folds"
        )


def assign_folds(
    labels: NDArray[np.generic], patients: Sequence[str], task: str, folds: int, seed: int
) -> Indices:
    """
    Return the fold of each item, (n,) int64, by scikit-learn's ``StratifiedGroupKFold`` over patients.

    Labels are (n,) class indices, or (n, K) indicators, of which each combination counts as a class.

    Examples
    --------
    >>> assign_folds(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"], "multiclass", 2, seed=0).tolist()
    [1, 1, 0, 0]
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.utils import check_random_state

    start = check_seed(seed)
    groups = np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < folds:
        raise LeakageError(f"found {count} patient(s) for {folds} folds; use fewer folds, or more patients")
    # as shuffle=True does since scikit-learn 1.8: before, that gave each patient the classes of another
    groups = np.argsort(check_random_state(start).permutation(count))[groups]
    strata = labels if task == "multiclass" else np.unique(labels, axis=0, return_inverse=True)[1]
    fold = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        # of classes with fewer items than there are folds
        warnings.simplefilter("ignore", UserWarning)
        cut = StratifiedGroupKFold(folds)
        for number, (_, held_out) in enumerate(cut.split(labels, np.ravel(strata), groups)):
            fold[held_out] = number
    return fold


def split_by_fold(fold: Indices) -> list[tuple[Indices, Indices]]:
    """Return for each fold the items outside it, and those in it; empty folds are left out."""
    return [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in np.unique(fold)]


def count_patients_by_class(
    labels: NDArray[np.generic], patients: Sequence[Hashable], task: str, outputs: int
) -> NDArray[np.int64]:
    """Return the number of patients of each class: (K,)."""
    shown = labels[:, None] == np.arange(outputs) if task == "multiclass" else np.asarray(labels) > 0
    names = np.asarray(patients)
    return np.array([len(set(names[shown[:, k]])) for k in range(outputs)], np.int64)
