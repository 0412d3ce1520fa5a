"""What was read, what was left out, and what was done on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ReadReport", "Skipped"]

_Fact = TypeVar("_Fact")


@dataclass(frozen=True, slots=True)
class Skipped:
    """
    A file that was found and not used.

    Parameters
    ----------
    path : str
        The file.
    reason : str
        Why it was not used.
    """

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReadReport:
    """
    How a volume came about.

    Parameters
    ----------
    format : str
        "DICOM", "NIfTI", "NRRD", "MetaImage", "PNG", "JPEG", or "array" for one made in memory.
    files : tuple of str
        The files whose pixels are in the volume, in the order of its slices.
    skipped : tuple of Skipped
        Files that were found and not used.
    series_uid : str
        Series Instance UID; empty where the format has none.
    sop_instance_uids : tuple of str
        SOP Instance UID of each slice, in the order of the array, channel by channel where there are several
        that are not colors; empty strings where there is none.
    frame_numbers : tuple of int
        In the same order, the number of each frame in its instance, from 1; empty where all instances hold
        one frame.
    missing : tuple of int
        For each gap, the index of the slice after which slices are missing.
    duplicates : tuple of str
        Files left out because another image lies at their position.
    tilt : float
        Angle between the direction from slice to slice and the normal of the slices, in degrees.
    transforms : tuple of str
        Every step that was applied to the stored values or their geometry, in order.
    warnings : tuple of str
        What deserves a second look.
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
        """Return the report with one more step noted."""
        return replace(self, transforms=(*self.transforms, transform))

    def at_slices(self, slices: Iterable[int], depth: int) -> ReadReport:
        """
        Return the report with the facts of some slices of a volume of `depth` slices, in the order given.

        What is known for each slice, or for each slice of each channel, follows; the rest stays.
        """
        chosen = list(slices)
        uids = self.sop_instance_uids
        one_file_each = len(self.files) == (len(uids) or depth) and not self.frame_numbers
        return replace(
            self,
            files=_of_slices(self.files, chosen, depth) if one_file_each else self.files,
            sop_instance_uids=_of_slices(uids, chosen, depth),
            frame_numbers=_of_slices(self.frame_numbers, chosen, depth),
        )

    def of_channel(self, channel: int, channels: int) -> ReadReport:
        """Return the report with the facts of one of several channels that are not colors."""

        def part(facts: tuple[_Fact, ...]) -> tuple[_Fact, ...]:
            depth, rest = divmod(len(facts), channels)
            return () if rest else facts[channel * depth : (channel + 1) * depth]

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


def _of_slices(facts: tuple[_Fact, ...], chosen: list[int], depth: int) -> tuple[_Fact, ...]:
    if len(facts) % depth:
        return ()
    return tuple(facts[start + i] for start in range(0, len(facts), depth) for i in chosen)
