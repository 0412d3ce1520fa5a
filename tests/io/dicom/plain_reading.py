"""
The plain way of reading, which every fast one must equal: pydicom parses each whole file, each slice is
decoded and rescaled into an array of its own, one after the other, and all are stacked in the end.

It was the way of the library until reading became fast, and is kept as it was.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.stack_repair import deshear_volume, fill_gaps
from medimg.core.volume import Volume
from medimg.core.window import Voi
from medimg.errors import DecodeError, GeometryError, MedimgError, MedimgWarning, SeriesError
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.instance import Frame, Instance
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.series._policies import Notes, check_stack, resolve_duplicates
from medimg.io.dicom.series._stack_plan import StackPlan
from medimg.io.dicom.values.suv import SUV_TAGS, get_acquisition_time
from medimg.io.series import Policies, ValueKind
from tests.io.dicom.plain_values import SliceValues, calibrated, slice_values

_MOST_VALUES = 2**33
_SUV_TAGS = to_tags(*SUV_TAGS)
_Calibrate: TypeAlias = Callable[[Dataset, SliceValues], SliceValues]


def plain_read(plan: StackPlan, slices: Sequence[int] | None, policies: Policies) -> Volume:
    try:
        return _volume(plan, slices, policies)
    except SeriesError as error:
        raise type(error)(f"series of {plan.first.instance.path}: {error}") from None


def _volume(plan: StackPlan, slices: Sequence[int] | None, policies: Policies) -> Volume:
    notes = Notes([*plan.notes], [*plan.remarks])
    check_stack(plan, policies, notes)
    plan = resolve_duplicates(plan, policies, notes)
    everything = range(plan.depth)
    chosen = geometry.ascending_slices(everything if slices is None else slices, plan.depth)
    fixes = _fixes(plan, policies)
    if fixes and slices is not None:
        raise GeometryError('slices= is not supported with a policy "fix" that resamples the stack')
    volume = _decoded(plan, chosen, notes.all, policies.values)
    for fix in fixes:
        volume = fix(volume)
    for note in notes.warned:
        warnings.warn(note, MedimgWarning, stacklevel=5)
    return volume


def _fixes(plan: StackPlan, policies: Policies) -> list[Callable[[Volume], Volume]]:
    stack = plan.stack
    fixes: list[Callable[[Volume], Volume]] = []
    if stack is None:
        return fixes
    if policies.on_missing == "fix" and (stack.missing or stack.irregular):
        fixes.append(partial(fill_gaps, stack))
    if policies.on_tilt == "fix" and stack.tilt:
        fixes.append(deshear_volume)
    return fixes


def _decoded(plan: StackPlan, chosen: Sequence[int], notes: list[str], kind: ValueKind) -> Volume:
    used = [channel[i] for channel in plan.channels for i in chosen]
    _check_size(used)
    first_acquired = first_acquired_at(plan.instances) if kind == "suv" else None
    values = read_frames(used, kind, first_acquired=first_acquired)
    _check_alike(values, used)
    first = values[0]
    transforms = tuple(dict.fromkeys(t for v in values for t in v.transforms))
    voi = tuple(v.voi for v in values[: len(chosen)])
    if len(chosen) < plan.depth:
        transforms += (f"{len(chosen)} of {plan.depth} slices read",)
    stack = plan.stack
    many = any(len(frame.instance.facts) > 1 for frame in used)
    report = ReadReport(
        format="DICOM",
        files=tuple(dict.fromkeys(frame.instance.path for frame in used)),
        series_uid=plan.first.instance.series_uid,
        sop_instance_uids=tuple(frame.instance.sop_instance_uid for frame in used),
        frame_numbers=tuple(frame.facts.number + 1 for frame in used) if many else (),
        missing=tuple(place for place, _ in stack.missing) if stack else (),
        duplicates=tuple(left.instance.path for left, _ in plan.duplicates),
        tilt=stack.tilt if stack else 0.0,
        transforms=_few(transforms),
        warnings=tuple(notes),
    )
    return Volume(
        array=_stacked([v.array for v in values], len(plan.channels)),
        affine=geometry.subset_affine(plan.affine, chosen),
        modality=plan.first.instance.modality,
        units=first.units,
        photometric=first.photometric,
        inverted=first.inverted,
        space=plan.space,
        channels=() if plan.first.instance.is_color else plan.names,
        voi=_distinct(voi),
        padding=_stacked_padding(values, len(plan.channels)),
        report=report,
    )


def _check_size(used: Sequence[Frame]) -> None:
    instance = used[0].instance
    size = len(used) * instance.rows * instance.columns * (3 if instance.is_color else 1)
    if size > _MOST_VALUES:
        raise DecodeError(
            f"{len(used)} images of {instance.rows}×{instance.columns} are too many to read at once; "
            "choose fewer by slices="
        )


def _stacked(arrays: Sequence[npt.NDArray[Any]], channels: int) -> npt.NDArray[Any]:
    """Stack slices (colors or 1, H, W), channel after channel, into (C, D, H, W)."""
    depth = len(arrays) // channels
    parts = [np.stack(arrays[c * depth : (c + 1) * depth], axis=1) for c in range(channels)]
    return parts[0] if channels == 1 else np.concatenate(parts)


def _check_alike(values: Sequence[SliceValues], used: Sequence[Frame]) -> None:
    first = values[0]
    for value, frame in zip(values, used, strict=True):
        facts = (value.array.shape, value.units, value.photometric, value.inverted)
        expected = (first.array.shape, first.units, first.photometric, first.inverted)
        if facts != expected:
            raise GeometryError(
                f"{frame.instance.path} differs from the first slice: found {facts}, expected {expected}"
            )


def _stacked_padding(values: Sequence[SliceValues], channels: int) -> npt.NDArray[np.bool_] | None:
    if all(v.padding is None for v in values):
        return None
    none = np.zeros(values[0].array.shape, dtype=np.bool_)
    return _stacked([none if v.padding is None else v.padding for v in values], channels)


def _distinct(voi: tuple[tuple[Voi, ...], ...]) -> tuple[tuple[Voi, ...], ...]:
    """Return one entry where all slices declare the same, none where they declare nothing."""
    if any(v != voi[0] for v in voi):
        return voi
    return (voi[0],) if voi[0] else ()


def _few(transforms: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the list readable where every slice has a rescale of its own."""
    return transforms if len(transforms) <= 8 else (*transforms[:7], f"… {len(transforms) - 7} more alike")


