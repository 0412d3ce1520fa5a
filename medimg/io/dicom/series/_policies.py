"""Policies for gaps, tilt and duplicates, applied to a stack plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.errors import DuplicateSlicesError, GeometryError, MissingSlicesError, TiltedGantryError
from medimg.io.dicom.header.distinguishing_attributes import SERIES_ATTRIBUTES, TEMPORAL_ATTRIBUTES
from medimg.io.dicom.pixels.frame_reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.core.stacking import Policy, Stack
    from medimg.io.dicom.header.instance import Frame
    from medimg.io.dicom.series._stack_plan import StackPlan
    from medimg.io.series import Policies

#: Most that a slice may be from its position, in distances between slices.
_MOST_MISS: Final = 0.5
#: Degrees.
_MOST_TILT: Final = 30.0

__all__ = ["Notes", "check_stack", "resolve_duplicates"]


@dataclass(frozen=True, slots=True)
class Notes:
    """Notes of a reading: those with a warning, and those only in the report, by the policy "keep"."""

    warned: list[str]
    silent: list[str]

    def add(self, note: str, policy: Policy) -> None:
        """Add a note, if the policy is "warn" or "keep"."""
        if policy == "warn":
            self.warned.append(note)
        elif policy == "keep":
            self.silent.append(note)

    @property
    def all(self) -> list[str]:
        """All notes, for the report."""
        return [*self.warned, *self.silent]


def check_stack(plan: StackPlan, policies: Policies, notes: Notes) -> None:
    """Add notes on gaps and tilt; raise SeriesError if the policy says so, or the geometry is implausible."""
    if plan.stack is None:
        return
    if plan.stack.missing or plan.stack.irregular:
        found = _describe_gaps(plan.stack, plan.depth)
        if policies.on_missing == "raise":
            segments = plan.first.instance.modality == "SEG"
            fix = "add the empty slices that segmentations omit" if segments else "interpolate"
            raise MissingSlicesError(
                f'{found}; get the complete series, or choose on_missing="fix" to {fix}, "warn" or "keep" '
                "to use the slices as they are"
            )
        notes.add(
            f"{found}; the affine assumes a slice distance of {plan.stack.spacing:.4g} mm",
            policies.on_missing,
        )
    _check_plausible(plan, plan.stack, policies)
    if plan.stack.tilt:
        found = f"tilted gantry: slices are sheared by {plan.stack.tilt:.2f}°"
        if policies.on_tilt == "raise":
            raise TiltedGantryError(
                f'{found}; choose on_tilt="fix" to resample onto a perpendicular grid, or "warn" or "keep" '
                "to keep the shear in the affine"
            )
        notes.add(f"{found}; the affine keeps the shear", policies.on_tilt)


def _check_plausible(plan: StackPlan, stack: Stack, policies: Policies) -> None:
    """Raise GeometryError or TiltedGantryError for positions that are likely damaged, except with "keep"."""
    most = _MOST_MISS * stack.gap
    if plan.miss.across > most and policies.on_tilt != "keep":
        raise GeometryError(
            f"a slice is {plan.miss.across:.3g} mm beside the line through the first and the last one, more "
            f"than half of the slice distance of {stack.gap:.4g} mm; a position may be damaged: correct or "
            'remove that file, or choose on_tilt="keep" to use the affine of that line'
        )
    if plan.miss.along > most and policies.on_missing != "keep":
        raise GeometryError(
            f"a slice is {plan.miss.along:.3g} mm from its position by the mean distance of "
            f"{stack.spacing:.4g} mm, more than half of it: the distances vary too much for one affine; "
            'choose on_missing="keep" to use the mean distance'
        )
    if stack.tilt > _MOST_TILT and policies.on_tilt != "keep":
        raise TiltedGantryError(
            f"slices are sheared by {stack.tilt:.2f}°, and no gantry tilts by more than {_MOST_TILT:g}°; a "
            "position may be damaged: correct or remove that file, or choose "
            'on_tilt="keep" to keep the shear in the affine'
        )


def _describe_gaps(stack: Stack, depth: int) -> str:
    found = []
    if stack.missing:
        found.append("missing slices: " + ", ".join(f"{n} after slice {place}" for place, n in stack.missing))
    if stack.irregular:
        found.append(f"uneven distances after slices {list(stack.irregular)}")
    return f"{'; '.join(found)} (of {depth} slices, mostly {stack.gap:.4g} mm apart)"


def resolve_duplicates(plan: StackPlan, policies: Policies, notes: Notes) -> StackPlan:
    """
    Return the plan without duplicates, or with all of them stacked by the policy "keep".

    Raises DuplicateSlicesError by the policy "raise", for different images at one position, and if they can't
    be stacked.
    """
    if not plan.duplicates:
        return plan
    count = len(plan.duplicates)
    found = (
        f"{count} of {plan.depth * len(plan.channels) + count} image(s) have the position of another, and "
        + _describe_difference(plan.duplicates)
    )
    if policies.on_duplicate == "raise":
        raise DuplicateSlicesError(f'{found}; remove them, or choose on_duplicate="warn"')
    if policies.on_duplicate == "keep":
        notes.add(f"{found}; all are stacked, and the affine does not give their positions", "keep")
        return _stack_duplicates(plan, policies, found)
    different = _count_different(plan.duplicates)
    if different:
        raise DuplicateSlicesError(
            f"{found}, though {different} of them differ in pixels: they may be phases, time points or "
            'series in one; read the files of one of them, or choose on_duplicate="keep" to stack them all'
        )
    notes.add(f"{found}; their pixels are identical, and one of each is used", policies.on_duplicate)
    return plan


def _describe_difference(duplicates: Sequence[tuple[Frame, Frame]]) -> str:
    """Return which attributes differ between images at one position, though they form no repetitions."""
    differing = {
        attribute.name: None
        for pair in duplicates
        for one, other in (pair, pair[::-1])
        for attribute in (*one.facts.series_attributes, *one.facts.temporal_attributes)
        if attribute not in (*other.facts.series_attributes, *other.facts.temporal_attributes)
    }
    if not differing:
        return "no attribute distinguishes them"
    names = [name for name in (*SERIES_ATTRIBUTES, *TEMPORAL_ATTRIBUTES) if name in differing]
    return f"what distinguishes them ({', '.join(names)}) forms no complete repetitions"


def _stack_duplicates(plan: StackPlan, policies: Policies, found: str) -> StackPlan:
    if "fix" in (policies.on_missing, policies.on_tilt) or len(plan.channels) > 1:
        raise DuplicateSlicesError(
            f'{found}: on_duplicate="keep" stacks them all, which excludes resampling by position and '
            'time points; choose on_duplicate="fix"'
        )
    frames = (*plan.channels[0], *(left for left, _ in plan.duplicates))
    return replace(plan, channels=(tuple(sorted(frames, key=plan.distance_along)),), duplicates=())


def _count_different(duplicates: Sequence[tuple[Frame, Frame]]) -> int:
    """Count duplicates whose pixels differ from those of the image kept."""
    count = 0
    reader = FrameReader([frame for pair in duplicates for frame in pair])
    for pair in duplicates:
        left, kept = (reader.read([frame]).get_result()[0] for frame in pair)
        count += not np.array_equal(left, kept)
    return count
