"""
Repetitions at the same positions: echoes, phases, time points, diffusion volumes, or copies.

Images that differ in a series attribute (echo, magnitude or phase, kernel, trace) become separate series.
Other images at the same positions become channels of one volume if each channel has all positions; images
that cover only some positions become a separate series, so that nothing is interleaved or lost.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.io.dicom.header.distinguishing_attributes import (
    NAMED_BY_VALUE,
    SERIES_ATTRIBUTES,
    TEMPORAL_ATTRIBUTES,
    UNORDERED,
    UNPRINTABLE,
)
from medimg.io.dicom.series._repeated_positions import (
    PositionedFrame,
    attribute_getter,
    count_repeats,
    drop_copies,
    get_series_attribute,
    get_temporal_attribute,
    get_temporal_attributes,
    group_by,
    is_varying,
    position_frames,
)
from medimg.io.dicom.series._substacks import split_substacks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from medimg.io.dicom.header.instance import Frame

__all__ = ["Repetition", "split_repetitions"]

#: Attributes that can distinguish repetitions together, such as label and repetition in ASL.
_COMBINABLE: Final = tuple(
    name
    for name in TEMPORAL_ATTRIBUTES
    if name not in {"dimensions", "offset", "started", "referenced", "acquired", "made"}
)
#: Attributes ordered by value; the others are ordered by Instance Number.
_ORDERED_BY_VALUE: Final = frozenset(TEMPORAL_ATTRIBUTES) - UNORDERED
#: Attributes of time, with the factor to seconds.
_SECONDS: Final = {
    "reference time": 1e-3, "trigger": 1e-3, "respiratory trigger": 1e-3, "offset": 1.0, "started": 1.0,
    "acquired": 1.0,
}  # fmt: skip
_BY_NUMBER: Final = "images at the same positions are distinguished by their Instance Numbers alone"
_BY_ORDER: Final = "frames at the same positions are distinguished by their order in the file alone"

Frames: TypeAlias = "tuple[Frame, ...]"
#: Classes of frames, the value of each, and the attribute that distinguishes them.
_Candidate: TypeAlias = "tuple[list[list[PositionedFrame]], Sequence[Any], str]"


@dataclass(frozen=True, slots=True)
class Repetition:
    """
    Frames of one volume: for each channel its frames, each position once.

    A single channel can have several frames at one position that no attribute distinguishes. `names` is empty
    without repetitions, `times` in seconds from the first channel; `copies` are pairs of a frame left out and
    the frame that it duplicates, `notes` warnings.
    """

    channels: tuple[Frames, ...]
    names: tuple[str, ...] = ()
    times: tuple[float, ...] | None = None
    copies: tuple[tuple[Frame, Frame], ...] = ()
    notes: tuple[str, ...] = ()


def split_repetitions(frames: Sequence[Frame]) -> list[Repetition]:
    """Split frames of equal orientation, size and spacing into volumes without repeated positions."""
    if not all(frame.has_geometry for frame in frames):
        return [Repetition((tuple(frames),))]
    items, copies = drop_copies(position_frames(frames))
    result = []
    for part in _split_by_series_attributes(items, SERIES_ATTRIBUTES):
        result += _split_by_time(part)
    return _assign_copies(result, copies)


def _split_by_series_attributes(
    items: list[PositionedFrame], names: Sequence[str]
) -> list[list[PositionedFrame]]:
    most = count_repeats(items)
    if most == 1:
        return [items]
    for n, name in enumerate(names):
        parts = group_by(items, partial(get_series_attribute, name))
        if len(parts) > 1 and all(count_repeats(part) < most for part in parts.values()):
            return [p for part in parts.values() for p in _split_by_series_attributes(part, names[n + 1 :])]
    return [items]


def _split_by_time(items: list[PositionedFrame]) -> list[Repetition]:
    segments = _split_by_segment(items)
    if segments:
        return segments
    parts = split_substacks(items)
    if len(parts) > 1:
        return [found for part in parts for found in _split_by_time(part)]
    if count_repeats(items) == 1:
        return [_make_single(items)]
    return (
        _split_by_attribute(items)
        or _split_by_combination(items)
        or _split_by_instance_number(items)
        or _split_by_file(items)
        or [_make_single(items)]
    )


def _make_single(items: Sequence[PositionedFrame]) -> Repetition:
    return Repetition((tuple(item.frame for item in items),))


def _split_by_segment(items: list[PositionedFrame]) -> list[Repetition]:
    """Split segments of a segmentation, wherever each has frames: empty ones are left out."""
    parts = group_by(items, attribute_getter(items, "segment"))
    if not _is_partition(parts):
        return []
    numbers = sorted(parts)
    return _merge_classes([parts[number] for number in numbers], numbers, "segment")


def _split_by_attribute(items: list[PositionedFrame]) -> list[Repetition]:
    """Split by the first attribute that assigns each frame to a repetition."""
    return _choose_split(items, _try_single_attributes(items))


def _try_single_attributes(items: list[PositionedFrame]) -> Iterator[_Candidate]:
    for name in TEMPORAL_ATTRIBUTES:
        parts = group_by(items, attribute_getter(items, name))
        if _is_partition(parts):
            values = _sort_values(parts, name)
            yield [parts[value] for value in values], values, name


def _split_by_combination(items: list[PositionedFrame]) -> list[Repetition]:
    """Split by two or three attributes together, if each image then has all positions."""
    return _choose_split(items, _try_combinations(items))


def _try_combinations(items: list[PositionedFrame]) -> Iterator[_Candidate]:
    varying = [name for name in _COMBINABLE if is_varying(items, name)]
    for count in (2, 3):
        for names in combinations(varying, count):
            parts = group_by(items, partial(get_temporal_attributes, names))
            if _is_partition(parts):
                values = sorted(parts) if _ORDERED_BY_VALUE.issuperset(names) else _sort_values(parts, "")
                yield [parts[value] for value in values], range(len(values)), "repetition"


def _is_partition(parts: dict[Any, list[PositionedFrame]]) -> bool:
    """Whether each frame belongs to a part, and no position repeats within any."""
    return len(parts) > 1 and None not in parts and all(count_repeats(part) == 1 for part in parts.values())


def _choose_split(items: list[PositionedFrame], candidates: Iterable[_Candidate]) -> list[Repetition]:
    """
    Return the first split in which all images have all positions.

    If positions repeat unevenly, otherwise the first one without duplicates.
    """
    uneven: list[Repetition] = []
    for classes, values, name in candidates:
        found = _merge_classes(classes, values, name)
        if len(found) == 1:
            return found
        if not uneven and _is_plausible(found, items):
            uneven = found
    return uneven if _is_uneven(items) else []


def _is_plausible(found: list[Repetition], items: list[PositionedFrame]) -> bool:
    """Whether single images are only the remainder of a last volume, and not duplicates."""
    locations = len({item.location for item in items})
    whole = any(len(part.channels) > 1 and len(part.channels[0]) == locations for part in found)
    return whole or all(len(part.channels[0]) > 1 for part in found)


def _is_uneven(items: list[PositionedFrame]) -> bool:
    return len(set(Counter(item.location for item in items).values())) > 1


def _sort_values(parts: dict[Any, list[PositionedFrame]], name: str) -> list[Any]:
    if name in _ORDERED_BY_VALUE:
        return sorted(parts)
    items = [item for part in parts.values() for item in part]
    index = attribute_getter(items, "dimensions")
    if len({id(item.frame.instance) for item in items}) == 1 and index(items[0]) is not None:
        # as in dcm2niix: the last dimension varies slowest
        return sorted(parts, key=lambda value: min(index(item)[::-1] for item in parts[value]))
    # Philips numbers b-values and directions, but files in any order
    return sorted(parts, key=lambda value: min(_sort_key(item) for item in parts[value]))


def _sort_key(item: PositionedFrame) -> tuple[Any, ...]:
    return get_temporal_attribute("philips", item) or (), item.frame.sort_key


def _merge_classes(
    classes: list[list[PositionedFrame]], values: Sequence[Any], name: str, notes: tuple[str, ...] = ()
) -> list[Repetition]:
    """Merge classes that cover the same positions into volumes, with a channel for each class."""
    together: dict[frozenset[int], list[int]] = defaultdict(list)
    for n, members in enumerate(classes):
        together[frozenset(item.location for item in members)].append(n)
    return [
        Repetition(
            tuple(tuple(item.frame for item in classes[n]) for n in numbers),
            () if len(classes) == 1 else _name_channels([values[n] for n in numbers], name),
            _find_times([classes[n] for n in numbers], name),
            notes=notes,
        )
        for numbers in together.values()
    ]


def _name_channels(values: Sequence[Any], name: str) -> tuple[str, ...]:
    if name == "diffusion":
        return tuple(f"b={value[0]:g} ({n})" for n, value in enumerate(values))
    if name in NAMED_BY_VALUE:
        numbers = (value if isinstance(value, tuple) else (value,) for value in values)
        return tuple(f"{name} {' '.join(f'{v:g}' for v in several)}" for several in numbers)
    plain = name not in UNPRINTABLE and all(isinstance(value, int | str) for value in values)
    return tuple(f"{name} {value if plain else n}" for n, value in enumerate(values))


def _find_times(classes: list[list[PositionedFrame]], name: str) -> tuple[float, ...] | None:
    """Return seconds from the first class, by the attribute itself or else by the acquisition times."""
    if len(classes) == 1:
        return None
    for label in (name, *_SECONDS):
        if label not in _SECONDS:
            continue
        starts = [_find_earliest(members, label) for members in classes]
        known = [start for start in starts if start is not None]
        if len(known) == len(starts) and all(a < b for a, b in pairwise(known)):
            return tuple(round((start - known[0]) * _SECONDS[label], 6) for start in known)
    return None


def _find_earliest(members: list[PositionedFrame], label: str) -> float | None:
    found = [get_temporal_attribute(label, item) for item in members]
    numbers = [float(value) for value in found if isinstance(value, int | float)]
    return min(numbers) if len(numbers) == len(members) else None


def _split_by_instance_number(items: list[PositionedFrame]) -> list[Repetition]:
    """
    Split in the order of Instance Number and frame: volume by volume, or position by position.

    If the numbers at each position grow by a common period, they identify the volume, even with images
    missing. Position by position only if each repetition has the same order. If positions repeat unevenly,
    only volume by volume, and only if all repeat: otherwise some are duplicates.
    """
    if any(i.frame.instance.instance_number is None and len(i.frame.instance.facts) == 1 for i in items):
        return []
    keys = [(i.location, i.frame.instance.instance_number, i.frame.facts.number) for i in items]
    if len(set(keys)) < len(keys):
        return []
    several = len({id(item.frame.instance) for item in items}) > 1
    notes = (_BY_NUMBER if several else _BY_ORDER,)
    periods = _find_periods(items)
    if periods:
        return _merge_classes(periods, range(len(periods)), "repetition", notes)
    counts = set(Counter(item.location for item in items).values())
    runs, ranks = _split_into_runs(items), _split_into_ranks(items)
    orders = {tuple(item.location for item in members) for members in ranks}
    for classes in (runs, ranks) if len(orders) == 1 else (runs,):
        found = _merge_classes(classes, range(len(classes)), "repetition", notes)
        if len(found) == 1:
            return found
    found = _merge_classes(runs, range(len(runs)), "repetition", notes)
    return found if len(counts) > 1 and min(counts) > 1 and _is_plausible(found, items) else []


def _find_periods(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """Return the volumes of images that are numbered volume by volume; none otherwise."""
    numbered = [(item, item.frame.instance.instance_number or 0) for item in items]
    at_location: dict[int, list[int]] = defaultdict(list)
    for item, number in numbered:
        at_location[item.location].append(number)
    steps = {b - a for found in at_location.values() for a, b in pairwise(sorted(found))}
    locations, period = len(at_location), min(steps, default=0)
    if not locations <= period <= 2 * locations or any(step % period for step in steps):
        return []
    ranks_in_period = {found[0] % period for found in at_location.values()}
    if len(ranks_in_period) < locations or min(len(found) for found in at_location.values()) < 2:
        return []
    start = _find_first_number(numbered, period)
    volumes: dict[int, list[PositionedFrame]] = defaultdict(list)
    for item, number in numbered:
        volumes[(number - start) // period].append(item)
    return [volumes[n] for n in sorted(volumes)]


def _find_first_number(numbered: list[tuple[PositionedFrame, int]], period: int) -> int:
    """
    Return the number of the first image of the first volume, though that image may be missing.

    It is the one that leaves fewest volumes incomplete, then the one that numbers slices in order of
    position.
    """
    numbers = np.asarray([number for _, number in numbered])
    locations = np.asarray([item.location for item, _ in numbered])
    first = int(numbers.min())

    def count_faults(start: int) -> tuple[int, bool, bool, int]:
        volumes, ranks_in_period = np.divmod(numbers - start, period)
        _, sizes = np.unique(volumes, return_counts=True)
        steps = np.diff(locations[np.unique(ranks_in_period, return_index=True)[1]])
        disordered = not ((steps > 0).all() or (steps < 0).all())
        return int((sizes < len(steps) + 1).sum()), disordered, start != 1, first - start

    return min(range(first - period + 1, first + 1), key=count_faults)


def _split_into_runs(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """Start a class whenever a position repeats within the current one."""
    classes: list[list[PositionedFrame]] = [[]]
    seen: set[int] = set()
    for item in items:
        if item.location in seen:
            classes.append([])
            seen = set()
        classes[-1].append(item)
        seen.add(item.location)
    return classes


def _split_into_ranks(items: list[PositionedFrame]) -> list[list[PositionedFrame]]:
    """Put the first frame of each position into the first class, the second into the second, and so on."""
    classes: list[list[PositionedFrame]] = []
    count: Counter[int] = Counter()
    for item in items:
        if count[item.location] == len(classes):
            classes.append([])
        classes[count[item.location]].append(item)
        count[item.location] += 1
    return classes


def _split_by_file(items: list[PositionedFrame]) -> list[Repetition]:
    """Split files with a whole volume each, in the order of time if it is known."""
    parts = list(group_by(items, lambda item: item.frame.instance.path).values())
    if any(len(part) == 1 or count_repeats(part) > 1 for part in parts):
        return []
    for label in _SECONDS:
        starts = [_find_earliest(part, label) for part in parts]
        if None in starts or len(set(starts)) < len(starts):
            continue
        in_time = sorted(zip(starts, parts, strict=True), key=lambda pair: pair[0] or 0.0)
        ordered = [part for _, part in in_time]
        found = _merge_classes(ordered, range(len(ordered)), "repetition")
        if len(found) == 1:
            return found
    return [_make_single(part) for part in parts]


def _assign_copies(found: list[Repetition], copies: list[tuple[Frame, Frame]]) -> list[Repetition]:
    if not copies:
        return found
    of_frame: dict[int, list[tuple[Frame, Frame]]] = defaultdict(list)
    for copy, kept in copies:
        of_frame[id(kept)].append((copy, kept))
    return [
        replace(
            part, copies=tuple(pair for c in part.channels for f in c for pair in of_frame.get(id(f), ()))
        )
        for part in found
    ]
