"""Policies for gaps, tilt and duplicates, applied to a stack plan."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medimg.errors import DuplicateSlicesError, MissingSlicesError, TiltedGantryError
from medimg.io.dicom.header.distinguishing_attributes import SERIES_ATTRIBUTES, TEMPORAL_ATTRIBUTES
from medimg.io.dicom.pixels.frame_reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.core.stacking import Policy, Stack
    from medimg.io.dicom.header.instance import Frame
    from medimg.io.dicom.series._stack_plan import StackPlan
    from medimg.io.series import Policies

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
    """Add notes on gaps and tilt; raise MissingSlicesError or TiltedGantryError if the policy says so."""
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
    if plan.stack.tilt:
        found = f"tilted gantry: slices are sheared by {plan.stack.tilt:.2f}°"
        if policies.on_tilt == "raise":
            raise TiltedGantryError(
                f'{found}; choose on_tilt="fix" to resample onto a perpendicular grid, or "warn" or "keep" '
                "to keep the shear in the affine"
            )
        notes.add(f"{found}; the affine keeps the shear", policies.on_tilt)


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
