"""Groups of frames into series."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medimg.errors import GeometryError
from medimg.io.dicom.reading import StackReader
from medimg.io.dicom.stack import StackPlan, plan_stack
from medimg.io.series import Series

if TYPE_CHECKING:
    from medimg.io.dicom.grouping import Group

__all__ = ["dicom_series", "series_of"]


def dicom_series(group: Group) -> Series:
    """
    Return the series of frames that belong into one volume.

    Raises
    ------
    GeometryError
        If their order can't be known.
    """
    plan = plan_stack(group)
    return series_of(group.uid, plan, plan.files)


def series_of(uid: str, plan: StackPlan, files: tuple[str, ...]) -> Series:
    """
    Return the series of a plan.

    Parameters
    ----------
    uid : str
        What it is called.
    plan : StackPlan
        Its frames.
    files : tuple of str
        Their files, as :attr:`StackPlan.files` says.

    Raises
    ------
    GeometryError
        If there are several color images at each position.
    """
    instance = plan.first.instance
    colors = 3 if instance.is_color else 1
    if colors > 1 and len(plan.channels) > 1:
        raise GeometryError(
            f"{len(plan.channels)} color images lie at each position: channels are colors already; "
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
