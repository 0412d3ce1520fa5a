"""What was read, what was left out, and what was done on the way."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

__all__ = ["ReadReport", "Skipped"]


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
        "DICOM", "NIfTI", "PNG", "JPEG", or "array" for one made in memory.
    files : tuple of str
        The files whose pixels are in the volume, in the order of its slices.
    skipped : tuple of Skipped
        Files that were found and not used.
    series_uid : str
        Series Instance UID; empty where the format has none.
    sop_instance_uids : tuple of str
        SOP Instance UID of each slice, in the order of the array; empty strings where there is none.
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
    missing: tuple[int, ...] = ()
    duplicates: tuple[str, ...] = field(default=(), repr=False)
    tilt: float = 0.0
    transforms: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def then(self, transform: str) -> ReadReport:
        """Return the report with one more step noted."""
        return replace(self, transforms=(*self.transforms, transform))

    def __str__(self) -> str:
        lines = [f"{self.format}: {len(self.files)} file(s) used, {len(self.skipped)} skipped"]
        lines += [f"  then {step}" for step in self.transforms]
        lines += [f"  warning: {text}" for text in self.warnings]
        return "\n".join(lines)
