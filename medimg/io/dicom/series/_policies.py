"""Policies for gaps, tilt and duplicates, applied to the plan of a volume."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from medimg.errors import DuplicateSlicesError, MissingSlicesError, TiltedGantryError
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
    """
    What deserves a second look.

    Attributes
    ----------
    warned : list of str
        What a warning is given for.
    silent : list of str
        What only the report says, as the policy is "keep".
    """

    warned: list[str]
    silent: list[str]

    def add(self, note: str, policy: Policy) -> None:
        """Note what the policies "warn" and "keep" leave as it is."""
        if policy == "warn":
            self.warned.append(note)
        elif policy == "keep":
            self.silent.append(note)

    @property
    def all(self) -> list[str]:
        """All of them, for the report."""
        return [*self.warned, *self.silent]


def check_stack(plan: StackPlan, policies: Policies, notes: Notes) -> None:
    """
    Apply the policies to gaps and tilt, as far as they don't mend them.

    Raises
    ------
    MissingSlicesError, TiltedGantryError
        If there is a gap or a tilt, and the policy is "raise".
    """
    if plan.stack is None:
        return
    if plan.stack.missing or plan.stack.irregular:
        found = _gaps(plan.stack, plan.depth)
        if policies.on_missing == "raise":
            segments = plan.first.instance.modality == "SEG"
            mend = "add the empty ones that a segmentation leaves out" if segments else "interpolate"
            raise MissingSlicesError(
                f'{found}; get the whole series, or choose on_missing="fix" to {mend}, "warn" or "keep" '
                "to take the slices as they are"
            )
        notes.add(
            f"{found}; the affine counts neighbors as {plan.stack.spacing:.4g} mm apart", policies.on_missing
        )
    if plan.stack.tilt:
        found = f"tilted gantry: slices are sheared by {plan.stack.tilt:.2f}°"
        if policies.on_tilt == "raise":
            raise TiltedGantryError(
                f'{found}; choose on_tilt="fix" to resample onto a perpendicular grid, or "warn" or "keep" '
                "to keep the shear in the affine"
            )
        notes.add(f"{found}; the affine keeps the shear", policies.on_tilt)


def _gaps(stack: Stack, depth: int) -> str:
    found = []
    if stack.missing:
        found.append("missing slices: " + ", ".join(f"{n} after slice {place}" for place, n in stack.missing))
    if stack.irregular:
        found.append(f"uneven distances after slices {list(stack.irregular)}")
    return f"{'; '.join(found)} (of {depth} slices, mostly {stack.gap:.4g} mm apart)"


def resolve_duplicates(plan: StackPlan, policies: Policies, notes: Notes) -> StackPlan:
    """
    Return the plan without duplicates, or with all of them stacked.

    Raises
    ------
    DuplicateSlicesError
        If there are some and the policy is "raise"; if they hold other images, unless it is "keep"; and if
        they can't be stacked.
    """
    if not plan.duplicates:
        return plan
    count = len(plan.duplicates)
    found = (
        f"{count} image(s) lie at the position of another, of {plan.depth * len(plan.channels) + count}, "
        "and nothing tells them apart"
    )
    if policies.on_duplicate == "raise":
        raise DuplicateSlicesError(f'{found}; remove them, or choose on_duplicate="warn"')
    if policies.on_duplicate == "keep":
        notes.add(f"{found}; all are stacked, so that the affine does not give their positions", "keep")
        return _with_duplicates(plan, policies, found)
    different = _different(plan.duplicates)
    if different:
        raise DuplicateSlicesError(
            f"{found}, though {different} of them hold other images: they may be phases, time points or "
            'series in one; read the files of one of them, or choose on_duplicate="keep" to stack them all'
        )
    notes.add(f"{found}; they hold the same image, and one of each is used", policies.on_duplicate)
    return plan


def _with_duplicates(plan: StackPlan, policies: Policies, found: str) -> StackPlan:
    if "fix" in (policies.on_missing, policies.on_tilt) or len(plan.channels) > 1:
        raise DuplicateSlicesError(
            f'{found}: on_duplicate="keep" stacks them all, and then nothing can be resampled by '
            'position, nor can there be time points; choose on_duplicate="fix"'
        )
    frames = (*plan.channels[0], *(left for left, _ in plan.duplicates))
    return replace(plan, channels=(tuple(sorted(frames, key=plan.along)),), duplicates=())


def _different(duplicates: Sequence[tuple[Frame, Frame]]) -> int:
    """Count the duplicates whose pixels are not those of the image that is kept."""
    count = 0
    reader = FrameReader([frame for pair in duplicates for frame in pair])
    for pair in duplicates:
        left, kept = (reader.read([frame]).get_result()[0] for frame in pair)
        count += not np.array_equal(left, kept)
    return count