def read_frames(
    frames: Sequence[Frame], values: ValueKind = "rescaled", *, first_acquired: float | None = None
) -> list[SliceValues]:
    wanted: dict[int, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        wanted[id(frame.instance)].append(place)
    result: dict[int, SliceValues] = {}
    for places in wanted.values():
        instance = frames[places[0]].instance
        calibrate = partial(calibrated, kind=values, first_acquired=first_acquired)
        found = _of_instance(instance, [frames[place] for place in places], calibrate)
        result.update(zip(places, found, strict=True))
    return [result[place] for place in range(len(frames))]


def first_acquired_at(instances: Sequence[Instance]) -> float | None:
    with quiet_pydicom():
        times = [get_acquisition_time(open_dataset(i.blob, tags=_SUV_TAGS)) for i in instances]
    return min((time for time in times if time is not None), default=None)


def _of_instance(instance: Instance, frames: Sequence[Frame], calibrate: _Calibrate) -> list[SliceValues]:
    try:
        with quiet_pydicom():
            return _decoded_frames(instance, frames, calibrate)
    except MedimgError as error:
        if instance.path in str(error):
            raise
        raise type(error)(f"{instance.path}: {error}") from None
    # pydicom raises errors of many kinds when a damaged value is used, and their texts quote it
    except Exception as error:
        raise DecodeError(f"{instance.path} is damaged ({type(error).__name__} while decoding)") from None


def _decoded_frames(instance: Instance, frames: Sequence[Frame], calibrate: _Calibrate) -> list[SliceValues]:
    dataset = open_dataset(instance.blob)
    if get_identifier(dataset, "SOPInstanceUID") != instance.sop_instance_uid:
        raise DecodeError("the file holds another image than when it was scanned; scan again")
    source = StoredFrames(dataset)
    views = FrameViews(dataset, source.count)
    picture: tuple[int, npt.NDArray[Any], bool] | None = None
    result = []
    for frame in frames:
        number = frame.facts.number
        if number >= source.count:
            raise DecodeError(
                f"frame {number + 1} of {source.count} was requested; the file has changed, scan again"
            )
        if picture is None or picture[0] != number:
            picture = (number, *source.decode(number))
        _, stored, is_rgb = picture
        if frame.facts.corner is not None:
            row, column = frame.facts.corner
            stored = stored[row : row + instance.rows, column : column + instance.columns]
        view = views[number]
        found = slice_values(view, source.format, stored, is_rgb=is_rgb)
        result.append(calibrate(view, found))
    return result
