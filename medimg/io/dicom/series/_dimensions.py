"""
Images that lie at the same positions: echoes, phases, time points, diffusion volumes, or copies.

Images of another kind (echo, magnitude or phase, kernel, trace) belong into series of their own. Images of
one kind at the same positions are the channels of one volume, if each has all positions. Whatever covers only
some of the positions is a series of its own again, so that nothing is interleaved and nothing is lost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.io.dicom.series._positions import (
    PositionedFrame,
    drop_copies,
    label_of,
    parts_by,
    position_frames,
    repeats,
    series_attributes_of,
    temporal_attribute_of,
    temporal_attributes_of,
    varies_at_a_position,
)
from medimg.io.dicom.series._substacks import split_substacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from medimg.io.dicom.header.instance import Frame

__all__ = ["Repetition", "split_repetitions"]

_KINDS: Final = ("type", "echo", "echo time", "directionality", "coil", "kernel", "stack", "thickness")
_MOMENTS: Final = (
    "time", "segment", "reference time", "trigger", "diffusion", "philips", "label", "velocity", "vectors",
    "dimensions", "acquisition", "frame acquisition", "offset", "started", "acquired", "made",
)  # fmt: skip
#: Those that can tell repetitions apart together, such as label and repetition of arterial spin labeling.
_COMBINED: Final = (
    "time", "reference time", "trigger", "segment", "vectors", "philips", "label", "velocity", "diffusion",
    "acquisition", "frame acquisition",
)  # fmt: skip
#: Of these, the value tells the order; the others are ordered by Instance Number.
_ORDERED: Final = frozenset(_MOMENTS) - {"diffusion", "velocity", "dimensions"}
#: In seconds or milliseconds, with the factor that makes them seconds.
_SECONDS: Final = {
    "reference time": 1e-3, "trigger": 1e-3, "offset": 1.0, "started": 1.0, "acquired": 1.0,
}  # fmt: skip
_BY_NUMBER: Final = "images at the same positions are told apart by their Instance Numbers alone"

Frames: TypeAlias = "tuple[Frame, ...]"
#: Classes of frames, what each is called, and the attribute that tells them apart.
_Candidate: TypeAlias = "tuple[list[list[PositionedFrame]], Sequence[Any], str]"


@dataclass(frozen=True, slots=True)
class Repetition:
    """
    Frames of one volume.

    Attributes
    ----------
    channels : tuple of tuple of Frame
        For each channel its frames, each position once; a single channel can hold several at one position
        that nothing tells apart.
    names : tuple of str
        A name for each channel; empty where nothing repeats.
    times : tuple of float or None
        Seconds from the first channel, where they are known.
    copies : tuple of (Frame, Frame)
        Copies left out, and what each is a copy of.
    notes : tuple of str
        What deserves a second look.
    """

    channels: tuple[Frames, ...]
    names: tuple[str, ...] = ()
    times: tuple[float, ...] | None = None
    copies: tuple[tuple[Frame, Frame], ...] = ()
    notes: tuple[str, ...] = ()


def split_repetitions(frames: Sequence[Frame]) -> list[Repetition]:
    """
    Split frames of one orientation and size into volumes in which no position repeats within a channel.

    Parameters
    ----------
    frames : sequence of Frame
        Of one series, orientation, size and pixel spacing.

    Returns
    -------
    list of Repetition
        One where no position repeats, or where nothing tells repetitions apart.
    """
    if not all(frame.has_geometry for frame in frames):
        return [Repetition((tuple(frames),))]
    items, copies = drop_copies(position_frames(frames))
    result = []
    for part in _by_kind(items, _KINDS):
        result += _by_moment(part)
    return _with_copies(result, copies)


def _by_kind(items: list[PositionedFrame], names: Sequence[str]) -> list[list[PositionedFrame]]:
    most = repeats(items)
    if most == 1:
        return [items]
    for n, name in enumerate(names):
        parts = parts_by(items, partial(series_attributes_of, name))
        if len(parts) > 1 and all(repeats(part) < most for part in parts.values()):
            return [p for part in parts.values() for p in _by_kind(part, names[n + 1 :])]
    return [items]


def _by_moment(items: list[PositionedFrame]) -> list[Repetition]:
    parts = split_substacks(items)
    if len(parts) > 1:
        return [found for part in parts for found in _by_moment(part)]
    if repeats(items) == 1:
        return [_single(items)]
    return (
        _by_declared_moment(items)
        or _by_combined_moments(items)
        or _by_instance_number(items)
        or _by_file(items)
        or [_single(items)]
    )


def _single(items: Sequence[PositionedFrame]) -> Repetition:
    return Repetition((tuple(item.frame for item in items),))


def _by_declared_moment(items: list[PositionedFrame]) -> list[Repetition]:
    """Split by the first attribute that says for each frame to which repetition it belongs."""
    return _covering(items, _by_one_attribute(items))


def _by_one_attribute(items: list[PositionedFrame]) -> Iterator[_Candidate]:
    for name in _MOMENTS:
        parts = parts_by(items, label_of(items, name))
        if _distinguishes(parts):
            values = _in_order(parts, name)
            yield [parts[value] for value in values], values, name


def _by_combined_moments(items: list[PositionedFrame]) -> list[Repetition]:
    """Split by two or three attributes together, if each image then has all positions."""
    return _covering(items, _by_several_attributes(items))


def _by_several_attributes(items: list[PositionedFrame]) -> Iterator[_Candidate]:
    varying = [name for name in _COMBINED if varies_at_a_position(items, name)]
    for count in (2, 3):
        for names in combinations(varying, count):
            parts = parts_by(items, partial(temporal_attributes_of, names))
            if _distinguishes(parts):
                values = sorted(parts) if _ORDERED.issuperset(names) else _in_order(parts, "")
                yield [parts[value] for value in values], range(len(values)), "repetition"


def _distinguishes(parts: dict[Any, list[PositionedFrame]]) -> bool:
    """Whether each frame says to which part it belongs, and no place repeats in any."""
    return len(parts) > 1 and None not in parts and all(repeats(part) == 1 for part in parts.values())


def _covering(items: list[PositionedFrame], candidates: Iterable[_Candidate]) -> list[Repetition]:
    """
    Return the first way to split in which all images have all positions.

    Where positions repeat unevenly, it is else the first that leaves no doubles.
    """
    uneven: list[Repetition] = []
    for classes, values, name in candidates:
        found = _alike_covered(classes, values, name)
        if len(found) == 1:
            return found
        if not uneven and _is_sound(found, items):
            uneven = found
    return uneven if _is_uneven(items) else []


def _is_sound(found: list[Repetition], items: list[PositionedFrame]) -> bool:
    """Whether single images are merely what is left of a last volume, and no doubles."""
    places = len({item.place for item in items})
    whole = any(len(part.channels) > 1 and len(part.channels[0]) == places for part in found)
    return whole or all(len(part.channels[0]) > 1 for part in found)


def _is_uneven(items: list[PositionedFrame]) -> bool:
    return len(set(Counter(item.place for item in items).values())) > 1


def _in_order(parts: dict[Any, list[PositionedFrame]], name: str) -> list[Any]:
    if name in _ORDERED:
        return sorted(parts)
    items = [item for part in parts.values() for item in part]
    index = label_of(items, "dimensions")
    if len({id(item.frame.instance) for item in items}) == 1 and index(items[0]) is not None:
        # as dcm2niix: the last dimension varies slowest
        return sorted(parts, key=lambda value: min(index(item)[::-1] for item in parts[value]))
    # Philips numbers b-values and directions, and files in any order
    return sorted(parts, key=lambda value: min(_turn(item) for item in parts[value]))


def _turn(item: PositionedFrame) -> tuple[Any, ...]:
    return temporal_attribute_of("philips", item) or (), item.frame.sort_key


def _alike_covered(
    classes: list[list[PositionedFrame]], values: Sequence[Any], name: str, notes: tuple[str, ...] = ()
) -> list[Repetition]:
    """Make one volume of the classes that cover the same places, with a channel for each."""
    together: dict[frozenset[int], list[int]] = defaultdict(list)
    for n, members in enumerate(classes):
        together[frozenset(item.place for item in members)].append(n)
    return [
        Repetition(
            tuple(tuple(item.frame for item in classes[n]) for n in numbers),
            () if len(classes) == 1 else _channel_names([values[n] for n in numbers], name),
            _times([classes[n] for n in numbers], name),
            notes=notes,
        )
        for numbers in together.values()
    ]


def _channel_names(values: Sequence[Any], name: str) -> tuple[str, ...]:
    if name == "diffusion":
        return tuple(f"b={value[0]:g} ({n})" for n, value in enumerate(values))
    plain = all(isinstance(value, int | str) for value in values)
    return tuple(f"{name} {value if plain else n}" for n, value in enumerate(values))


def _times(classes: list[list[PositionedFrame]], name: str) -> tuple[float, ...] | None:
    """Return seconds from the first class: what the attribute says, else when each was acquired."""
    if len(classes) == 1:
        return None
    for label in (name, *_SECONDS):
        if label not in _SECONDS:
            continue
        starts = [_earliest(members, label) for members in classes]
        known = [start for start in starts if start is not None]
        if len(known) == len(starts) and all(a < b for a, b in pairwise(known)):
            return tuple(round((start - known[0]) * _SECONDS[label], 6) for start in known)
    return None


def _earliest(members: list[PositionedFrame], label: str) -> float | None:
    found = [temporal_attribute_of(label, item) for item in members]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    return min(numbers) if len(numbers) == len(members) else None


def _by_instance_number(items: list[PositionedFrame]) -> list[Repetition]:
    """
    Split in the order of Instance Number and frame: volume by volume, or position by position.

    Where numbers at each position grow by a common period, they say which volume an image belongs to, also
    if some are missing. Position by position only if each repetition comes in the same order: else numbers
    don't tell them apart. Where positions repeat unevenly, volume by volume only, and only if all repeat:
    else some are doubles.
    """
    if any(i.frame.instance.instance_number is None and len(i.frame.instance.facts) == 1 for i in items):
        return []
    keys = [(i.place, i.frame.instance.instance_number, i.frame.facts.number) for i in items]
    if len(set(keys)) < len(keys):
        return []
    several = len({id(item.frame.instance) for item in items}) > 1
    notes = (_BY_NUMBER,) if several else ()
    periods = _periods(items)
    if periods:
        return _alike_covered(periods, range(len(periods)), "repetition", notes)
    counts = set(Counter(item.place for item in items).values())
    runs, ranks = _runs(items), _ranks(items)
    orders = {tuple(item.place for item in members) for members in ranks}
    for classes in (runs, ranks) if len(orders) == 1 else (runs,):
        found = _alike_covered(classes, range(len(classes)), "repetition", notes)
        if len(found) == 1:
            return found
    found = _alike_covered(runs, range(len(runs)), "repetition", notes)
    return found if len(counts) > 1 and min(counts) > 1 and _is_sound(found, items) else []


def _periods(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """Return the volumes of images that were numbered volume by volume; none if they were not."""
    numbered = [(item, item.frame.instance.instance_number or 0) for item in items]
    at_place: dict[int, list[int]] = defaultdict(list)
    for item, number in numbered:
        at_place[item.place].append(number)
    steps = {b - a for found in at_place.values() for a, b in pairwise(sorted(found))}
    places, period = len(at_place), min(steps, default=0)
    if not places <= period <= 2 * places or any(step % period for step in steps):
        return []
    turns = {found[0] % period for found in at_place.values()}
    if len(turns) < places or min(len(found) for found in at_place.values()) < 2:
        return []
    start = _first_number(numbered, period)
    volumes: dict[int, list[PositionedFrame]] = defaultdict(list)
    for item, number in numbered:
        volumes[(number - start) // period].append(item)
    return [volumes[n] for n in sorted(volumes)]


def _first_number(numbered: list[tuple[PositionedFrame, int]], period: int) -> int:
    """
    Return the number that the first volume begins with, though its image may be missing.

    It is the one that leaves fewest volumes incomplete, and else numbers slices in the order of their places.
    """
    numbers = np.asarray([number for _, number in numbered])
    places = np.asarray([item.place for item, _ in numbered])
    first = int(numbers.min())

    def faults(start: int) -> tuple[int, bool, bool, int]:
        volumes, turns = np.divmod(numbers - start, period)
        _, sizes = np.unique(volumes, return_counts=True)
        steps = np.diff(places[np.unique(turns, return_index=True)[1]])
        disordered = not ((steps > 0).all() or (steps < 0).all())
        return int((sizes < len(steps) + 1).sum()), disordered, start != 1, first - start

    return min(range(first - period + 1, first + 1), key=faults)


def _runs(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """Start a class whenever a place comes that the present one has."""
    classes: list[list[PositionedFrame]] = [[]]
    seen: set[int] = set()
    for item in items:
        if item.place in seen:
            classes.append([])
            seen = set()
        classes[-1].append(item)
        seen.add(item.place)
    return classes


def _ranks(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """Put the first frame of each place into the first class, the second into the second, and so on."""
    classes: list[list[PositionedFrame]] = []
    count: Counter[int] = Counter()
    for item in items:
        if count[item.place] == len(classes):
            classes.append([])
        classes[count[item.place]].append(item)
        count[item.place] += 1
    return classes


def _by_file(items: list[PositionedFrame]) -> list[Repetition]:
    """Take files that hold a whole volume each in the order of time, or one by one if nothing tells it."""
    parts = list(parts_by(items, lambda item: item.frame.instance.path).values())
    if any(len(part) == 1 or repeats(part) > 1 for part in parts):
        return []
    for label in _SECONDS:
        starts = [_earliest(part, label) for part in parts]
        if None in starts or len(set(starts)) < len(starts):
            continue
        in_time = sorted(zip(starts, parts, strict=True), key=lambda pair: pair[0] or 0.0)
        ordered = [part for _, part in in_time]
        found = _alike_covered(ordered, range(len(ordered)), "repetition")
        if len(found) == 1:
            return found
    return [_single(part) for part in parts]


def _with_copies(found: list[Repetition], copies: list[tuple[Frame, Frame]]) -> list[Repetition]:
    if not copies:
        return found
    of_frame = {id(kept): (copy, kept) for copy, kept in copies}
    return [
        replace(part, copies=tuple(of_frame[id(f)] for c in part.channels for f in c if id(f) in of_frame))
        for part in found
    ]
