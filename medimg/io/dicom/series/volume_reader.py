"""Volumes of stack plans: all slices, some of them, or a few at a time."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.stack_repair import deshear_volume, fill_gaps
from medimg.core.volume import Volume
from medimg.errors import DecodeError, GeometryError, MedimgWarning, SeriesError
from medimg.io.dicom.header.transfer_syntax import NATIVE_SYNTAXES
from medimg.io.dicom.pixels.frame_reader import FrameReader, find_first_acquisition
from medimg.io.dicom.series._policies import Notes, check_stack, resolve_duplicates
from medimg.io.dicom.series._stack_plan import StackPlan
from medimg.io.dicom.tags.frame_tags import read_tags
from medimg.io.dicom.tags.header_dataset import read_header

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pydicom.dataset import Dataset

    from medimg.core.window import Voi
    from medimg.io.dicom.header.instance import Frame
    from medimg.io.dicom.pixels.volume_buffer import VolumeBuffer
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import Policies, ValueKind
    from medimg.io.tag_names import TagName, TagValues

__all__ = ["StackReader"]

_MAX_VALUES: Final = 2**33


@dataclass(frozen=True, slots=True)
class StackReader:
    """Reader of the pixels of one stack."""

    plan: StackPlan

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        """Return the volume of some slices, or of all; see :meth:`medimg.io.series.Series.read`."""
        with _name_errors(self.plan):
            task = _plan_task(self.plan, slices, policies)
            everything = range(len(task.chosen))
            _check_size(task.get_frames(everything))
            volume = _read_volume(task, task.make_reader(), everything)
            for fix in _list_fixes(task.plan, policies):
                volume = fix(volume)
        for note in volume.report.warnings:
            if note not in task.notes.silent:
                warnings.warn(note, MedimgWarning, stacklevel=4)
        return volume

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield up to `size` slices at a time; see :meth:`medimg.io.series.Series.pieces`."""
        with _name_errors(self.plan):
            task = _plan_task(self.plan, slices, policies)
            if _list_fixes(task.plan, policies):
                raise GeometryError(
                    'a policy "fix" that resamples the stack is not supported in pieces; read all at once'
                )
        for note in task.notes.warned:
            warnings.warn(note, MedimgWarning, stacklevel=3)
        count = len(task.chosen)
        parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        _check_size(task.get_frames(parts[0]))
        reader = task.make_reader()
        # starting a second thread takes longer than reading an uncompressed piece
        workers = 1 if self.plan.first.instance.transfer_syntax in NATIVE_SYNTAXES else None
        said = set(task.notes.all)
        with _name_errors(self.plan):
            for part in parts:
                volume = _read_volume(task, reader, part, workers=workers)
                for note in set(volume.report.warnings) - said:
                    warnings.warn(note, MedimgWarning, stacklevel=3)
                said |= {*volume.report.warnings}
                yield volume

    def read_header(self) -> Dataset:
        """Read the header of the first file; see :attr:`medimg.io.series.Series.header`."""
        return read_header(self.plan.first.instance)

    def read_tags(self, names: Sequence[TagName]) -> TagValues:
        """Read attributes of the first frame; see :meth:`medimg.io.series.Series.tags`."""
        return read_tags(self.plan.first, names)


class _Task(NamedTuple):
    """A plan after policies: the slices chosen, and their frames for each channel."""

    plan: StackPlan
    chosen: list[int]
    channels: list[list[Frame]]
    notes: Notes
    kind: ValueKind

    def get_frames(self, part: range) -> list[Frame]:
        """Return the frames of some of the chosen slices, channel after channel."""
        return [frame for channel in self.channels for frame in channel[part.start : part.stop]]

    def make_reader(self) -> FrameReader:
        """Return a reader of these frames."""
        first_acquired = find_first_acquisition(self.plan.instances) if self.kind == "suv" else None
        frames = self.get_frames(range(len(self.chosen)))
        return FrameReader(frames, self.kind, first_acquired=first_acquired)


@contextmanager
def _name_errors(plan: StackPlan) -> Iterator[None]:
    try:
        yield
    except SeriesError as error:
        found = "; ".join((str(error), *plan.findings))
        raise type(error)(f"series of {plan.first.instance.path}: {found}") from None


def _plan_task(plan: StackPlan, slices: Sequence[int] | None, policies: Policies) -> _Task:
    notes = Notes([*plan.notes], [*plan.remarks])
    check_stack(plan, policies, notes)
    plan = resolve_duplicates(plan, policies, notes)
    everything = range(plan.depth)
    chosen = geometry.ascending_slices(everything if slices is None else slices, plan.depth)
    if slices is not None and _list_fixes(plan, policies):
        raise GeometryError('slices= is not supported with a policy "fix" that resamples the stack')
    channels = [[channel[i] for i in chosen] for channel in plan.channels]
    return _Task(plan, chosen, channels, notes, policies.values)


