"""Splits that keep patients apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from medimg._validation import check_seed
from medimg.data.leakage.check_leaks import check_datasets, check_one
from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy.typing as npt

    from medimg.data.dataset import ImageDataset
    from medimg.data.leakage.check_leaks import Check

__all__ = ["SplitBy", "check_by", "split"]

SplitBy: TypeAlias = Literal["patient"]


def split(
    dataset: ImageDataset,
    *,
    by: SplitBy = "patient",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    check: Check | None = "auto",
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
        Of the shuffling, from 0 to 2³² - 1; the same seed gives the same split.
    check : {"auto", "pixels", "fast"} or None
        What is looked for under two patients, as a split would put it on two sides:

        ==========  ======================================================================================
        "fast"      studies, series, files and SOP instances, by what the headers say
        "pixels"    pixels too, decoded, which takes as long as reading all images once; pictures that
                    look alike are warned of, see :func:`medimg.check_leaks`
        "auto"      pixels, but not what looks alike, where there are no more than 2²⁹ values (some 2,000
                    pictures of 512×512), which takes seconds; else as "fast"
        None        nothing
        ==========  ======================================================================================

    Returns
    -------
    tuple of ImageDataset
        One for each fraction; each holds every class.

    Raises
    ------
    LeakageError
        If it can't be clean: a class has fewer patients than there are parts, or the same study, series,
        file, SOP instance or pixels belong to two patients.
    DatasetError
        If the fractions or the seed are unsound, or `dataset` is none.

    Warns
    -----
    MedimgWarning
        Of near-duplicates and of what can't be decoded, where these are looked for.

    Examples
    --------
    >>> train, val, test = medimg.split(data, seed=1)  # doctest: +SKIP
    """
    shares = _checked_fractions(fractions)
    check_by(by)
    start = check_seed(seed)
    check_datasets(dataset)
    check_one(dataset, check)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, patient in enumerate(dataset.patients):
        groups[patient].append(index)
    positive = _positive(dataset)
    classes = {
        key: frozenset(int(k) for k in np.flatnonzero(positive[members].any(axis=0)))
        for key, members in groups.items()
    }
    _check_enough(dataset, classes, len(shares))
    sides = _assigned(classes, shares, np.random.default_rng(start))
    _check_sides(dataset, classes, sides, len(shares))
    parts: list[list[int]] = [[] for _ in shares]
    for key, members in groups.items():
        parts[sides[key]] += members
    return tuple(dataset.subset(sorted(part)) for part in parts)


def check_by(by: str) -> None:
    """
    Refuse groups that leak.

    Raises
    ------
    DatasetError
        If it is not "patient".
    """
    if by not in get_args(SplitBy):
        raise DatasetError(f'by is "patient", as anything smaller leaks; found {by!r}')


def _checked_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    try:
        shares = tuple(float(f) for f in fractions)
    except (TypeError, ValueError, OverflowError):
        shares = ()
    # written so that what is no number fails, too
    if len(shares) < 2 or not all(f > 0 for f in shares) or not abs(sum(shares) - 1) <= 1e-6:
        raise DatasetError(f"fractions are two or more positive numbers that add up to 1; found {fractions}")
    return shares


def _positive(dataset: ImageDataset) -> npt.NDArray[np.bool_]:
    """Return which classes each item shows: (n, K)."""
    labels = dataset.labels
    if dataset.task == "multilabel":
        return np.asarray(labels > 0)
    return np.asarray(labels[:, None] == np.arange(len(dataset.classes)))


def _check_enough(dataset: ImageDataset, classes: dict[Hashable, frozenset[int]], parts: int) -> None:
    for k, name in enumerate(dataset.classes):
        count = sum(k in c for c in classes.values())
        if count < parts:
            raise LeakageError(
                f"class {name!r} has {count} patient(s), and a clean split in {parts} parts takes at least "
                f"{parts}: collect more, drop the class, or split in fewer parts"
            )


class _Sides:
    """Who is on which side, and how many of each class each side is still owed."""

    def __init__(self, classes: dict[Hashable, frozenset[int]], shares: tuple[float, ...]) -> None:
        count = Counter(k for present in classes.values() for k in present)
        self.classes = classes
        self.sides: dict[Hashable, int] = {}
        self.owed = {k: np.asarray(shares) * n for k, n in count.items()}
        self.owed_at_all = np.asarray(shares) * len(classes)
        self.without = {k: set(range(len(shares))) for k in count}

    def give(self, key: Hashable, wanted: npt.NDArray[np.float64]) -> None:
        """Put a group on the side that wants it most; of equals, on the one that is owed most at all."""
        best = np.flatnonzero(wanted >= wanted.max() - 1e-9)
        side = int(best[np.argmax(self.owed_at_all[best])])
        self.sides[key] = side
        self.owed_at_all[side] -= 1
        for k in self.classes[key]:
            self.owed[k][side] -= 1
            self.without[k].discard(side)

    def wanted(self, k: int, left: int) -> npt.NDArray[np.float64]:
        """Return how much each side wants a class of which so many groups are left."""
        wanted = self.owed[k].copy()
        if self.without[k] and left <= len(self.without[k]):
            # the last chance to have this class on every side
            wanted[[side for side in range(len(wanted)) if side not in self.without[k]]] = -np.inf
        return wanted


def _assigned(
    classes: dict[Hashable, frozenset[int]], shares: tuple[float, ...], rng: np.random.Generator
) -> dict[Hashable, int]:
    """
    Give each group a side by iterative stratification (Sechidis et al., ECML PKDD 2011).

    The class with the fewest groups left comes first, and each of its groups goes to the side that is owed
    most of that class, then most of all.
    """
    every = list(classes)
    keys = [every[i] for i in rng.permutation(len(every))]
    chosen = _Sides(classes, shares)
    left = {k: [key for key in keys if k in classes[key]] for k in chosen.owed}
    while left:
        rarest = min(left, key=lambda k: (len(left[k]), k))
        members = left.pop(rarest)
        for place, key in enumerate(members):
            chosen.give(key, chosen.wanted(rarest, len(members) - place))
        left = {k: [key for key in rest if key not in chosen.sides] for k, rest in left.items()}
    for key in keys:
        if key not in chosen.sides:
            chosen.give(key, chosen.owed_at_all)
    return chosen.sides


def _check_sides(
    dataset: ImageDataset, classes: dict[Hashable, frozenset[int]], sides: dict[Hashable, int], parts: int
) -> None:
    for k, name in enumerate(dataset.classes):
        present = {sides[key] for key, c in classes.items() if k in c}
        if len(present) < parts:
            raise LeakageError(
                f"class {name!r} would be absent from {parts - len(present)} of {parts} parts, as few "
                "patients have it and these share other classes; use another seed or fewer parts"
            )
