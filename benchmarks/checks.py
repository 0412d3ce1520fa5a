"""How far results are from what they should be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pydicom

from benchmarks.data.archive import series_sizes
from benchmarks.peers.epochs import Epoch
from benchmarks.peers.pydicom_torch import evenly
from benchmarks.reference import picture, picture_of, resampling_error

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from benchmarks.data import Data

__all__ = [
    "Check",
    "antialiased",
    "archive",
    "few",
    "frames",
    "items",
    "linear",
    "pictures",
    "tree",
    "values",
    "xrays",
]

_XRAYS: Final = 4
_ITEMS: Final = 2


@dataclass(frozen=True, slots=True)
class Check:
    """
    How a result is judged.

    Attributes
    ----------
    error : callable
        Of a result: its largest error.
    shown : bool
        Whether the table shows it.
    tolerance : float
        Above it, a candidate has not done the work.
    """

    error: Callable[[Any], float]
    shown: bool = False
    tolerance: float = float("inf")


def _hounsfield(data: Data) -> npt.NDArray[np.int16]:
    return data.stored.astype(np.int16) - np.int16(1024)


def _either_way(found: Any, expected: npt.NDArray[Any]) -> float:
    """Largest difference, whichever end of the stack comes first."""
    array = np.asarray(found)
    if array.shape != expected.shape:
        return float("inf")
    return min(float(np.abs(array - way).max()) for way in (expected, expected[::-1]))


def _sizes(found: Any) -> list[int]:
    """How many images or frames there are of each series, whichever way a library lists them."""
    if isinstance(found, Mapping):
        return sorted(len(images) for images in found.values())
    if isinstance(found, list):
        return sorted(found)
    counts: Counter[str] = Counter()
    for series in found:
        # images of one series that are no stack are numbered
        counts[series.uid.partition("#")[0]] += series.shape[0] * series.shape[1]
    return sorted(counts.values())


def _of_sizes(expected: list[int]) -> Check:
    """As many series as there are, each of as many images; any difference counts as one."""
    return Check(lambda found: float(_sizes(found) != sorted(expected)), tolerance=0)


def tree(data: Data) -> Check:
    """The series of a tree of small files."""
    return _of_sizes([data.scale.per_series] * data.scale.series)


def archive(data: Data) -> Check:
    """The series of the archive."""
    return _of_sizes([size for _, size in series_sizes(data.scale)])


def frames(data: Data) -> Check:
    """The frames of the enhanced CT."""
    return _of_sizes([data.scale.frames])


def items(data: Data) -> Check:
    """Normalized pictures of the first files of a data set whose batches were loaded, and their number."""
    files = sorted(data.ct().iterdir())
    some = [pydicom.dcmread(path).pixel_array.astype(np.int16) - 1024 for path in files[:_ITEMS]]
    expected = np.stack([picture(plane, 224) for plane in some])

    def error(found: Epoch) -> float:
        if found.count != len(files):
            return float("inf")
        return float(np.abs(np.stack([found.items[n][0] for n in range(_ITEMS)]) - expected).max())

    return Check(error, shown=True)


def values(data: Data) -> Check:
    """The volume, in HU."""
    expected = _hounsfield(data).astype(np.float32)
    return Check(lambda found: _either_way(found, expected), tolerance=0.5)


def pictures(data: Data) -> Check:
    """Normalized pictures of all slices, in units after normalization."""
    expected = np.stack([picture(plane, 224) for plane in _hounsfield(data)])
    return Check(lambda found: _either_way(found, expected), shown=True)


def few(data: Data) -> Check:
    """Normalized pictures of three slices; what is not antialiased well differs, and may."""
    chosen = _hounsfield(data)[evenly(data.scale.slices, 3)]
    expected = np.stack([picture(plane, 224) for plane in chosen])
    return Check(lambda found: _either_way(found, expected), shown=True)


def xrays(data: Data) -> Check:
    """Normalized pictures of the first X-rays."""
    files = sorted(data.xrays().iterdir())[:_XRAYS]
    expected = np.stack([picture_of(pydicom.dcmread(path), 224) for path in files])

    def error(found: Any) -> float:
        return float(np.abs(np.asarray(found[: len(expected)]) - expected).max())

    return Check(error, shown=True)


def linear(data: Data) -> Check:
    """Linear interpolation, in HU."""
    before = _hounsfield(data)
    return Check(lambda made: resampling_error(before, made, antialias=False), shown=True)


def antialiased(data: Data) -> Check:
    """A triangle filter that widens with the steps, in HU."""
    before = _hounsfield(data)
    return Check(lambda made: resampling_error(before, made, antialias=True), shown=True)
