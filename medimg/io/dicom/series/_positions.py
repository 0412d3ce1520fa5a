"""Frames with the number of their place: how often places repeat, and by what the repetitions differ."""

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
    "drop_copies",
    "label_of",
    "parts_by",
    "position_frames",
    "repeats",
    "series_attributes_of",
    "temporal_attribute_of",
    "temporal_attributes_of",
    "varies_at_a_position",
]


@dataclass(frozen=True, slots=True)
class PositionedFrame:
    """A frame and the number of its place among those of its group."""

    frame: Frame
    place: int


def position_frames(frames: Sequence[Frame]) -> list[PositionedFrame]:
    """Number the places of frames that all have one, and sort them by Instance Number and frame."""
    orientation = frames[0].facts.orientation or ()
    try:
        places = _numbered([f.facts.position or () for f in frames], orientation)
    except GeometryError:
        # the plan of the stack says what is wrong
        return [PositionedFrame(f, n) for n, f in enumerate(frames)]
    ordered = sorted(zip(frames, places.tolist(), strict=True), key=lambda pair: pair[0].sort_key)
    return [PositionedFrame(frame, place) for frame, place in ordered]


def _numbered(positions: Sequence[tuple[float, ...]], orientation: Sequence[float]) -> npt.NDArray[np.int64]:
    """Number places; those that drift from repetition to repetition are the same if all then repeat alike."""
    places = number_positions(positions, orientation)
    counts = np.bincount(places)
    if len(positions) == 1 or counts.min() == counts.max() > 1:
        return places
    drifting = number_positions(positions, orientation, drifting=True)
    counts = np.bincount(drifting)
    return drifting if counts.min() == counts.max() > 1 else places


def drop_copies(items: list[PositionedFrame]) -> tuple[list[PositionedFrame], list[tuple[Frame, Frame]]]:
    """
    Set files apart that are there twice: the same instance, alike in all that is known of it.

    Where a file holds a whole volume, it has to be the same file byte by byte.
    """
    first: dict[Hashable, Frame] = {}
    same: dict[tuple[int, int], bool] = {}
    kept, copies = [], []
    for item in items:
        instance, facts = item.frame.instance, item.frame.facts
        key = (
            instance.sop_instance_uid, instance.instance_number, facts.number, item.place,
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
        known[pair] = _same_bytes(one, other)
    return known[pair]


def _same_bytes(one: Instance, other: Instance) -> bool:
    if one.blob.size() != other.blob.size():
        return False
    with one.blob.open() as first, other.blob.open() as second:
        return first.read() == second.read()


def repeats(items: Iterable[PositionedFrame]) -> int:
    """Return how many frames lie at the place that has most."""
    return max(Counter(item.place for item in items).values())


def parts_by(
    items: Sequence[PositionedFrame], key: Callable[[PositionedFrame], Any]
) -> dict[Any, list[PositionedFrame]]:
    """Sort frames by what a function says of them."""
    parts: dict[Any, list[PositionedFrame]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return parts


def series_attributes_of(name: str, item: PositionedFrame) -> Hashable:
    """Return what makes a frame different in kind; None where it does not say."""
    return dict(item.frame.facts.series_attributes).get(name)


def temporal_attribute_of(name: str, item: PositionedFrame) -> Hashable:
    """Return what may tell a frame from others at its place; None where it does not say."""
    return dict(item.frame.facts.temporal_attributes).get(name)


def temporal_attributes_of(names: Sequence[str], item: PositionedFrame) -> tuple[Hashable, ...]:
    """Return several of :func:`temporal_attribute_of`."""
    return tuple(temporal_attribute_of(name, item) for name in names)


def label_of(items: Sequence[PositionedFrame], name: str) -> Callable[[PositionedFrame], Any]:
    """
    Return what gives the value of a moment.

    Of Dimension Index Values (PS3.3 C.7.6.17), those are left out that stand for a place: all that don't
    differ at one.
    """
    if name != "dimensions":
        return partial(temporal_attribute_of, name)
    at_place: dict[int, tuple[float, ...]] = {}
    varying: set[int] = set()
    for item in items:
        index = temporal_attribute_of(name, item)
        first = at_place.setdefault(item.place, index) if isinstance(index, tuple) else None
        if not isinstance(index, tuple) or first is None or len(first) != len(index):
            return lambda item: None
        varying |= {n for n, (a, b) in enumerate(zip(first, index, strict=True)) if a != b}
    chosen = sorted(varying)
    return partial(_chosen, name, chosen)


def _chosen(name: str, chosen: Sequence[int], item: PositionedFrame) -> tuple[float, ...]:
    values: Any = temporal_attribute_of(name, item)
    return tuple(values[n] for n in chosen)


def varies_at_a_position(items: Sequence[PositionedFrame], name: str) -> bool:
    """Whether frames at one place differ in a moment that all have."""
    first: dict[int, Hashable] = {}
    varies = False
    for item in items:
        value = temporal_attribute_of(name, item)
        if value is None:
            return False
        varies |= first.setdefault(item.place, value) != value
    return varies
