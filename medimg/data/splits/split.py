"""Splits by patient, stratified by class."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from medimg._public import set_module
from medimg._validation import check_seed
from medimg.data.leakage.check_leaks import check_patients, check_types
from medimg.errors import DatasetError, LeakageError

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import numpy.typing as npt

    from medimg.data.dataset import ImageDataset
    from medimg.data.leakage.check_leaks import Check

__all__ = ["SplitBy", "check_by", "split"]

SplitBy: TypeAlias = Literal["patient"]


@set_module("medimg")
def split(
    dataset: ImageDataset,
    *,
    by: SplitBy = "patient",
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    check: Check | None = "auto",
) -> tuple[ImageDataset, ...]:
    """
    Split a dataset by patient, stratified by class.

    Parameters
    ----------
    dataset : ImageDataset
        Dataset to split.
    by : {"patient"}
        Grouping; anything finer than patients would leak.
    fractions : sequence of float
        Size of each part; they add up to 1. The default is training, validation, test.
    seed : int
        Seed for shuffling, from 0 to 2³² - 1; the same seed gives the same split.
    check : {"auto", "pixels", "fast"} or None
        What is compared between patients, since a split could put it into two subsets:

        ==========  ======================================================================================
        "fast"      studies, series, files and SOP instances, by the headers
        "pixels"    decoded pixels too, which takes as long as reading all images once; images that look
                    alike cause a warning, see :func:`medimg.check_leaks`
        "auto"      pixels, but not images that look alike, if there are no more than 2²⁹ values (some
                    2,000 images of 512×512), which takes seconds; else as "fast"
        None        nothing
        ==========  ======================================================================================

    Returns
    -------
    tuple of ImageDataset
        One for each fraction; each holds every class.

    Raises
    ------
    LeakageError
        If no clean split exists: a class has fewer patients than there are parts, or the same study, series,
        file, SOP instance or pixels belong to two patients.
    DatasetError
        If the fractions or the seed are invalid, or `dataset` is not a dataset.

    Warns
    -----
    MedimgWarning
        If pixels are compared: of identical pixels with different labels, of near-duplicates and of series
        that can't be decoded.

    Examples
    --------
    >>> train, val, test = medimg.split(data, seed=1)  # doctest: +SKIP
    """
    shares = _check_fractions(fractions)
    check_by(by)
    start = check_seed(seed)
    check_types(dataset)
    check_patients(dataset, check)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for index, patient in enumerate(dataset.patients):
        groups[patient].append(index)
    positive = _mark_classes(dataset)
    classes = {
        key: frozenset(int(k) for k in np.flatnonzero(positive[members].any(axis=0)))
        for key, members in groups.items()
    }
    _check_patient_counts(dataset, classes, len(shares))
    parts_by_group = _assign_groups(classes, shares, np.random.default_rng(start))
    _check_classes(dataset, classes, parts_by_group, len(shares))
    parts: list[list[int]] = [[] for _ in shares]
    for key, members in groups.items():
        parts[parts_by_group[key]] += members
    return tuple(dataset.subset(sorted(part)) for part in parts)


def check_by(by: str) -> None:
    """Raise DatasetError if the grouping would leak."""
    if by not in get_args(SplitBy):
        raise DatasetError(f'by must be "patient", as finer groups leak; found {by!r}')


def _check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    try:
        shares = tuple(float(f) for f in fractions)
    except (TypeError, ValueError, OverflowError):
        shares = ()
    # written so that NaN fails too
    if len(shares) < 2 or not all(f > 0 for f in shares) or not abs(sum(shares) - 1) <= 1e-6:
        raise DatasetError(
            f"fractions must be two or more positive numbers that add up to 1; found {fractions}"
        )
    return shares


def _mark_classes(dataset: ImageDataset) -> npt.NDArray[np.bool_]:
    """Return the classes of each item as indicators (n, K)."""
    labels = dataset.labels
    if dataset.task == "multilabel":
        return np.asarray(labels > 0)
    return np.asarray(labels[:, None] == np.arange(len(dataset.classes)))


def _check_patient_counts(dataset: ImageDataset, classes: dict[Hashable, frozenset[int]], parts: int) -> None:
    for k, name in enumerate(dataset.classes):
        count = sum(k in c for c in classes.values())
        if count < parts:
            raise LeakageError(
                f"class {name!r} has {count} patient(s), and a split into {parts} parts needs at least "
                f"{parts}: collect more, drop the class, or use fewer parts"
            )


class _Assignment:
    """The part of each group, and the number of groups of each class that each part still lacks."""

    def __init__(self, classes: dict[Hashable, frozenset[int]], shares: tuple[float, ...]) -> None:
        count = Counter(k for present in classes.values() for k in present)
        self.classes = classes
        self.parts_by_group: dict[Hashable, int] = {}
        self.lacking = {k: np.asarray(shares) * n for k, n in count.items()}
        self.lacking_groups = np.asarray(shares) * len(classes)
        self.without = {k: set(range(len(shares))) for k in count}

    def assign(self, key: Hashable, needs: npt.NDArray[np.float64]) -> None:
        """Assign a group to the part with the highest need; of equals, to the one that lacks most groups."""
        best = np.flatnonzero(needs >= needs.max() - 1e-9)
        part = int(best[np.argmax(self.lacking_groups[best])])
        self.parts_by_group[key] = part
        self.lacking_groups[part] -= 1
        for k in self.classes[key]:
            self.lacking[k][part] -= 1
            self.without[k].discard(part)

    def needs(self, k: int, left: int) -> npt.NDArray[np.float64]:
        """Return each part's need of a class of which `left` groups remain."""
        needs = self.lacking[k].copy()
        if self.without[k] and left <= len(self.without[k]):
            # the last chance to have this class in every part
            needs[[part for part in range(len(needs)) if part not in self.without[k]]] = -np.inf
        return needs


def _assign_groups(
    classes: dict[Hashable, frozenset[int]], shares: tuple[float, ...], rng: np.random.Generator
) -> dict[Hashable, int]:
    """
    Assign a part to each group by iterative stratification (Sechidis et al., ECML PKDD 2011).

    The class with the fewest groups left comes first; each of its groups goes to the part that lacks most of
    that class, then most overall.
    """
    every = list(classes)
    keys = [every[i] for i in rng.permutation(len(every))]
    chosen = _Assignment(classes, shares)
    left = {k: [key for key in keys if k in classes[key]] for k in chosen.lacking}
    while left:
        rarest = min(left, key=lambda k: (len(left[k]), k))
        members = left.pop(rarest)
        for position, key in enumerate(members):
            chosen.assign(key, chosen.needs(rarest, len(members) - position))
        left = {k: [key for key in rest if key not in chosen.parts_by_group] for k, rest in left.items()}
    for key in keys:
        if key not in chosen.parts_by_group:
            chosen.assign(key, chosen.lacking_groups)
    return chosen.parts_by_group


def _check_classes(
    dataset: ImageDataset,
    classes: dict[Hashable, frozenset[int]],
    parts_by_group: dict[Hashable, int],
    parts: int,
) -> None:
    for k, name in enumerate(dataset.classes):
        present = {parts_by_group[key] for key, c in classes.items() if k in c}
        if len(present) < parts:
            raise LeakageError(
                f"class {name!r} would be absent from {parts - len(present)} of {parts} parts, as few "
                "patients have it and these share other classes; use another seed or fewer parts"
            )
