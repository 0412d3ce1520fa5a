"""Folds that keep patients together, stratified by class."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from medimg._validation import check_seed, check_whole_number
from medimg.data.leakage.check_leaks import check_datasets, check_one
from medimg.data.splits.split import check_by
from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

    from medimg.data.dataset import ImageDataset
    from medimg.data.leakage.check_leaks import Check
    from medimg.data.splits.split import SplitBy

__all__ = ["Indices", "check_folds", "fold_of_items", "kfold", "patient_classes", "splits"]

Indices: TypeAlias = "NDArray[np.int64]"


def kfold(
    dataset: ImageDataset,
    folds: int = 5,
    *,
    by: SplitBy = "patient",
    seed: int = 0,
    check: Check | None = "auto",
) -> list[tuple[ImageDataset, ImageDataset]]:
    """
    Divide a data set for cross-validation, stratified by class, with every patient in one fold only.

    Parameters
    ----------
    dataset : ImageDataset
        What to divide.
    folds : int
        How many, 2 or more.
    by : {"patient"}
        What stays together.
    seed : int
        Of the shuffling, from 0 to 2³² - 1; the same seed gives the same folds, and those of
        :func:`medimg.cross_validate`.
    check : {"auto", "pixels", "fast"} or None
        What is looked for under two patients; see :func:`medimg.split`.

    Returns
    -------
    list of tuple of ImageDataset
        For each fold what is outside of it, to train on, and the fold, to test on; each holds every class.

    Raises
    ------
    LeakageError
        If it can't be clean: a class has fewer patients than there are folds, or would be absent from one,
        or the same study, series, file, SOP instance or pixels belong to two patients.
    DatasetError
        If the number of folds or the seed is unsound, or `dataset` is none.

    Examples
    --------
    >>> for train, test in medimg.kfold(data, 5):  # doctest: +SKIP
    ...     medimg.fine_tune(model, train)
    """
    check_by(by)
    check_datasets(dataset)
    check_folds(dataset, folds, check)
    labels = np.asarray(dataset.labels)
    counts = patient_classes(labels, dataset.patients, dataset.task, len(dataset.classes))
    for name, count in zip(dataset.classes, counts, strict=True):
        if count < folds:
            raise LeakageError(
                f"class {name!r} has {count} patient(s), and {folds} clean folds take at least {folds}: "
                "collect more, drop the class, or use fewer folds"
            )
    fold = fold_of_items(labels, dataset.patients, dataset.task, folds, seed)
    parts = splits(fold)
    for _, held_out in parts:
        _check_classes(dataset, labels[held_out])
    return [(dataset.subset(train), dataset.subset(test)) for train, test in parts]


def check_folds(dataset: ImageDataset, folds: int, check: Check | None = "fast") -> None:
    """
    Refuse folds that can't be, and data that would leak between them.

    Raises
    ------
    DatasetError
        If the number is none of folds.
    LeakageError
        If a study, series, file or instance stands under two patients.
    """
    check_whole_number("folds", folds, least=2, error=DatasetError)
    check_one(dataset, check)


def _check_classes(dataset: ImageDataset, labels: NDArray[np.generic]) -> None:
    shown = patient_classes(labels, range(len(labels)), dataset.task, len(dataset.classes))
    absent = [name for name, count in zip(dataset.classes, shown, strict=True) if not count]
    if absent:
        raise LeakageError(
            f"class {absent[0]!r} would be absent from a fold, as few patients have it, and these have other "
            "classes too, or far more items than others: use another seed or fewer folds"
        )


def fold_of_items(
    labels: NDArray[np.generic], patients: Sequence[str], task: str, folds: int, seed: int
) -> Indices:
    """
    Return the fold of each item: every patient is in one, classes are shared out as evenly as may be.

    Parameters
    ----------
    labels : numpy.ndarray
        (n,) class indices, or (n, K) indicators, of which each combination counts as a class.
    patients : sequence of str
        (n,).
    task : {"multiclass", "multilabel"}
        What the labels are.
    folds : int
        How many, 2 or more.
    seed : int
        Of the shuffling.

    Returns
    -------
    numpy.ndarray
        (n,) int64, 0 to ``folds - 1``; by scikit-learn's ``StratifiedGroupKFold``.

    Raises
    ------
    LeakageError
        If there are fewer patients than folds.
    DatasetError
        If the seed is none.

    Examples
    --------
    >>> fold_of_items(np.array([0, 1, 0, 1]), ["a", "a", "b", "b"], "multiclass", 2, seed=0).tolist()
    [1, 1, 0, 0]
    """
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.utils import check_random_state

    start = check_seed(seed)
    groups = np.unique(np.asarray(patients), return_inverse=True)[1]
    count = int(groups.max()) + 1
    if count < folds:
        raise LeakageError(
            f"{count} patient(s) can't be shared out to {folds} folds with each in one: use fewer folds, or "
            "more patients"
        )
    # as shuffle=True does since scikit-learn 1.8: before, that gave each patient the classes of another
    groups = np.argsort(check_random_state(start).permutation(count))[groups]
    kinds = labels if task == "multiclass" else np.unique(labels, axis=0, return_inverse=True)[1]
    fold = np.zeros(len(labels), np.int64)
    with warnings.catch_warnings():
        # that a class has fewer items than there are folds
        warnings.simplefilter("ignore", UserWarning)
        cut = StratifiedGroupKFold(folds)
        for number, (_, held_out) in enumerate(cut.split(labels, np.ravel(kinds), groups)):
            fold[held_out] = number
    return fold


def splits(fold: Indices) -> list[tuple[Indices, Indices]]:
    """Return for each fold the items outside, and those in it; empty folds are left out."""
    return [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in np.unique(fold)]


def patient_classes(
    labels: NDArray[np.generic], patients: Sequence[Hashable], task: str, outputs: int
) -> NDArray[np.int64]:
    """Return how many patients have each class: (K,)."""
    shown = labels[:, None] == np.arange(outputs) if task == "multiclass" else np.asarray(labels) > 0
    names = np.asarray(patients)
    return np.array([len(set(names[shown[:, k]])) for k in range(outputs)], np.int64)
