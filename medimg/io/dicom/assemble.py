"""Single-frame instances into a series, and its pixels into a volume."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core import geometry
from medimg.core.repair import deshear, regular_grid
from medimg.core.report import ReadReport
from medimg.core.volume import Volume
from medimg.errors import (
    DecodeError,
    DuplicateSlicesError,
    GeometryError,
    MedimgWarning,
    MissingSlicesError,
    ReadError,
    SeriesError,
    TiltedGantryError,
)
from medimg.io.dicom.attributes import quiet_pydicom
from medimg.io.dicom.header import open_dataset
from medimg.io.dicom.stack import StackPlan, plan_stack
from medimg.io.dicom.values import SliceValues, slice_values
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from medimg.core.stacking import Stack
    from medimg.core.window import Voi
    from medimg.io.dicom.header import Instance

__all__ = ["dicom_series"]

#: How many times as many slices as there are "fix" may make.
_MOST_FILLED: Final = 4


def dicom_series(uid: str, instances: Sequence[Instance]) -> Series:
    """
    Return the series of instances that belong into one stack.

    Raises
    ------
    GeometryError
        If their order can't be known.
    """
    plan = plan_stack(instances)
    first = plan.instances[0]
    color = first.samples == 3 or first.photometric == "PALETTE COLOR"
    depth = len(plan.instances) * first.frames
    return Series(
        uid=uid,
        modality=first.modality,
        description=first.description,
        shape=(3 if color else 1, depth, first.rows, first.columns),
        affine=plan.affine,
        space=plan.space,
        files=tuple(i.path for i in plan.instances),
        format="DICOM",
        reader=partial(_read, plan),
        patient_id=first.patient_id,
        study_uid=first.study_uid,
    )


def _read(plan: StackPlan, slices: Sequence[int] | None, policies: Policies) -> Volume:
    try:
        return _volume(plan, slices, policies)
    except SeriesError as error:
        raise type(error)(f"series of {plan.instances[0].path}: {error}") from None


def _volume(plan: StackPlan, slices: Sequence[int] | None, policies: Policies) -> Volume:
    if plan.instances[0].is_multiframe:
        raise ReadError(
            f"{plan.instances[0].path} is multi-frame DICOM ({plan.instances[0].frames} frames), "
            "which is not supported yet: convert it to single frames or NIfTI first"
        )
    notes = [*plan.notes, *_check_stack(plan, policies)]
    plan = _settle_duplicates(plan, policies, notes)
    everything = range(len(plan.instances))
    chosen = geometry.ascending_slices(everything if slices is None else slices, len(everything))
    fixes = _fixes(plan, policies)
    if fixes and slices is not None:
        raise GeometryError('slices can\'t be chosen together with a policy "fix" that resamples the stack')
    silent = [note for note in plan.notes if note not in notes]
    volume = _decoded(plan, chosen, [*notes, *silent])
    for fix in fixes:
        volume = fix(volume)
    for note in notes:
        warnings.warn(note, MedimgWarning, stacklevel=5)
    return volume


def _check_stack(plan: StackPlan, policies: Policies) -> list[str]:
    """Apply the policies "raise" and "warn" to gaps and tilt; return the warnings."""
    stack = plan.stack
    if stack is None:
        return []
    notes = []
    if stack.missing or stack.irregular:
        places = [f"{n} after slice {place}" for place, n in stack.missing]
        found = f"missing slices: {', '.join(places)}" if places else ""
        if stack.irregular:
            found += f"{'; ' * bool(found)}uneven distances after slices {list(stack.irregular)}"
        found += f" (of {len(plan.instances)} slices, mostly {stack.gap:.4g} mm apart)"
        if policies.on_missing == "raise":
            raise MissingSlicesError(
                f'{found}; get the whole series, or choose on_missing="fix" to interpolate, "warn" or "keep" '
                "to take the slices as they are"
            )
        if policies.on_missing == "warn":
            notes.append(found)
    if stack.tilt:
        found = f"tilted gantry: slices are sheared by {stack.tilt:.2f}°"
        if policies.on_tilt == "raise":
            raise TiltedGantryError(
                f'{found}; choose on_tilt="fix" to resample onto a perpendicular grid, or "warn" or "keep" '
                "to keep the shear in the affine"
            )
        if policies.on_tilt == "warn":
            notes.append(f"{found}; the affine keeps the shear")
    return notes


def _settle_duplicates(plan: StackPlan, policies: Policies, notes: list[str]) -> StackPlan:
    if not plan.duplicates:
        return plan
    count = len(plan.duplicates)
    found = f"{count} file(s) lie at the position of another, of {len(plan.instances) + count}"
    if policies.on_duplicate == "raise":
        raise DuplicateSlicesError(f'{found}; remove them, or choose on_duplicate="warn"')
    if policies.on_duplicate == "keep":
        if "fix" in (policies.on_missing, policies.on_tilt):
            raise DuplicateSlicesError(
                f'{found}: on_duplicate="keep" stacks them all, and then nothing can be resampled by '
                'position; choose on_duplicate="fix"'
            )
        together = sorted((*plan.instances, *(left for left, _ in plan.duplicates)), key=plan.along)
        note = f"{found}; all are stacked, so that the affine does not give their positions"
        return replace(plan, instances=tuple(together), duplicates=(), notes=(*plan.notes, note))
    different = [left for left, kept in plan.duplicates if not _same_image(left, kept)]
    if different:
        raise DuplicateSlicesError(
            f"{found}, and {len(different)} of them hold other images: phases, echoes, time points or series "
            "in one; time series are not supported yet: read the files of one point in time"
        )
    if policies.on_duplicate == "warn":
        notes.append(f"{found}, with the same image; one of each is used")
    return plan


def _same_image(one: Instance, other: Instance) -> bool:
    first, second = _slice(one), _slice(other)
    return np.array_equal(first.array, second.array)


def _regularized(stack: Stack, volume: Volume) -> Volume:
    extent = stack.distances[-1] - stack.distances[0]
    if extent / stack.gap > _MOST_FILLED * len(stack.distances):
        raise MissingSlicesError(
            f"{len(stack.distances)} slices {stack.gap:.4g} mm apart spread over {extent:.4g} mm: "
            "too few to interpolate the rest; a position may be damaged"
        )
    array = regular_grid(volume.array, stack.distances, stack.gap)
    padding = None
    if volume.padding is not None:
        padding = regular_grid(volume.padding.astype(np.uint8), stack.distances, stack.gap) > 0
    report = volume.report.then(f"interpolated from {volume.shape[1]} to {array.shape[1]} slices")
    return replace(
        volume,
        array=array,
        padding=padding,
        voi=volume.voi if len(volume.voi) == 1 else (),
        report=replace(report, sop_instance_uids=()),
    )


def _desheared(volume: Volume) -> Volume:
    affine = volume.affine
    x, y = (affine[:3, axis] / np.linalg.norm(affine[:3, axis]) for axis in (2, 1))
    across_rows, across_columns = affine[:3, 0] @ y, affine[:3, 0] @ x
    _, row_spacing, column_spacing = geometry.spacing_of(affine)
    d = np.arange(volume.shape[1])
    rows, columns = d * across_rows / row_spacing, d * across_columns / column_spacing
    array, padding = deshear(volume.array, rows, columns)
    if volume.padding is not None:
        moved, _ = deshear(volume.padding.astype(np.uint8), rows, columns)
        padding = padding | (moved > 0)
    straight = affine.copy()
    straight[:3, 0] -= across_rows * y + across_columns * x
    report = volume.report.then("desheared onto a perpendicular grid")
    return replace(volume, array=array, affine=straight, padding=padding, report=report)


def _fixes(plan: StackPlan, policies: Policies) -> list[Callable[[Volume], Volume]]:
    stack = plan.stack
    fixes: list[Callable[[Volume], Volume]] = []
    if stack is None:
        return fixes
    if policies.on_missing == "fix" and (stack.missing or stack.irregular):
        fixes.append(partial(_regularized, stack))
    if policies.on_tilt == "fix" and stack.tilt:
        fixes.append(_desheared)
    return fixes


def _decoded(plan: StackPlan, chosen: Sequence[int], notes: list[str]) -> Volume:
    instances = plan.instances
    used = [instances[i] for i in chosen]
    values = [_slice(instance) for instance in used]
    _check_alike(values, used)
    first = values[0]
    transforms = tuple(dict.fromkeys(t for v in values for t in v.transforms))
    voi = tuple(v.voi for v in values)
    if len(chosen) < len(instances):
        transforms += (f"{len(chosen)} of {len(instances)} slices read",)
    stack = plan.stack
    report = ReadReport(
        format="DICOM",
        files=tuple(i.path for i in used),
        series_uid=used[0].series_uid,
        sop_instance_uids=tuple(i.sop_instance_uid for i in used),
        missing=tuple(place for place, _ in stack.missing) if stack else (),
        duplicates=tuple(left.path for left, _ in plan.duplicates),
        tilt=stack.tilt if stack else 0.0,
        transforms=_few(transforms),
        warnings=tuple(notes),
    )
    return Volume(
        array=np.stack([v.array for v in values], axis=1),
        affine=geometry.subset_affine(plan.affine, chosen),
        modality=used[0].modality,
        units=first.units,
        photometric=first.photometric,
        inverted=first.inverted,
        space=plan.space,
        voi=_distinct(voi),
        padding=_stacked_padding(values),
        report=report,
    )


def _slice(instance: Instance) -> SliceValues:
    try:
        with quiet_pydicom():
            return slice_values(open_dataset(instance.path))
    except ReadError as error:
        if instance.path in str(error):
            raise
        raise type(error)(f"{instance.path}: {error}") from None
    # pydicom raises errors of many kinds when a damaged value is used, and their texts quote it
    except Exception as error:
        raise DecodeError(f"{instance.path} is damaged ({type(error).__name__} while decoding)") from None


def _check_alike(values: list[SliceValues], used: list[Instance]) -> None:
    first = values[0]
    for value, instance in zip(values, used, strict=True):
        facts = (value.array.shape, value.units, value.photometric, value.inverted)
        expected = (first.array.shape, first.units, first.photometric, first.inverted)
        if facts != expected:
            raise GeometryError(f"{instance.path} differs from the first slice: {facts} against {expected}")


def _stacked_padding(values: list[SliceValues]) -> npt.NDArray[np.bool_] | None:
    if all(v.padding is None for v in values):
        return None
    none = np.zeros(values[0].array.shape, dtype=np.bool_)
    padding: npt.NDArray[Any] = np.stack([none if v.padding is None else v.padding for v in values], axis=1)
    return padding


def _distinct(voi: tuple[tuple[Voi, ...], ...]) -> tuple[tuple[Voi, ...], ...]:
    """Return one entry where all slices declare the same, none where they declare nothing."""
    if any(v != voi[0] for v in voi):
        return voi
    return (voi[0],) if voi[0] else ()


def _few(transforms: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the list readable where every slice has a rescale of its own."""
    return transforms if len(transforms) <= 8 else (*transforms[:7], f"… {len(transforms) - 7} more alike")
