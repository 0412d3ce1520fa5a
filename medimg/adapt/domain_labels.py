"""Domains of the items of a dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medimg.io.series import Series

__all__ = ["DomainRule", "domains_of"]

#: DICOM keyword, "column", function of a series, or a name for each item.
DomainRule: TypeAlias = "str | Callable[[Series], str] | Sequence[str | int]"

_UNKNOWN: Final = "unknown"


def domains_of(dataset: Any, by: DomainRule = "Manufacturer") -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """
    Return the domain of each item of a dataset.

    Parameters
    ----------
    dataset : ImageDataset
        Images whose domains are determined.
    by : str, callable or sequence
        Definition of the domain: a DICOM keyword ("Manufacturer", "ManufacturerModelName",
        "ConvolutionKernel", "InstitutionName", …; see
        :func:`medimg.data.acquisition_tags.read_acquisition_tags`); "column" for that of
        ``ImageDataset.from_csv(domain=...)`` or :meth:`medimg.ImageDataset.concat`; a function of a
        :class:`medimg.Series`; or a name for each item.

    Returns
    -------
    indices : numpy.ndarray
        (n,) int64 index of each item's domain in `names`.
    names : tuple of str
        Names of the domains, sorted; "unknown" for images without one.

    Raises
    ------
    TrainingError
        If `by` is none of these, its length differs from the dataset's, or no image has a domain.
    DatasetError
        If a keyword is not available.

    Examples
    --------
    >>> domains_of(range(3), by=["b", "a", "b"])
    (array([1, 0, 1]), ('a', 'b'))
    """
    found = [name or _UNKNOWN for name in _find_names(dataset, by)]
    if set(found) <= {_UNKNOWN}:
        raise TrainingError(
            f"no image has a domain (by={by if isinstance(by, str) else 'own'!r}): pass another DICOM "
            'keyword, a name for each item, or domain="column" with ImageDataset.from_csv(domain=...) or '
            "ImageDataset.concat"
        )
    names, indices = np.unique(np.asarray(found, dtype=object).astype(str), return_inverse=True)
    return indices.astype(np.int64), tuple(str(name) for name in names)


def _find_names(dataset: Any, by: DomainRule) -> list[str]:
    if isinstance(by, str):
        return _find_tags(dataset, by)
    if callable(by):
        known: dict[int, str] = {}
        for series in dataset.series:
            if id(series) not in known:
                known[id(series)] = str(by(series))
        return [known[id(series)] for series in dataset.series]
    if not isinstance(by, Sequence | np.ndarray) or len(by) != len(dataset):
        size = f"{len(by)} names" if isinstance(by, Sequence) else type(by).__name__
        raise TrainingError(
            'a domain must be a DICOM keyword, "column", a function of a series, or a name for each of the '
            f"{len(dataset)} items; found {size}"
        )
    return [str(name) for name in by]


def _find_tags(dataset: Any, by: str) -> list[str]:
    from medimg.data.acquisition_tags import read_acquisition_tags

    if by == "column":
        return list(dataset.domains)
    return [str(tags[by]) for tags in read_acquisition_tags(dataset, [by])]
