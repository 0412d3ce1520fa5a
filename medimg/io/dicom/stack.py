"""The plan of a stack of single-frame instances: their order and their affine, before any pixel is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.core import geometry
from medimg.core.stacking import Stack, analyze_positions
from medimg.errors import GeometryError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.core.volume import Space
    from medimg.io.dicom.header import Instance

__all__ = ["StackPlan", "plan_stack"]

_MISPLACED_MM: Final = 0.02


@dataclass(frozen=True, slots=True)
class StackPlan:
    """
    How instances become a stack.

    Attributes
    ----------
    instances : tuple of Instance
        In the order of the slices.
    affine : numpy.ndarray
        (4, 4): index (d, h, w) to LPS millimeters.
    space : {"patient", "image"}
        Whether positions in the patient are known.
    stack : Stack or None
        The regularity of the positions, where they are known.
    duplicates : tuple of (Instance, Instance)
        Each instance left out, and the one kept at its position.
    notes : tuple of str
        What deserves a second look.
    """

    instances: tuple[Instance, ...]
    affine: geometry.Affine
    space: Space
    stack: Stack | None
    duplicates: tuple[tuple[Instance, Instance], ...]
    notes: tuple[str, ...]

    def along(self, instance: Instance) -> float:
        """Return the place of an instance along the direction from slice to slice, in millimeters."""
        step = self.affine[:3, 0]
        return float(np.asarray(instance.position) @ step / np.linalg.norm(step))


def plan_stack(instances: Sequence[Instance]) -> StackPlan:
    """
    Sort instances by position, or by Instance Number where there is none, and find their affine.

    Raises
    ------
    GeometryError
        If the orientation is unsound.
    """
    by_number = sorted(instances, key=lambda i: (i.instance_number is None, i.instance_number or 0, i.path))
    if all(i.has_place for i in by_number):
        return _by_position(by_number)
    return _by_number(by_number)


def _by_number(instances: list[Instance]) -> StackPlan:
    first = instances[0]
    rows, columns = first.pixel_spacing or (1.0, 1.0)
    notes = []
    if len(instances) > 1:
        notes.append(
            f"positions are missing in {sum(not i.has_place for i in instances)} of {len(instances)} files: "
            "sorted by Instance Number, with a nominal distance between slices"
        )
        numbers = [i.instance_number for i in instances]
        if None in numbers or len(set(numbers)) < len(numbers):
            raise GeometryError(
                f"{len(instances)} files of one series have neither positions nor distinct Instance Numbers: "
                "their order is unknown; read them one by one"
            )
    if first.pixel_spacing is None:
        notes.append("no pixel spacing in the file: 1 mm assumed")
    affine = geometry.image_affine((first.spacing_between_slices or 1.0, rows, columns))
    return StackPlan(tuple(instances), affine, "image", None, (), tuple(notes))


def _by_position(instances: list[Instance]) -> StackPlan:
    positions = [i.position for i in instances]
    orientation = instances[0].orientation
    assert orientation is not None  # has_place was checked
    between = instances[0].spacing_between_slices or 1.0
    stack = analyze_positions(np.asarray(positions), orientation, fallback_step=between)
    ordered = tuple(instances[i] for i in stack.order)
    spacing = ordered[0].pixel_spacing
    origin = np.asarray(ordered[0].position)
    affine = geometry.affine_from_slices(origin, stack.step, orientation, spacing or (1.0, 1.0))
    notes = list(_notes(stack, ordered, affine))
    if spacing is None:
        notes.append("no pixel spacing in the file: 1 mm assumed")
    duplicates = tuple((instances[left], instances[kept]) for left, kept in stack.duplicates)
    return StackPlan(ordered, affine, "patient", stack, duplicates, tuple(notes))


def _notes(stack: Stack, ordered: tuple[Instance, ...], affine: geometry.Affine) -> list[str]:
    notes = []
    if stack.is_jittered:
        notes.append(f"distances between slices vary by up to {stack.deviation:.1%} of {stack.gap:.4g} mm")
    if not stack.missing and not stack.irregular:
        index = [(d, 0, 0) for d in range(len(ordered))]
        mapped = geometry.index_to_lps(affine, index)
        positions = np.asarray([i.position for i in ordered])
        off = float(np.linalg.norm(mapped - positions, axis=1).max())
        if off > max(_MISPLACED_MM, 0.01 * stack.gap):
            notes.append(f"the affine misses the stated position of a slice by up to {off:.3g} mm")
    return notes
