"""Which site or scanner each image is of: by DICOM tags, by a column of the table, or by a rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import TrainingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from medimg.io.series import Series

__all__ = ["DomainRule", "domains_of"]

#: A DICOM keyword, "column", a function of a series, or a name for each item.
DomainRule: TypeAlias = "str | Callable[[Series], str] | Sequence[str | int]"

_UNKNOWN: Final = "unknown"


def domains_of(dataset: Any, by: DomainRule = "Manufacturer") -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """
    Return which domain each item of a data set is of.

    Parameters
    ----------
    dataset : ImageDataset
        The images.
    by : str, callable or sequence
        A DICOM keyword ("Manufacturer", "ManufacturerModelName", "ConvolutionKernel", "InstitutionName", …;
        see :func:`medimg.data.acquisition_tags.read_acquisition_tags`), read from the first file of each
        series. "column": the one given to ``ImageDataset.from_csv(domain=...)``. A function of a
        :class:`medimg.Series`. Or a name for each item.

    Returns
    -------
    indices : numpy.ndarray
        (n,) int64.
    names : tuple of str
        Sorted; "unknown" for images that name none.

    Raises
    ------
    TrainingError
        If the rule is none of these, its length differs from the data set's, or no image names a domain.
    DatasetError
        If a keyword is none of those given out.

    Examples
    --------
    >>> domains_of(range(3), by=["b", "a", "b"])
    (array([1, 0, 1]), ('a', 'b'))
    """
    found = [name or _UNKNOWN for name in _names(dataset, by)]
    if set(found) <= {_UNKNOWN}:
        raise TrainingError(
            f"no image names its domain (by={by if isinstance(by, str) else 'own'!r}): give "
            'ImageDataset.from_csv(domain=column) and domain="column", another DICOM keyword, or a name for '
            "each item"
        )
    names, indices = np.unique(np.asarray(found, dtype=object).astype(str), return_inverse=True)
    return indices.astype(np.int64), tuple(str(name) for name in names)


def _names(dataset: Any, by: DomainRule) -> list[str]:
    if isinstance(by, str):
        return _by_name(dataset, by)
    if callable(by):
        known: dict[int, str] = {}
        for series in dataset.series:
            if id(series) not in known:
                known[id(series)] = str(by(series))
        return [known[id(series)] for series in dataset.series]
    if not isinstance(by, Sequence | np.ndarray) or len(by) != len(dataset):
        size = f"{len(by)} names" if isinstance(by, Sequence) else type(by).__name__
        raise TrainingError(
            'a domain is given by a DICOM keyword, "column", a function of a series, or a name for each of '
            f"the {len(dataset)} items; found {size}"
        )
    return [str(name) for name in by]


def _by_name(dataset: Any, by: str) -> list[str]:
    # "column" goes by what the table says
    from medimg.data.acquisition_tags import read_acquisition_tags

    if by == "column":
        return list(dataset.domains)
    return [str(tags[by]) for tags in read_acquisition_tags(dataset, [by])]
