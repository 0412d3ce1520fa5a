"""What medimg is meant to reach, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from benchmarks.measured import Table

__all__ = ["GOALS", "Goal"]

#: Key of a row, and a column.
Cell: TypeAlias = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Goal:
    """
    A bound on a cell of the table, or on the ratio of two.

    Attributes
    ----------
    text : str
        For people.
    over : tuple of 2 strings
        Row and column.
    under : tuple of 2 strings or None
        What it is divided by; nothing by default.
    sense : {"≤", "≥"}
        On which side of the bound it is to be.
    bound : float
    """

    text: str
    over: Cell
    under: Cell | None
    sense: Literal["≤", "≥"]
    bound: float

    def measured(self, table: Table) -> float | None:
        """Return what was reached; None where a cell is empty."""
        cells = [self.over] if self.under is None else [self.over, self.under]
        found = [table[row].value(column) if row in table else None for row, column in cells]
        if found[0] is None or found[-1] is None:
            return None
        return found[0] if self.under is None else found[0] / found[-1]

    def met(self, table: Table) -> bool | None:
        """Return whether it is reached; None where it was not measured."""
        value = self.measured(table)
        if value is None:
            return None
        return value <= self.bound if self.sense == "≤" else value >= self.bound


def _faster(row: str, than: str, bound: float) -> Goal:
    return Goal(f"{row}: medimg faster than {than}", (row, than), (row, "medimg"), "≥", bound)


def _near(row: str, bound: float) -> Goal:
    return Goal(f"{row}: medimg relative to the limit", (row, "medimg"), (row, "limit"), "≤", bound)


def _at_most(row: str, what: str, bound: float) -> Goal:
    return Goal(f"{row}: {what}", (row, "medimg"), None, "≤", bound)


GOALS: Final = (
    _near("scan", 1.5),
    _faster("scan", "pydicom", 55),
    _faster("scan", "dicomsdl", 4.5),
    _near("scan_cold", 0.5),
    _faster("scan_cold", "pydicom", 25),
    _near("scan_layouts", 2.5),
    _faster("scan_layouts", "pydicom", 40),
    _faster("scan_layouts", "dicomsdl", 3),
    Goal(
        "scan_layouts: five times the files and layouts, relative to scan_fewer",
        ("scan_layouts", "medimg"),
        ("scan_fewer", "medimg"),
        "≤",
        6,
    ),
    _faster("scan_pure", "pydicom", 6),
    Goal(
        "scan_frames: medimg faster than evaluating each frame by itself",
        ("scan_each_frame", "medimg"),
        ("scan_frames", "medimg"),
        "≥",
        10,
    ),
    _near("volume", 1.5),
    _faster("volume", "MONAI ITK", 25),
    _faster("volume", "SimpleITK", 12),
    _faster("volume", "dicomsdl", 1),
    _near("tensors", 3),
    _near("tensors_into", 2),
    _faster("tensors", "MONAI ITK", 180),
    _faster("tensors_plain", "MONAI ITK", 18),
    _faster("tensors", "pydicom + torch", 5.5),
    _faster("tensors", "dicomsdl", 2.8),
    _faster("tensors_busy", "pydicom + torch", 10),
    _at_most("tensors.error", "largest error of medimg", 1e-4),
    _faster("few", "pydicom + torch", 25),
    _faster("few", "MONAI ITK", 300),
    *(_near(codec, 1.3) for codec in ("rle", "htj2k")),
    *(_near(codec, 1.2) for codec in ("jpeg_lossless", "jpeg_ls", "jpeg2000")),
    _faster("jpeg_lossless", "pydicom", 4),
    _faster("jpeg_ls", "pydicom", 2),
    _faster("xrays", "pydicom + PIL", 5),
    _faster("xrays", "pydicom + torch", 4),
    _faster("xrays", "MONAI ITK", 7),
    _faster("xrays_plain", "MONAI ITK", 7),
    _faster("resample_linear", "SimpleITK", 2.5),
    Goal(
        "resample_linear: error of medimg relative to SimpleITK",
        ("resample_linear.error", "medimg"),
        ("resample_linear.error", "SimpleITK"),
        "≤",
        1,
    ),
    _faster("resample", "SimpleITK", 2.5),
    _faster("resample", "MONAI ITK", 15),
    _faster("nifti_gz", "SimpleITK", 1.5),
    _faster("nifti_gz", "nibabel", 1.7),
    _at_most("memory_volume", "additional memory in MB", 30),
    _at_most("memory_tensors", "additional memory in MB", 30),
    Goal("epoch: throughput relative to tensors in RAM", ("epoch", "limit"), ("epoch", "medimg"), "≥", 0.9),
)
