"""Substacks of one orientation in one series: interleaved, consecutive, or side by side."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core.stacking import Stack, analyze_positions
from medimg.errors import GeometryError
from medimg.io.dicom.series._repeated_positions import (
    PositionedFrame,
    get_series_attribute,
    get_temporal_attribute,
    group_by,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy.typing as npt

__all__ = ["split_substacks"]

_MIN_SLICES: Final = 3
#: If Stack ID or the positions indicate several stacks.
_MIN_SLICES_STATED: Final = 2
#: Minimum distance of stacks side by side.
_MIN_OFFSET_MM: Final = 20.0
#: Minimum gap between stacks, in slices; a smaller uneven gap is within a stack.
_MIN_GAP: Final = 4


def split_substacks(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """
    Split stacks that share an orientation, if each is regular and the whole is not.

    They are distinguished by Stack ID, Image Type or Acquisition Number; as stations of a moving table, side
    by side; or by a wide gap that is not a multiple of the slice distance, as between the slabs of two
    breasts. No position is in two of them.
    """
    firsts = {item.location: item for item in reversed(items)}
    locations = list(firsts)
    points = np.asarray([firsts[location].frame.facts.position for location in locations], dtype=np.float64)
    stack = _analyze_stack(points, items)
    if stack is None or _is_regular(stack):
        return [items]
    columns, runs = _number_columns(stack, points, items), _number_runs(stack)
    for label, minimum in (
        (partial(get_series_attribute, "stack"), _MIN_SLICES_STATED),
        (partial(get_series_attribute, "type"), _MIN_SLICES),
        (partial(get_temporal_attribute, "acquisition"), _MIN_SLICES),
        (_number_getter(locations, columns), _MIN_SLICES_STATED),
        (_number_getter(locations, runs), _MIN_SLICES),
    ):
        parts = list(group_by(items, label).values())
        depths = [len({item.location for item in part}) for part in parts]
        if (
            len(parts) > 1
            and sum(depths) == len(locations)
            and min(depths) >= minimum
            and _are_regular(parts)
        ):
            return parts
    return [items]


def _analyze_stack(points: npt.NDArray[np.float64], items: Sequence[PositionedFrame]) -> Stack | None:
    try:
        return analyze_positions(points, items[0].frame.facts.orientation or ())
    except GeometryError:
        # the stack plan raises the error
        return None


def _is_regular(stack: Stack) -> bool:
    return not (stack.missing or stack.irregular or stack.duplicates)


def _are_regular(parts: Sequence[list[PositionedFrame]]) -> bool:
    for part in parts:
        firsts = {item.location: item.frame.facts.position for item in reversed(part)}
        stack = _analyze_stack(np.asarray(list(firsts.values()), dtype=np.float64), part)
        if stack is None or not _is_regular(stack):
            return False
    return True


def _number_getter(
    locations: Sequence[int], numbers: dict[int, int]
) -> Callable[[PositionedFrame], Hashable]:
    by_location = {location: numbers.get(n, 0) for n, location in enumerate(locations)}
    return lambda item: by_location[item.location]


def _number_columns(
    stack: Stack, points: npt.NDArray[np.float64], items: Sequence[PositionedFrame]
) -> dict[int, int]:
    """Number the images in one plane, if all planes have equally many images far apart."""
    planes = {n: [n] for n in stack.order}
    for left, kept in stack.duplicates:
        planes[kept].append(left)
    distances = [
        np.linalg.norm(points[a] - points[b]) for plane in planes.values() for a, b in combinations(plane, 2)
    ]
    uneven = len({len(plane) for plane in planes.values()}) > 1
    if uneven or min(distances, default=0.0) < _MIN_OFFSET_MM:
        return {}
    axes = np.asarray(items[0].frame.facts.orientation, dtype=np.float64).reshape(2, 3)
    in_plane = np.round(points @ axes.T, 1)
    return {
        n: rank
        for plane in planes.values()
        for rank, n in enumerate(sorted(plane, key=lambda n: tuple(in_plane[n])))
    }


def _number_runs(stack: Stack) -> dict[int, int]:
    """Number the images between wide gaps that are not multiples of the slice distance."""
    wide = [n for n in stack.irregular if stack.distances[n + 1] - stack.distances[n] > _MIN_GAP * stack.gap]
    if stack.duplicates:
        return {}
    return {n: int(np.searchsorted(wide, rank)) for rank, n in enumerate(stack.order)}
