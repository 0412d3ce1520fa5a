"""Several stacks of one orientation in one series: between, behind or beside each other."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core.stacking import Stack, analyze_positions
from medimg.errors import GeometryError
from medimg.io.dicom.series._positions import (
    PositionedFrame,
    parts_by,
    series_attributes_of,
    temporal_attribute_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import numpy.typing as npt

__all__ = ["split_substacks"]

_LEAST_SLICES: Final = 3
#: Where Stack ID or the places say that there are several.
_LEAST_STATED: Final = 2
#: How far stacks beside each other are apart; what moves less is the same one.
_LEAST_BESIDE_MM: Final = 20.0
#: How many slices a gap between stacks has room for; a smaller uneven one is a gap within a stack.
_LEAST_GAP: Final = 4


def split_substacks(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """
    Split stacks that share an orientation, where each is regular and the whole is not.

    They are told apart by Stack ID, Image Type, or Acquisition Number; as stations of a moving table, which
    lie beside each other; or by a gap that is wide and no multiple of the distance between slices, as between
    the slabs of two breasts.

    Parameters
    ----------
    items : list of PositionedFrame
        Of one orientation and pixel spacing; places can repeat.

    Returns
    -------
    list of list of Placed
        No place is in two of them; only one where nothing tells stacks apart.
    """
    firsts = {item.place: item for item in reversed(items)}
    listed = list(firsts)
    points = np.asarray([firsts[place].frame.facts.position for place in listed], dtype=np.float64)
    stack = _stack(points, items)
    if stack is None or _is_regular(stack):
        return [items]
    columns, runs = _columns(stack, points, items), _runs(stack)
    for label, least in (
        (partial(series_attributes_of, "stack"), _LEAST_STATED),
        (partial(series_attributes_of, "type"), _LEAST_SLICES),
        (partial(temporal_attribute_of, "acquisition"), _LEAST_SLICES),
        (_numbered(listed, columns), _LEAST_STATED),
        (_numbered(listed, runs), _LEAST_SLICES),
    ):
        parts = list(parts_by(items, label).values())
        depths = [len({item.place for item in part}) for part in parts]
        if len(parts) > 1 and sum(depths) == len(listed) and min(depths) >= least and _all_regular(parts):
            return parts
    return [items]


def _stack(points: npt.NDArray[np.float64], items: Sequence[PositionedFrame]) -> Stack | None:
    try:
        return analyze_positions(points, items[0].frame.facts.orientation or ())
    except GeometryError:
        # the plan of the stack says what is wrong
        return None


def _is_regular(stack: Stack) -> bool:
    return not (stack.missing or stack.irregular or stack.duplicates)


def _all_regular(parts: Sequence[list[PositionedFrame]]) -> bool:
    for part in parts:
        firsts = {item.place: item.frame.facts.position for item in reversed(part)}
        stack = _stack(np.asarray(list(firsts.values()), dtype=np.float64), part)
        if stack is None or not _is_regular(stack):
            return False
    return True


def _numbered(places: Sequence[int], numbers: dict[int, int]) -> Callable[[PositionedFrame], Hashable]:
    of_place = {place: numbers.get(n, 0) for n, place in enumerate(places)}
    return lambda item: of_place[item.place]


def _columns(
    stack: Stack, points: npt.NDArray[np.float64], items: Sequence[PositionedFrame]
) -> dict[int, int]:
    """Number what lies in one plane, where all planes have equally many images far apart."""
    planes = {n: [n] for n in stack.order}
    for left, kept in stack.duplicates:
        planes[kept].append(left)
    distances = [
        np.linalg.norm(points[a] - points[b]) for plane in planes.values() for a, b in combinations(plane, 2)
    ]
    uneven = len({len(plane) for plane in planes.values()}) > 1
    if uneven or min(distances, default=0.0) < _LEAST_BESIDE_MM:
        return {}
    axes = np.asarray(items[0].frame.facts.orientation, dtype=np.float64).reshape(2, 3)
    in_plane = np.round(points @ axes.T, 1)
    return {
        n: rank
        for plane in planes.values()
        for rank, n in enumerate(sorted(plane, key=lambda n: tuple(in_plane[n])))
    }


def _runs(stack: Stack) -> dict[int, int]:
    """Number what lies between wide gaps that are no multiples of the distance between slices."""
    wide = [
        n for n in stack.irregular if stack.distances[n + 1] - stack.distances[n] > _LEAST_GAP * stack.gap
    ]
    if stack.duplicates:
        return {}
    return {n: int(np.searchsorted(wide, rank)) for rank, n in enumerate(stack.order)}