def _list_fixes(plan: StackPlan, policies: Policies) -> list[Callable[[Volume], Volume]]:
    stack = plan.stack
    fixes: list[Callable[[Volume], Volume]] = []
    if stack is None:
        return fixes
    if policies.on_missing == "fix" and (stack.missing or stack.irregular):
        fixes.append(partial(fill_gaps, stack))
    if policies.on_tilt == "fix" and stack.tilt:
        fixes.append(deshear_volume)
    return fixes


def _read_volume(task: _Task, reader: FrameReader, part: range, *, workers: int | None = None) -> Volume:
    """Return the volume of some of the chosen slices."""
    plan, chosen, used = task.plan, task.chosen[part.start : part.stop], task.get_frames(part)
    buffer = reader.read(used, len(plan.channels), workers=workers)
    first = _check_uniform(buffer, used)
    array, padding = buffer.get_result()
    instance = used[0].instance
    return Volume(
        array=array,
        affine=geometry.subset_affine(plan.affine, chosen),
        modality=instance.modality,
        units=first.units,
        photometric=first.photometric,
        inverted=first.inverted,
        space=plan.space,
        channels=() if instance.is_color else plan.names,
        voi=_merge_voi(tuple(transform.voi for transform in buffer.modality_transforms[: len(chosen)])),
        padding=padding,
        display_range=_merge_display_ranges(buffer.modality_transforms),
        report=_make_report(task, chosen, used, buffer),
    )


def _merge_display_ranges(transforms: Sequence[ModalityTransform]) -> tuple[float, float] | None:
    """Return the display range that all frames share; None if they share none."""
    ranges = {transform.display_range for transform in transforms}
    return ranges.pop() if len(ranges) == 1 else None


def _make_report(
    task: _Task, chosen: Sequence[int], used: Sequence[Frame], buffer: VolumeBuffer
) -> ReadReport:
    plan, stack = task.plan, task.plan.stack
    meanings = {id(transform): transform for transform in buffer.modality_transforms}
    transforms = tuple(
        dict.fromkeys(step for transform in meanings.values() for step in transform.transforms)
    )
    notes = (note for transform in meanings.values() for note in transform.notes)
    if len(chosen) < plan.depth:
        transforms += (f"{len(chosen)} of {plan.depth} slices read",)
    instances = [frame.instance for frame in used]
    many = any(len(instance.facts) > 1 for instance in instances)
    return ReadReport(
        format="DICOM",
        files=tuple(dict.fromkeys(instance.path for instance in instances)),
        series_uid=plan.first.instance.series_uid,
        sop_instance_uids=tuple(instance.sop_instance_uid for instance in instances),
        frame_numbers=tuple(frame.facts.number + 1 for frame in used) if many else (),
        missing=tuple(place for place, _ in stack.missing) if stack else (),
        duplicates=tuple(left.instance.path for left, _ in plan.duplicates),
        tilt=stack.tilt if stack else 0.0,
        transforms=_shorten(transforms),
        warnings=tuple(dict.fromkeys((*task.notes.all, *notes))),
    )


def _count_values(frames: Sequence[Frame]) -> int:
    instance = frames[0].instance
    return len(frames) * instance.rows * instance.columns * (3 if instance.is_color else 1)


def _check_size(frames: Sequence[Frame]) -> None:
    instance = frames[0].instance
    if _count_values(frames) > _MAX_VALUES:
        raise DecodeError(
            f"{len(frames)} images of {instance.rows}×{instance.columns} are too many to read at once; "
            "choose fewer by slices="
        )


def _check_uniform(buffer: VolumeBuffer, used: Sequence[Frame]) -> ModalityTransform:
    """Return the transform of the first slice; raise GeometryError if units or colors of others differ."""
    expected = _describe(buffer.modality_transforms[0], buffer.shapes[0])
    seen = {id(buffer.modality_transforms[0])}
    for transform, shape, frame in zip(buffer.modality_transforms, buffer.shapes, used, strict=True):
        if id(transform) in seen and shape == expected[0]:
            continue
        seen.add(id(transform))
        facts = _describe(transform, shape)
        if facts != expected:
            raise GeometryError(
                f"{frame.instance.path} differs from the first slice: found {facts}, expected {expected}"
            )
    return buffer.modality_transforms[0]


def _describe(transform: ModalityTransform, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str, str, bool]:
    return shape, transform.units, transform.photometric, transform.inverted


def _merge_voi(voi: tuple[tuple[Voi, ...], ...]) -> tuple[tuple[Voi, ...], ...]:
    """Return one entry if all slices declare the same, none if they declare nothing."""
    if any(v != voi[0] for v in voi):
        return voi
    return (voi[0],) if voi[0] else ()


def _shorten(transforms: tuple[str, ...]) -> tuple[str, ...]:
    """Shorten the list if every slice has its own rescale."""
    return transforms if len(transforms) <= 8 else (*transforms[:7], f"… {len(transforms) - 7} more alike")
