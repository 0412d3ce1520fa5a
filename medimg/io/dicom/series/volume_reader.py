"""Plans of stacks into volumes: whole ones, some of their slices, or a few slices at a time."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.regrid import deshear_volume, fill_gaps
from medimg.core.volume import Volume
from medimg.errors import DecodeError, GeometryError, MedimgWarning, SeriesError
from medimg.io.dicom.header.transfer_syntax import NATIVE_SYNTAXES
from medimg.io.dicom.pixels.frame_reader import FrameReader, find_first_acquisition
from medimg.io.dicom.series._policies import Notes, check_stack, resolve_duplicates
from medimg.io.dicom.series._stack_plan import StackPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from medimg.core.window import Voi
    from medimg.io.dicom.header.instance import Frame
    from medimg.io.dicom.pixels.volume_buffer import VolumeBuffer
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import Policies, ValueKind

__all__ = ["StackReader"]

_MOST_VALUES: Final = 2**33


@dataclass(frozen=True, slots=True)
class StackReader:
    """
    Reads the pixels of one stack.

    Attributes
    ----------
    plan : StackPlan
        Its frames, in order.
    """

    plan: StackPlan

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        """Return the volume of some slices, or of all; see :meth:`medimg.io.series.Series.read`."""
        with _named(self.plan):
            task = _task(self.plan, slices, policies)
            everything = range(len(task.chosen))
            _check_size(task.frames(everything))
            volume = _read(task, task.reader(), everything)
            for fix in _fixes(task.plan, policies):
                volume = fix(volume)
        for note in task.notes.warned:
            warnings.warn(note, MedimgWarning, stacklevel=4)
        return volume

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield up to `size` slices at a time; see :meth:`medimg.io.series.Series.pieces`."""
        with _named(self.plan):
            task = _task(self.plan, slices, policies)
            if _fixes(task.plan, policies):
                raise GeometryError('a stack that a policy "fix" resamples is read as a whole, not in pieces')
        for note in task.notes.warned:
            warnings.warn(note, MedimgWarning, stacklevel=3)
        count = len(task.chosen)
        parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        _check_size(task.frames(parts[0]))
        reader = task.reader()
        # a piece without compression is read sooner than a second thread has started
        workers = 1 if self.plan.first.instance.transfer_syntax in NATIVE_SYNTAXES else None
        with _named(self.plan):
            for part in parts:
                yield _read(task, reader, part, workers=workers)


class _Task(NamedTuple):
    """What to read, once policies were applied: the slices chosen, and for each channel their frames."""

    plan: StackPlan
    chosen: list[int]
    channels: list[list[Frame]]
    notes: Notes
    kind: ValueKind

    def frames(self, part: range) -> list[Frame]:
        """Return the frames of some of the chosen slices, channel after channel."""
        return [frame for channel in self.channels for frame in channel[part.start : part.stop]]

    def reader(self) -> FrameReader:
        """Return what reads these frames."""
        first_acquired = find_first_acquisition(self.plan.instances) if self.kind == "suv" else None
        frames = self.frames(range(len(self.chosen)))
        return FrameReader(frames, self.kind, first_acquired=first_acquired)


@contextmanager
def _named(plan: StackPlan) -> Iterator[None]:
    try:
        yield
    except SeriesError as error:
        raise type(error)(f"series of {plan.first.instance.path}: {error}") from None


def _task(plan: StackPlan, slices: Sequence[int] | None, policies: Policies) -> _Task:
    notes = Notes([*plan.notes], [])
    check_stack(plan, policies, notes)
    plan = resolve_duplicates(plan, policies, notes)
    everything = range(plan.depth)
    chosen = geometry.ascending_slices(everything if slices is None else slices, plan.depth)
    if slices is not None and _fixes(plan, policies):
        raise GeometryError('slices can\'t be chosen together with a policy "fix" that resamples the stack')
    channels = [[channel[i] for i in chosen] for channel in plan.channels]
    return _Task(plan, chosen, channels, notes, policies.values)


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


def _read(task: _Task, reader: FrameReader, part: range, *, workers: int | None = None) -> Volume:
    """Return the volume of some of the chosen slices."""
    plan, chosen, used = task.plan, task.chosen[part.start : part.stop], task.frames(part)
    filling = reader.read(used, len(plan.channels), workers=workers)
    first = _alike(filling, used)
    array, padding = filling.get_result()
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
        voi=_distinct(tuple(meaning.voi for meaning in filling.modality_transforms[: len(chosen)])),
        padding=padding,
        report=_report(task, chosen, used, filling),
    )


def _report(task: _Task, chosen: Sequence[int], used: Sequence[Frame], filling: VolumeBuffer) -> ReadReport:
    plan, stack = task.plan, task.plan.stack
    meanings = {id(meaning): meaning for meaning in filling.modality_transforms}
    transforms = tuple(dict.fromkeys(step for meaning in meanings.values() for step in meaning.transforms))
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
        transforms=_few(transforms),
        warnings=tuple(task.notes.all),
    )


def _values(frames: Sequence[Frame]) -> int:
    instance = frames[0].instance
    return len(frames) * instance.rows * instance.columns * (3 if instance.is_color else 1)


def _check_size(frames: Sequence[Frame]) -> None:
    instance = frames[0].instance
    if _values(frames) > _MOST_VALUES:
        raise DecodeError(
            f"{len(frames)} images of {instance.rows}×{instance.columns} are too many to read at once; "
            "choose some by slices="
        )


def _alike(filling: VolumeBuffer, used: Sequence[Frame]) -> ModalityTransform:
    """Return what the first slice means, in units and colors what all of them do."""
    expected = _facts(filling.modality_transforms[0], filling.shapes[0])
    seen = {id(filling.modality_transforms[0])}
    for meaning, shape, frame in zip(filling.modality_transforms, filling.shapes, used, strict=True):
        if id(meaning) in seen and shape == expected[0]:
            continue
        seen.add(id(meaning))
        facts = _facts(meaning, shape)
        if facts != expected:
            raise GeometryError(
                f"{frame.instance.path} differs from the first slice: {facts} against {expected}"
            )
    return filling.modality_transforms[0]


def _facts(meaning: ModalityTransform, shape: tuple[int, ...]) -> tuple[tuple[int, ...], str, str, bool]:
    return shape, meaning.units, meaning.photometric, meaning.inverted


def _distinct(voi: tuple[tuple[Voi, ...], ...]) -> tuple[tuple[Voi, ...], ...]:
    """Return one entry where all slices declare the same, none where they declare nothing."""
    if any(v != voi[0] for v in voi):
        return voi
    return (voi[0],) if voi[0] else ()


def _few(transforms: tuple[str, ...]) -> tuple[str, ...]:
    """Keep the list readable where every slice has a rescale of its own."""
    return transforms if len(transforms) <= 8 else (*transforms[:7], f"… {len(transforms) - 7} more alike")
