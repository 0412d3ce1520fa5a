"""`volume[...]`: part of a volume, with its geometry and the facts of its slices."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, SupportsIndex, TypeAlias

from medimg.core import geometry
from medimg.errors import GeometryError

if TYPE_CHECKING:
    from types import EllipsisType

    from medimg.core.volume import Volume

__all__ = ["Index", "index_volume"]

#: An axis of an index: one position, which keeps the axis, or a range of them.
AxisIndex: TypeAlias = "SupportsIndex | slice | EllipsisType"
Index: TypeAlias = "AxisIndex | tuple[AxisIndex, ...]"

_AXES: Final = ("C", "D", "H", "W")


class _OutOfRangeError(GeometryError, IndexError):
    """An index beyond an axis: an IndexError too, which ends Python's own loops."""


def index_volume(volume: Volume, index: Any) -> Volume:
    """Return the part of a volume that an index of up to four axes selects; each axis is kept."""
    ranges = [_find_range(part, axis, volume.shape[axis]) for axis, part in enumerate(_expand(index))]
    if all(chosen == range(size) for chosen, size in zip(ranges, volume.shape, strict=True)):
        return volume
    # a slice object that ends before the start of an axis has no end
    key = tuple(slice(r.start, r.stop if r.stop >= 0 else None, r.step) for r in ranges)
    channels, slices, rows, columns = ranges
    depth, count = volume.shape[1], volume.shape[0]
    report = volume.report.then(f"[{', '.join(_describe_range(r) for r in ranges)}] selected")
    if not volume.is_color and channels != range(count):
        report = report.of_channels(channels, count)
    color = volume.is_color and channels == range(count)
    return replace(
        volume,
        array=volume.array[key],
        affine=geometry.index_affine(volume.affine, (slices, rows, columns)),
        channels=tuple(volume.channels[c] for c in channels),
        photometric="MONOCHROME2" if volume.is_color and not color else volume.photometric,
        voi=tuple(volume.voi[d] for d in slices) if len(volume.voi) > 1 else volume.voi,
        padding=None if volume.padding is None else volume.padding[key],
        report=report.at_slices(slices, depth) if slices != range(depth) else report,
    )


def _expand(index: Any) -> list[Any]:
    """Return an entry for each of the four axes."""
    parts = list(index) if isinstance(index, tuple) else [index]
    dots = [n for n, part in enumerate(parts) if part is ...]
    if len(dots) > 1 or len(parts) - len(dots) > len(_AXES):
        raise _OutOfRangeError(
            "a volume is indexed by up to four axes, (C, D, H, W), and at most one ...; "
            f"found {len(parts)} entries"
        )
    at = dots[0] if dots else len(parts)
    missing = len(_AXES) - (len(parts) - len(dots))
    return [*parts[:at], *[slice(None)] * missing, *parts[at + 1 :]]


def _find_range(part: Any, axis: int, size: int) -> range:
    """Return the positions along an axis; an int is a range of one."""
    try:
        if isinstance(part, slice):
            chosen = range(size)[part]
        elif isinstance(part, bool):
            raise TypeError
        else:
            position = operator.index(part)
            if not -size <= position < size:
                raise _OutOfRangeError(
                    f"index {position} is out of range: axis {_AXES[axis]} of the volume has {size}"
                )
            chosen = range(position % size, position % size + 1)
    except _OutOfRangeError:
        raise
    except (TypeError, ValueError):
        raise GeometryError(
            f"axis {_AXES[axis]} of a volume is indexed by a whole number or a slice such as 10:20:2; found "
            f"a {type(part).__name__}: for chosen slices use volume.take([0, 3, 7]), for values volume.array"
        ) from None
    if not chosen:
        raise GeometryError(
            f"the index of axis {_AXES[axis]} selects nothing of {size}; a volume needs at least one"
        )
    return chosen


def _describe_range(chosen: range) -> str:
    end = "" if chosen.stop < 0 else str(chosen.stop)
    return f"{chosen.start}:{end}" + (f":{chosen.step}" if chosen.step != 1 else "")
