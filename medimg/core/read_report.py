"""Record of what was read, skipped and done."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from medimg._public import set_module

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ReadReport", "Skipped"]

_Fact = TypeVar("_Fact")


@dataclass(frozen=True, slots=True)
class Skipped:
    """
    A file that was found and skipped.

    Parameters
    ----------
    path : str
        Path of the file.
    reason : str
        Why it was skipped.
    """

    path: str
    reason: str


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class ReadReport:
    """
    Record of how a volume was read.

    Parameters
    ----------
    format : str
        "DICOM", "NIfTI", "NRRD", "MetaImage", "PNG", "JPEG", "JPEG 2000", "TIFF", "BMP", "WebP", "GIF", the
        name of the library for its image, such as "SimpleITK", or "array" for a volume made in memory.
    files : tuple of str
        Files whose pixels are in the volume, in the order of its slices.
    skipped : tuple of Skipped
        Files that were found and skipped.
    series_uid : str
        Series Instance UID; "" if the format has none.
    sop_instance_uids : tuple of str
        SOP Instance UID of each slice, in array order, channel by channel if there are several that are not
        colors; "" if there is none.
    frame_numbers : tuple of int
        Frame number of each slice in its instance, from 1, in the same order; empty if all instances have one
        frame.
    missing : tuple of int
        For each gap, the index of the slice after which slices are missing.
    duplicates : tuple of str
        Files left out because another image is at their position.
    tilt : float
        Angle between the direction from slice to slice and the normal of the slices, in degrees.
    transforms : tuple of str
        Steps applied to the stored values or their geometry, in order.
    warnings : tuple of str
        Warnings issued while reading.
    """

    format: str = "array"
    files: tuple[str, ...] = field(default=(), repr=False)
    skipped: tuple[Skipped, ...] = field(default=(), repr=False)
    series_uid: str = field(default="", repr=False)
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    frame_numbers: tuple[int, ...] = field(default=(), repr=False)
    missing: tuple[int, ...] = ()
    duplicates: tuple[str, ...] = field(default=(), repr=False)
    tilt: float = 0.0
    transforms: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def then(self, transform: str) -> ReadReport:
        """Return the report with one more step."""
        return replace(self, transforms=(*self.transforms, transform))

    def at_slices(self, slices: Iterable[int], depth: int) -> ReadReport:
        """
        Return the report of some slices of a volume of `depth` slices, ascending or descending.

        Facts of each slice, or of each slice of each channel, are selected, and gaps between selected slices
        are kept; the rest is unchanged.
        """
        chosen = list(slices)
        uids = self.sop_instance_uids
        one_file_each = len(self.files) == (len(uids) or depth) and not self.frame_numbers
        between = [sorted(pair) for pair in pairwise(chosen)]
        return replace(
            self,
            files=_select_slices(self.files, chosen, depth) if one_file_each else self.files,
            sop_instance_uids=_select_slices(uids, chosen, depth),
            frame_numbers=_select_slices(self.frame_numbers, chosen, depth),
            missing=tuple(
                n for n, (low, high) in enumerate(between) if any(low <= gap < high for gap in self.missing)
            ),
        )

    def of_channels(self, chosen: Iterable[int], channels: int) -> ReadReport:
        """Return the report of some of several channels that are not colors."""
        wanted = list(chosen)

        def part(facts: tuple[_Fact, ...]) -> tuple[_Fact, ...]:
            depth, rest = divmod(len(facts), channels)
            return () if rest else tuple(f for c in wanted for f in facts[c * depth : (c + 1) * depth])

        one_file_each = len(self.files) == len(self.sop_instance_uids) and not self.frame_numbers
        return replace(
            self,
            files=part(self.files) if one_file_each else self.files,
            sop_instance_uids=part(self.sop_instance_uids),
            frame_numbers=part(self.frame_numbers),
        )

    def __str__(self) -> str:
        lines = [f"{self.format}: {len(self.files)} file(s) used, {len(self.skipped)} skipped"]
        lines += [f"  then {step}" for step in self.transforms]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)


def _select_slices(facts: tuple[_Fact, ...], chosen: list[int], depth: int) -> tuple[_Fact, ...]:
    if len(facts) % depth:
        return ()
    return tuple(facts[start + i] for start in range(0, len(facts), depth) for i in chosen)
