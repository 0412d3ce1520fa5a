"""Siblings that make up one regular stack: a series without a look at each file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from medimg.core.stacking import analyze_positions, are_apart
from medimg.errors import GeometryError
from medimg.io.dicom.assemble import series_of
from medimg.io.dicom.header import Frame
from medimg.io.dicom.stack import regular_plan

if TYPE_CHECKING:
    from medimg.io.dicom.alike import Alike
    from medimg.io.series import Series

__all__ = ["regular_series"]


class _Frames(Sequence[Frame]):
    """The frames of files in the order of a stack, made when they are asked for."""

    def __init__(self, files: Alike, rows: Sequence[int]) -> None:
        self._files = files
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Frame: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Frame]: ...
    def __getitem__(self, index: int | slice) -> Frame | Sequence[Frame]:
        if isinstance(index, slice):
            return _Frames(self._files, self._rows[index])
        instance = self._files.instance(self._rows[index])
        return Frame(instance, instance.facts[0])


def regular_series(files: Alike) -> Series | None:
    """
    Return the series of files that share it with no other file.

    Parameters
    ----------
    files : Alike
        All files of their series.

    Returns
    -------
    Series or None
        As :func:`medimg.io.dicom.assemble.dicom_series` makes it of their only group; None where they may
        be several groups: a place repeats, is missing, or is off. Then each file has to be looked at.
    """
    prototype = files.prototype
    orientation, positions = prototype.facts[0].orientation, files.positions
    if not prototype.series_uid or orientation is None or positions is None:
        return None
    try:
        if not are_apart(positions, orientation):
            return None
        facts = prototype.facts[0]
        alone = facts.slice_spacing or facts.slice_thickness or 1.0
        stack = analyze_positions(positions, orientation, fallback_step=alone)
    except GeometryError:
        return None
    if stack.missing or stack.irregular or stack.duplicates:
        return None
    rows = stack.order
    plan = regular_plan(stack, _Frames(files, rows), positions[list(rows)])
    names = files.names
    return series_of(prototype.series_uid, plan, files=tuple([names[row] for row in rows]))
