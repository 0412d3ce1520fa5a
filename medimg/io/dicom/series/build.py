"""Series from groups of DICOM frames, or directly from regular files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

from medimg.core.stacking import analyze_positions, are_drifting
from medimg.errors import GeometryError, MedimgError
from medimg.io.dicom.header.instance import Frame
from medimg.io.dicom.series._stack_plan import StackPlan, find_extent, plan_regular_stack, plan_stack
from medimg.io.dicom.series.grouping import group_frames
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.series import Series

if TYPE_CHECKING:
    from medimg.io.dicom.header.instance import Instance
    from medimg.io.dicom.scanning.series_table import UniformFiles
    from medimg.io.dicom.series.grouping import Group

__all__ = ["build_all_series", "build_dicom_series", "build_regular_series", "build_series"]


def build_all_series(
    instances: Iterable[Instance],
) -> tuple[list[Series], list[tuple[str, MedimgError]]]:
    """Return the series of files, and the names and errors of those that form none."""
    series: list[Series] = []
    failed: list[tuple[str, MedimgError]] = []
    for group in group_frames(instances):
        try:
            series.append(build_dicom_series(group))
        except MedimgError as error:
            failed += [(instance.path, error) for instance in group.instances]
    return series, failed


def build_dicom_series(group: Group) -> Series:
    """Return the series of frames of one volume; raise GeometryError if their order is unknown."""
    try:
        plan = plan_stack(group)
    except GeometryError as error:
        # attributes that are present but not used may be why
        found = dict.fromkeys(note for instance in group.instances for note in instance.notes)
        raise GeometryError("; ".join((str(error), *found))) from None
    return build_series(group.uid, plan, plan.files)


def build_series(uid: str, plan: StackPlan, files: tuple[str, ...]) -> Series:
    """Return the series of a plan; raise GeometryError for several color images at each position."""
    instance = plan.first.instance
    colors = 3 if instance.is_color else 1
    if colors > 1 and len(plan.channels) > 1:
        raise GeometryError(
            f"{len(plan.channels)} color images at each position, but channels are colors; "
            "read the files one by one"
        )
    return Series(
        uid=uid,
        modality=instance.modality,
        description=instance.description,
        shape=(colors * len(plan.channels), plan.depth, instance.rows, instance.columns),
        affine=plan.affine,
        space=plan.space,
        files=files,
        format="DICOM",
        reader=StackReader(plan),
        patient_id=instance.patient_id,
        study_uid=instance.study_uid,
        frame_times=plan.times,
    )


class _LazyFrames(Sequence[Frame]):
    """Frames of files in stack order, built on access."""

    def __init__(self, files: UniformFiles, rows: Sequence[int]) -> None:
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
            return _LazyFrames(self._files, self._rows[index])
        instance = self._files.get_instance(self._rows[index])
        return Frame(instance, instance.facts[0])


def build_regular_series(files: UniformFiles) -> Series | None:
    """
    Return the series of files that are the only files of their series, as `build_dicom_series` would.

    None if they may be several groups, because a position repeats, is missing or uneven: then each file is
    examined.
    """
    prototype = files.prototype
    orientation, positions = prototype.facts[0].orientation, files.positions
    if not prototype.series_uid or orientation is None or positions is None or prototype.modality == "SEG":
        return None
    try:
        extent = find_extent(prototype.facts[0])
        stack = analyze_positions(positions, orientation, fallback_step=extent)
    except GeometryError:
        return None
    if stack.missing or stack.irregular or stack.duplicates or are_drifting(stack.distances):
        return None
    rows = stack.order
    plan = plan_regular_stack(stack, _LazyFrames(files, rows), positions[np.array(rows)])
    names = files.names
    return build_series(prototype.series_uid, plan, files=tuple([names[row] for row in rows]))
