"""Splits that keep patients apart."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from medimg.data.dataset import ImageDataset

__all__ = ["SplitBy", "split"]

SplitBy: TypeAlias = Literal["patient"]


def split(
    dataset: ImageDataset,
    *,
    by: SplitBy = "patient",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
) -> tuple[ImageDataset, ...]:
    """
    Split a data set, stratified by class, with every patient on one side only.

    Parameters
    ----------
    dataset : ImageDataset
        What to split.
    by : {"patient"}
        What stays together; nothing smaller than a patient can be split without a leak.
    fractions : sequence of float
        Size of each part; they add up to 1. The default is training, validation, test.
    seed : int
        Of the shuffling; the same seed gives the same split.

    Returns
    -------
    tuple of ImageDataset
        One for each fraction; each holds every class.

    Raises
    ------
    LeakageError
        If it can't be clean: a class has fewer patients than there are parts, or the same file or series
        belongs to two patients.
    DatasetError
        If the fractions are unsound.
    """
    shares = _checked_fractions(fractions)
    if by not in get_args(SplitBy):
        raise DatasetError(f'by is "patient", as anything smaller leaks; found {by!r}')
    _check_series(dataset)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, patient in enumerate(dataset.patients):
        groups[patient].append(index)
    classes = {key: _classes_of(dataset, members) for key, members in groups.items()}
    _check_enough(dataset, classes, len(shares))
    sides = _assigned(classes, shares, np.random.default_rng(seed))
    _check_sides(dataset, classes, sides, len(shares))
    parts: list[list[int]] = [[] for _ in shares]
    for key, members in groups.items():
        parts[sides[key]] += members
    return tuple(dataset.subset(sorted(part)) for part in parts)


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    shares = tuple(float(f) for f in fractions)
    if len(shares) < 2 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise DatasetError(f"fractions are two or more positive numbers that add up to 1; found {fractions}")
    return shares


def _classes_of(dataset: ImageDataset, members: list[int]) -> frozenset[int]:
    labels = dataset.labels[members]
    if dataset.task == "multilabel":
        return frozenset(int(k) for k in np.flatnonzero(np.any(labels, axis=0)))
    return frozenset(int(k) for k in np.unique(labels))


def _check_series(dataset: ImageDataset) -> None:
    """Refuse the same file, or the same series, in the name of two patients."""
    owner: dict[str, str] = {}
    for key, patient in zip(
        (*dataset.series_uids, *dataset.sources), (*dataset.patients, *dataset.patients), strict=True
    ):
        if owner.setdefault(key, patient) != patient:
            raise LeakageError(
                f"the same series or file stands under two patients: {key}; "
                "mend the table, or the split would put it on two sides"
            )


def _check_enough(dataset: ImageDataset, classes: dict[Hashable, frozenset[int]], parts: int) -> None:
    for k, name in enumerate(dataset.classes):
        count = sum(k in c for c in classes.values())
        if count < parts:
            raise LeakageError(
                f"class {name!r} has {count} patient(s), and a clean split in {parts} parts takes at least "
                f"{parts}: collect more, drop the class, or split in fewer parts"
            )


def _assigned(
    classes: dict[Hashable, frozenset[int]], shares: tuple[float, ...], rng: np.random.Generator
) -> dict[Hashable, int]:
    """Give each group a side, stratum by stratum; rare strata go where most is owed."""
    strata: dict[tuple[int, ...], list[Hashable]] = defaultdict(list)
    for key, present in classes.items():
        strata[tuple(sorted(present))].append(key)
    sides: dict[Hashable, int] = {}
    totals = np.zeros(len(shares))
    for stratum in sorted(strata, key=lambda s: (-len(strata[s]), s)):
        members = strata[stratum]
        shuffled = [members[i] for i in rng.permutation(len(members))]
        counts = _counts(len(members), np.asarray(shares), totals)
        totals += counts
        for key, side in zip(shuffled, np.repeat(np.arange(len(shares)), counts), strict=True):
            sides[key] = int(side)
    return sides


def _counts(n: int, shares: np.ndarray[tuple[int], np.dtype[np.float64]], totals: np.ndarray) -> np.ndarray:
    """Whole numbers that add up to n: by largest remainder, what earlier strata owe breaking ties."""
    exact = shares * n
    counts = np.floor(exact).astype(np.int64)
    owed = shares * (totals.sum() + n) - totals - counts
    for side in np.argsort(-(exact - counts) - 1e-3 * owed, kind="stable")[: n - counts.sum()]:
        counts[side] += 1
    while n >= len(shares) and counts.min() == 0:
        counts[np.argmax(counts)] -= 1
        counts[np.argmin(counts)] += 1
    return counts


def _check_sides(
    dataset: ImageDataset, classes: dict[Hashable, frozenset[int]], sides: dict[Hashable, int], parts: int
) -> None:
    for k, name in enumerate(dataset.classes):
        present = {sides[key] for key, c in classes.items() if k in c}
        if len(present) < parts:
            raise LeakageError(
                f"class {name!r} would be absent from {parts - len(present)} of {parts} parts, as its "
                "patients share other classes in too few combinations; use another seed or fewer parts"
            )
