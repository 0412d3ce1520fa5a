"""Stack plan: order of the frames and affine of a volume, before pixels are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import numpy as np

from medimg.core import geometry
from medimg.core.stacking import Stack, analyze_positions
from medimg.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.core.volume import Space
    from medimg.io.dicom.header.instance import Frame, FrameFacts, Instance
    from medimg.io.dicom.series.grouping import Group

__all__ = ["Miss", "StackPlan", "find_extent", "plan_regular_stack", "plan_stack"]

_MAX_MISFIT_MM: Final = 0.02
_SAME_SPACING: Final = 0.1
#: Modalities whose images have an extent along their normal; others are projections.
_SLICE_MODALITIES: Final = frozenset({"CT", "MR", "PT"})
_IN_VOLUME: Final = "positions are those of the ultrasound volume, not of the patient"

Frames: TypeAlias = "Sequence[Frame]"


class Miss(NamedTuple):
    """Maximum distances of slices from their positions in millimeters: in plane, and along the normal."""

    across: float
    along: float


_NO_MISS: Final = Miss(0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StackPlan:
    """
    Order of frames and affine (4, 4), index (d, h, w) to LPS millimeters, of a volume.

    `channels` has the frames of each channel in slice order; `times` are seconds from the first channel, or
    of each frame of a cine; `stack` is None without positions; `duplicates` are pairs of a frame left out and
    the one kept at its position; `miss` is how far slices are from their positions by the affine. `notes` are
    warnings; `remarks` appear in the report only.
    """

    channels: tuple[Frames, ...]
    affine: geometry.Affine
    space: Space
    names: tuple[str, ...] = ()
    times: tuple[float, ...] | None = None
    stack: Stack | None = None
    miss: Miss = _NO_MISS
    duplicates: tuple[tuple[Frame, Frame], ...] = ()
    notes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[str, ...]:
        """Attributes that are present but not used, which may be why images can't be stacked."""
        return tuple(dict.fromkeys(note for instance in self.instances for note in instance.notes))

    @property
    def first(self) -> Frame:
        """First slice of the first channel."""
        return self.channels[0][0]

    @property
    def depth(self) -> int:
        """Number of slices."""
        return len(self.channels[0])

    @property
    def files(self) -> tuple[str, ...]:
        """Files, each once: those used in the order of their first slice, then those of duplicates."""
        used = (instance.path for instance in self.instances)
        return tuple(dict.fromkeys([*used, *(left.instance.path for left, _ in self.duplicates)]))

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Instances used, each once, in the order of their first slice."""
        frames = (frame for channel in self.channels for frame in channel)
        return tuple({frame.instance.path: frame.instance for frame in frames}.values())

    def distance_along(self, frame: Frame) -> float:
        """Return the position of a frame along the slice direction, in millimeters."""
        step = self.affine[:3, 0]
        return float(_get_position(frame) @ step / np.linalg.norm(step))


def plan_stack(group: Group) -> StackPlan:
    """Sort frames by position, or else by Instance Number; raise GeometryError if the order is unknown."""
    channels = [sorted(channel, key=lambda frame: frame.sort_key) for channel in group.content.channels]
    if all(frame.has_geometry for frame in channels[0]):
        return _plan_by_position(group, channels)
    return _plan_by_number(group, channels[0])


def _plan_by_number(group: Group, frames: list[Frame]) -> StackPlan:
    facts = frames[0].facts
    rows, columns = facts.pixel_spacing or (1.0, 1.0)
    notes = list(group.notes)
    instances = {id(frame.instance): frame.instance for frame in frames}
    instance = frames[0].instance
    gap, origin = _find_nominal_gap(facts)
    if len(instances) > 1:
        lacking = len({id(frame.instance) for frame in frames if not frame.has_geometry})
        notes.append(
            f"positions are missing in {lacking} of {len(instances)} files: "
            f"sorted by Instance Number, with a nominal slice distance{origin}"
        )
        numbers = [instance.instance_number for instance in instances.values()]
        if None in numbers or len(set(numbers)) < len(numbers):
            raise GeometryError(
                f"{len(instances)} files of one series have neither positions nor distinct Instance Numbers: "
                "their order is unknown; read them one by one"
            )
    elif len(frames) > 1:
        notes.append(
            f"{len(frames)} frames without positions are stacked in the order of the file, with a nominal "
            f"slice distance{origin}"
        )
    if facts.spacing_warning:
        notes.append(facts.spacing_warning)
    affine = geometry.image_affine((gap, rows, columns))
    times = instance.times if len(instances) == 1 else None
    return StackPlan(
        channels=(tuple(frames),),
        times=times,
        affine=affine,
        space="image",
        notes=tuple(notes),
        remarks=_list_remarks(facts, single=len(frames) == 1 and instance.modality in _SLICE_MODALITIES),
    )


def _find_nominal_gap(facts: FrameFacts) -> tuple[float, str]:
    """Return the distance of slices without positions, in millimeters, and where it is from."""
    if facts.slice_spacing is not None:
        return facts.slice_spacing, f" of {facts.slice_spacing:.4g} mm (Spacing Between Slices)"
    if facts.slice_thickness is not None:
        gap = facts.slice_thickness
        return gap, f" (none is stated: the slice thickness of {gap:.4g} mm is assumed)"
    return 1.0, " (none is stated: 1 mm is assumed)"


def find_extent(facts: FrameFacts) -> float:
    """Return the extent of a single slice along its normal, in millimeters."""
    return facts.slice_spacing or facts.slice_thickness or 1.0


def _plan_by_position(group: Group, channels: list[list[Frame]]) -> StackPlan:
    first = channels[0]
    facts = first[0].facts
    orientation = facts.orientation
    assert orientation is not None  # has_geometry was checked
    positions = _list_positions(first)
    stack = analyze_positions(
        positions,
        orientation,
        fallback_step=find_extent(facts),
        stated_gap=facts.slice_spacing,
        # segmentations leave out empty frames
        trust_stated=first[0].instance.modality == "SEG",
    )
    ordered = tuple(first[i] for i in stack.order)
    origin = _get_position(ordered[0])
    affine = geometry.affine_from_slices(origin, stack.step, orientation, facts.pixel_spacing or (1.0, 1.0))
    sorted_channels = (ordered, *(_sort_along(channel, stack.step) for channel in channels[1:]))
    misfit = max(_measure_misfit(channel, affine) for channel in sorted_channels)
    notes = [*group.notes, *_list_notes(stack, misfit, facts)]
    if first[0].instance.modality == "SEG" and len(stack.order) > 1:
        notes += _check_stated_spacing(stack, facts)
    doubles = tuple((first[left], first[kept]) for left, kept in stack.duplicates)
    content = group.content
    return StackPlan(
        channels=sorted_channels,
        names=content.names,
        times=content.times,
        affine=affine,
        space="patient" if facts.in_patient else "image",
        stack=stack,
        remarks=_list_remarks(facts, single=len(ordered) == 1),
        miss=_measure_miss([_list_positions(channel) for channel in sorted_channels], stack, orientation),
        duplicates=(*content.copies, *doubles),
        notes=tuple(notes),
    )


def _check_stated_spacing(stack: Stack, facts: FrameFacts) -> Iterator[str]:
    """Yield warnings of a segmentation, which may leave out empty frames, about its slice distance."""
    stated, thickness = facts.slice_spacing, facts.slice_thickness
    if stated is None:
        if thickness is None or abs(stack.gap - thickness) > _SAME_SPACING * thickness:
            yield (
                f"no Spacing Between Slices, and empty frames may be left out: the distance of the frames, "
                f"{stack.gap:.4g} mm, is assumed"
            )
    elif abs(stack.gap - stated) > _SAME_SPACING * stated:
        yield (
            f"distances between frames are no multiples of Spacing Between Slices, {stated:.4g} mm: that of "
            f"their positions, {stack.gap:.4g} mm, is used"
        )


def plan_regular_stack(stack: Stack, frames: Frames, positions: npt.NDArray[np.float64]) -> StackPlan:
    """
    Return the plan of a stack without duplicates whose frames differ in position alone.

    `frames` are in stack order, and only the first is accessed; `positions` (n, 3) are in LPS millimeters.
    """
    first = frames[0]
    facts = first.facts
    assert facts.orientation is not None  # there is a stack
    spacing = facts.pixel_spacing or (1.0, 1.0)
    affine = geometry.affine_from_slices(positions[0], stack.step, facts.orientation, spacing)
    diagonal = None if facts.pixel_spacing is None else _compute_diagonals([first])
    misfit = _measure_corner_distance(positions, diagonal, first.instance, affine)
    notes = tuple(_list_notes(stack, misfit, facts))
    return StackPlan(
        channels=(frames,),
        affine=affine,
        space="patient" if facts.in_patient else "image",
        stack=stack,
        miss=_measure_miss([positions], stack, facts.orientation),
        notes=notes,
        remarks=_list_remarks(facts, single=len(frames) == 1),
    )


def _measure_miss(
    channels: Sequence[npt.NDArray[np.float64]], stack: Stack, orientation: Sequence[float]
) -> Miss:
    """Compare the positions (n, 3) of each channel with the line from the first slice along the step."""
    normal = geometry.slice_normal(orientation)
    gap = float(stack.step @ normal)
    across = along = 0.0
    for positions in channels:
        offsets = positions - channels[0][0]
        heights = offsets @ normal
        beside = offsets - np.outer(heights / gap, stack.step)
        across = max(across, float(np.linalg.norm(beside, axis=1).max()))
        if not (stack.missing or stack.irregular):
            along = max(along, float(np.abs(heights - gap * np.arange(len(heights))).max()))
    return Miss(across, along)


def _get_position(frame: Frame) -> npt.NDArray[np.float64]:
    return np.asarray(frame.facts.position, dtype=np.float64)


def _list_positions(frames: Frames) -> npt.NDArray[np.float64]:
    return np.asarray([frame.facts.position for frame in frames], dtype=np.float64)


def _sort_along(frames: list[Frame], step: npt.NDArray[np.float64]) -> Frames:
    return tuple(sorted(frames, key=lambda frame: float(_get_position(frame) @ step)))


def _list_notes(stack: Stack, misfit: float, facts: FrameFacts) -> Iterator[str]:
    if stack.is_jittered:
        yield f"distances between slices vary by up to {stack.deviation:.1%} of {stack.gap:.4g} mm"
    regular = not (stack.missing or stack.irregular)
    if regular and misfit > max(_MAX_MISFIT_MM, 0.01 * stack.gap):
        yield f"the affine differs from the stated position of a slice by up to {misfit:.3g} mm"
    if facts.spacing_warning:
        yield facts.spacing_warning


def _list_remarks(facts: FrameFacts, *, single: bool) -> tuple[str, ...]:
    """Return what the report says of the geometry, without a warning."""
    extent = ""
    if single and facts.slice_spacing is None:
        thickness = facts.slice_thickness
        extent = f"the only slice has an assumed extent of {find_extent(facts):.4g} mm along its normal: "
        extent += "none is stated" if thickness is None else "the slice thickness"
    return tuple(filter(None, ("" if facts.in_patient else _IN_VOLUME, facts.spacing_remark, extent)))


def _measure_misfit(frames: Frames, affine: geometry.Affine) -> float:
    """Return the maximum distance in millimeters of frames that may differ in orientation and spacing."""
    positions = _list_positions(frames)
    diagonals = None
    if all(frame.facts.pixel_spacing is not None for frame in frames):
        diagonals = _compute_diagonals(frames)
    return _measure_corner_distance(positions, diagonals, frames[0].instance, affine)


def _measure_corner_distance(
    positions: npt.NDArray[np.float64],
    diagonals: npt.NDArray[np.float64] | None,
    instance: Instance,
    affine: geometry.Affine,
) -> float:
    """
    Return the maximum distance, in millimeters, of a slice corner from its position by the affine.

    The first and the last pixel of each slice are compared with its own position, orientation and spacing.
    """
    starts = affine[:3, 3] + np.outer(np.arange(len(positions)), affine[:3, 0])
    off = starts - positions
    misfit = np.abs(off).max()
    if diagonals is None:
        return float(misfit)
    diagonal = affine[:3, 1:3] @ (instance.rows - 1, instance.columns - 1)
    return float(max(misfit, np.abs(off + (diagonal - diagonals)).max()))


def _compute_diagonals(frames: Frames) -> npt.NDArray[np.float64]:
    """Return the vectors from the first pixel of each frame to its last, (frames, 3)."""
    orientations = np.asarray([frame.facts.orientation for frame in frames], dtype=np.float64)
    spacings = np.asarray([frame.facts.pixel_spacing for frame in frames], dtype=np.float64)
    sizes = np.asarray([(frame.instance.rows - 1, frame.instance.columns - 1) for frame in frames])
    lengths = (sizes * spacings)[..., None]
    return lengths[:, 0] * orientations[:, 3:] + lengths[:, 1] * orientations[:, :3]
