"""Stacking of slices by position: order, spacing, gaps, duplicates and tilt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from medimg.core.geometry import slice_normal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Policy", "Stack", "analyze_positions", "are_drifting", "number_positions"]

Policy: TypeAlias = Literal["raise", "warn", "fix", "keep"]

_RELATIVE_JITTER: Final = 0.01
_ABSOLUTE_JITTER_MM: Final = 0.01
#: Most jitter as a fraction of the distance between slices, which may itself be 0.01 mm.
_MOST_JITTER: Final = 0.2
_THIN_MM: Final = _ABSOLUTE_JITTER_MM / _MOST_JITTER
_ROUNDING_MM: Final = 1e-6
_MOSTLY: Final = 0.9
_MOST_DRIFT_MM: Final = 0.2
_SAME_IN_PLANE_MM: Final = 0.05
_TOLERATED_IRREGULARITY: Final = 0.10
#: Most gaps that may make up their median.
_MOST_MULTIPLE: Final = 8
_TILT_DEGREES: Final = 0.1
_TILT_SHIFT_MM: Final = 0.05


@dataclass(frozen=True, slots=True)
class Stack:
    """The order and regularity of slices, from their positions."""

    #: Indices of the slices, sorted along their normal, without duplicates.
    order: tuple[int, ...]
    #: Index of each slice left out, and of the one kept at its position.
    duplicates: tuple[tuple[int, int], ...]
    #: Position of each slice of `order` along the normal, in millimeters.
    distances: npt.NDArray[np.float64]
    #: Median distance between neighbors, in millimeters, or another that all are multiples of; 0 if single.
    gap: float
    #: Index in `order` after which slices are missing, and their number.
    missing: tuple[tuple[int, int], ...]
    #: Index in `order` after which the distance is off by more than 10 %, and not by whole slices.
    irregular: tuple[int, ...]
    #: Largest relative deviation from `gap` among the regular distances.
    deviation: float
    #: (3,) vector from one slice to the next, in LPS millimeters.
    step: npt.NDArray[np.float64]
    #: Angle between `step` and the normal, in degrees; 0 below the tolerance.
    tilt: float

    @property
    def is_jittered(self) -> bool:
        """Whether distances vary by more than the tolerance of 1 % or 0.01 mm."""
        return self.deviation * self.gap > _compute_tolerance(self.gap)

    @property
    def spacing(self) -> float:
        """Distance along the normal, in millimeters, between slices without gaps: that of `step`."""
        if self.irregular or len(self.order) < 2:
            return self.gap
        slices = len(self.order) + sum(count for _, count in self.missing)
        return float(self.distances[-1] - self.distances[0]) / (slices - 1)


def _compute_tolerance(gap: float) -> float:
    return max(_RELATIVE_JITTER * gap, min(_ABSOLUTE_JITTER_MM, _MOST_JITTER * gap)) + 1e-9


def number_positions(
    positions: npt.ArrayLike, orientation: Sequence[float], *, drifting: bool = False
) -> npt.NDArray[np.int64]:
    """
    Number the distinct positions (n, 3), LPS millimeters, of parallel slices: (n,) int64.

    Positions are the same within 1 % of the median distance between slices, or 0.01 mm; of slices closer than
    0.05 mm, within a fifth of their distance. With `drifting`, repetitions may differ by up to 10 % of the
    distance, and no more than 0.2 mm.

    Examples
    --------
    >>> number_positions([[0, 0, 4], [0, 0, 0], [0, 0, 4.005]], [1, 0, 0, 0, 1, 0]).tolist()
    [1, 0, 1]
    """
    points = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    along = points @ slice_normal(orientation)
    order = np.argsort(along, kind="stable")
    same = _find_drift_tolerance(along[order]) if drifting else _find_position_tolerance(along[order])
    numbers = np.empty(len(points), dtype=np.int64)
    if (np.diff(along[order]) > same).all():
        numbers[order] = np.arange(len(points))
        return numbers
    # positions at the current distance along the normal, which can be beside each other
    here: list[tuple[int, int]] = []
    count = 0
    for index in (int(i) for i in order):
        if here and along[index] - along[here[0][0]] > same:
            here = []
        for first, number in here:
            if np.abs(points[index] - points[first]).max() <= max(same, _SAME_IN_PLANE_MM):
                numbers[index] = number
                break
        else:
            numbers[index] = count
            here.append((index, count))
            count += 1
    return numbers


def are_drifting(distances: npt.NDArray[np.float64]) -> bool:
    """Whether some of the ascending positions (n,) along a normal may be drifting repetitions of others."""
    return len(distances) > 1 and bool(np.diff(distances).min() <= _find_drift_tolerance(distances))


def _find_median(values: npt.NDArray[np.float64]) -> float:
    """Return the median of at least one value; np.median takes several times as long for so few."""
    ordered = np.sort(values)
    half = len(ordered) // 2
    return float(ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2)


def _find_position_tolerance(ascending: npt.NDArray[np.float64]) -> float:
    gaps = np.diff(ascending)
    apart = gaps[gaps > _ABSOLUTE_JITTER_MM]
    thin = gaps[gaps > _ROUNDING_MM]
    if thin.size and ascending[-1] - ascending[0] > _THIN_MM and thin.max() <= _THIN_MM:
        usual = _find_median(thin)
        if np.mean(np.abs(thin - usual) < usual / 2) > _MOSTLY:
            # slices of a micro-CT, not repetitions with jitter
            return _compute_tolerance(usual)
    return _compute_tolerance(_find_median(apart)) if apart.size else _ABSOLUTE_JITTER_MM


def _find_drift_tolerance(ascending: npt.NDArray[np.float64]) -> float:
    """Return the tolerance of drifting positions: part of the gap that half of the extent consists of."""
    gaps = np.sort(np.diff(ascending))
    if not gaps.size or gaps[-1] <= 0:
        return _ABSOLUTE_JITTER_MM
    gap = float(gaps[np.searchsorted(np.cumsum(gaps), gaps.sum() / 2)])
    return max(_compute_tolerance(gap), min(_TOLERATED_IRREGULARITY * gap, _MOST_DRIFT_MM))


def _remove_duplicates(
    order: npt.NDArray[np.int64], along: npt.NDArray[np.float64]
) -> tuple[list[int], list[tuple[int, int]]]:
    ascending = along[order]
    same = _find_position_tolerance(ascending)
    first, *others = order.tolist()
    if (np.diff(ascending) > same).all():
        return [first, *others], []
    kept = [first]
    duplicates = []
    for index in others:
        if along[index] - along[kept[-1]] <= same:
            duplicates.append((index, kept[-1]))
        else:
            kept.append(index)
    return kept, duplicates


def _classify_gaps(
    gaps: npt.NDArray[np.float64], gap: float
) -> tuple[list[tuple[int, int]], list[int], float]:
    whole = np.maximum(1.0, np.rint(gaps / gap))
    off = np.abs(gaps - whole * gap) / gap
    is_irregular = (off > _TOLERATED_IRREGULARITY) & (off * gap > _compute_tolerance(gap))
    is_missing = (whole > 1) & ~is_irregular
    missing = [(n, int(whole[n]) - 1) for n in np.flatnonzero(is_missing).tolist()]
    deviation = float(off.max(initial=0.0, where=~is_irregular))
    return missing, np.flatnonzero(is_irregular).tolist(), deviation


def _find_gap(gaps: npt.NDArray[np.float64], stated: float | None, *, trust_stated: bool) -> float:
    """Return the distance between neighbors: one that all distances are multiples of, if there is one."""
    if trust_stated and stated and not _classify_gaps(gaps, abs(stated))[1]:
        return abs(stated)
    median = _find_median(gaps)
    if not _classify_gaps(gaps, median)[1]:
        return median
    others = float(np.percentile(gaps, 50, method="lower")), float(gaps.min()), abs(stated or 0.0)
    for gap in (other for other in others if other > median / _MOST_MULTIPLE):
        if not _classify_gaps(gaps, gap)[1]:
            return gap
    return median


def _measure_tilt(step: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], slices: int) -> float:
    along = float(step @ normal)
    across = float(np.linalg.norm(step - along * normal))
    degrees = float(np.degrees(np.arctan2(across, abs(along))))
    return degrees if across * (slices - 1) > _TILT_SHIFT_MM and degrees > _TILT_DEGREES else 0.0


def analyze_positions(
    positions: npt.ArrayLike,
    orientation: Sequence[float],
    *,
    fallback_step: float = 1.0,
    stated_gap: float | None = None,
    trust_stated: bool = False,
) -> Stack:
    """
    Sort slices at positions (n, 3), LPS millimeters, along their normal, and measure their regularity.

    A single slice gets `fallback_step` millimeters. `stated_gap`, Spacing Between Slices (0018,0088), is used
    only if distances are multiples of it, but not of their median; with `trust_stated`, whenever they are
    multiples of it.

    Examples
    --------
    >>> stack = analyze_positions([[0, 0, 4], [0, 0, 0], [0, 0, 2], [0, 0, 8]], [1, 0, 0, 0, 1, 0])
    >>> stack.order, stack.gap, stack.missing
    ((1, 2, 0, 3), 2.0, ((2, 1),))
    """
    points = np.asarray(positions, dtype=np.float64).reshape(-1, 3)
    normal = slice_normal(orientation)
    along = points @ normal
    kept, duplicates = _remove_duplicates(np.argsort(along, kind="stable"), along)
    distances = along[kept]
    if len(kept) == 1:
        return Stack((kept[0],), tuple(duplicates), distances, 0.0, (), (), 0.0, normal * fallback_step, 0.0)
    gaps = np.diff(distances)
    gap = _find_gap(gaps, stated_gap, trust_stated=trust_stated)
    missing, irregular, deviation = _classify_gaps(gaps, gap)
    slices = len(kept) + sum(n for _, n in missing)
    step = (points[kept[-1]] - points[kept[0]]) / (slices - 1)
    if irregular:
        # slices can't be counted, so the length is not a multiple of the step
        step *= gap / float(step @ normal)
    return Stack(
        tuple(kept),
        tuple(duplicates),
        distances,
        gap,
        tuple(missing),
        tuple(irregular),
        deviation,
        step,
        _measure_tilt(step, normal, slices),
    )
