"""Frames with the index of their position: how often positions repeat, and what distinguishes repetitions."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg.core.stacking import number_positions
from medimg.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.instance import Frame, Instance

__all__ = [
    "PositionedFrame",
    "attribute_getter",
    "count_repeats",
    "drop_copies",
    "get_series_attribute",
    "get_temporal_attribute",
    "get_temporal_attributes",
    "group_by",
    "is_varying",
    "position_frames",
]


@dataclass(frozen=True, slots=True)
class PositionedFrame:
    """A frame and the index of its position among the positions of its group."""

    frame: Frame
    location: int


def position_frames(frames: Sequence[Frame]) -> list[PositionedFrame]:
    """Index the positions of frames, and sort the frames by Instance Number and frame number."""
    orientation = frames[0].facts.orientation or ()
    try:
        locations = _index_positions([f.facts.position or () for f in frames], orientation)
    except GeometryError:
        # the stack plan raises the error
        return [PositionedFrame(f, n) for n, f in enumerate(frames)]
    ordered = sorted(zip(frames, locations.tolist(), strict=True), key=lambda pair: pair[0].sort_key)
    return [PositionedFrame(frame, location) for frame, location in ordered]


def _index_positions(
    positions: Sequence[tuple[float, ...]], orientation: Sequence[float]
) -> npt.NDArray[np.int64]:
    """Return the index of each position (n,); drifting ones are equal if all then repeat equally often."""
    locations = number_positions(positions, orientation)
    counts = np.bincount(locations)
    if len(positions) == 1 or counts.min() == counts.max() > 1:
        return locations
    drifting = number_positions(positions, orientation, drifting=True)
    counts = np.bincount(drifting)
    return drifting if counts.min() == counts.max() > 1 else locations


def drop_copies(items: list[PositionedFrame]) -> tuple[list[PositionedFrame], list[tuple[Frame, Frame]]]:
    """
    Separate frames that occur twice: the same instance, equal in all known attributes.

    Multi-frame files must be identical in all bytes.
    """
    first: dict[Hashable, Frame] = {}
    same: dict[tuple[int, int], bool] = {}
    kept, copies = [], []
    for item in items:
        instance, facts = item.frame.instance, item.frame.facts
        key = (
            instance.sop_instance_uid, instance.instance_number, facts.number, item.location,
            facts.series_attributes, facts.temporal_attributes,
        )  # fmt: skip
        if not instance.sop_instance_uid or key not in first:
            first[key] = item.frame
            kept.append(item)
        elif len(instance.facts) > 1 and not _is_copy(instance, first[key].instance, same):
            kept.append(item)
        else:
            copies.append((item.frame, first[key]))
    return kept, copies


def _is_copy(one: Instance, other: Instance, known: dict[tuple[int, int], bool]) -> bool:
    pair = id(one), id(other)
    if pair not in known:
        known[pair] = _has_same_bytes(one, other)
    return known[pair]


def _has_same_bytes(one: Instance, other: Instance) -> bool:
    # to know the size of an instance of a server, it has to be fetched
    if one.blob.remote_header is None and one.blob.size() != other.blob.size():
        return False
    with one.blob.open() as first, other.blob.open() as second:
        return first.read() == second.read()


def count_repeats(items: Iterable[PositionedFrame]) -> int:
    """Return the number of frames at the most frequent position."""
    return max(Counter(item.location for item in items).values())


def group_by(
    items: Sequence[PositionedFrame], key: Callable[[PositionedFrame], Any]
) -> dict[Any, list[PositionedFrame]]:
    """Group frames by a key."""
    parts: dict[Any, list[PositionedFrame]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return parts


def get_series_attribute(name: str, item: PositionedFrame) -> Hashable:
    """Return a series attribute of a frame; None if absent."""
    return dict(item.frame.facts.series_attributes).get(name)


def get_temporal_attribute(name: str, item: PositionedFrame) -> Hashable:
    """Return a temporal attribute of a frame; None if absent."""
    return dict(item.frame.facts.temporal_attributes).get(name)


def get_temporal_attributes(names: Sequence[str], item: PositionedFrame) -> tuple[Hashable, ...]:
    """Return several temporal attributes of a frame."""
    return tuple(get_temporal_attribute(name, item) for name in names)


def attribute_getter(items: Sequence[PositionedFrame], name: str) -> Callable[[PositionedFrame], Any]:
    """
    Return a function that gives a temporal attribute of a frame.

    Of Dimension Index Values (PS3.3 C.7.6.17), those that do not vary at any position are left out: they
    index the position.
    """
    if name != "dimensions":
        return partial(get_temporal_attribute, name)
    at_location: dict[int, tuple[float, ...]] = {}
    varying: set[int] = set()
    for item in items:
        index = get_temporal_attribute(name, item)
        first = at_location.setdefault(item.location, index) if isinstance(index, tuple) else None
        if not isinstance(index, tuple) or first is None or len(first) != len(index):
            return lambda item: None
        varying |= {n for n, (a, b) in enumerate(zip(first, index, strict=True)) if a != b}
    chosen = sorted(varying)
    return partial(_select_dimensions, name, chosen)


def _select_dimensions(name: str, chosen: Sequence[int], item: PositionedFrame) -> tuple[float, ...]:
    values: Any = get_temporal_attribute(name, item)
    return tuple(values[n] for n in chosen)


def is_varying(items: Sequence[PositionedFrame], name: str) -> bool:
    """Whether frames at one position differ in a temporal attribute that all have."""
    first: dict[int, Hashable] = {}
    varies = False
    for item in items:
        value = get_temporal_attribute(name, item)
        if value is None:
            return False
        varies |= first.setdefault(item.location, value) != value
    return varies
