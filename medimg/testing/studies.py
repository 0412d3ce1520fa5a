"""Small DICOM studies whose content is known: a description, written as files, and what reading must give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from medimg.core.geometry import slice_normal
from medimg.errors import DuplicateSlicesError, MissingSlicesError, TiltedGantryError

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.core.geometry import Affine
    from medimg.core.stacking import Policy
    from medimg.errors import MedimgError

__all__ = ["SENTINEL", "Study", "ToldBy", "TransferSyntax", "Truth", "write_dicom"]

TransferSyntax: TypeAlias = Literal["implicit", "little", "big", "deflated", "rle"]
ToldBy: TypeAlias = Literal["temporal", "acquisition", "trigger", "time", "number"]

#: Stands in every text of a study that identifies a patient.
SENTINEL: Final = "Sentinel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """
    What to write: one scan of one patient, as single-frame DICOM.

    Attributes
    ----------
    slices, rows, columns : int
        Size, of the complete scan.
    times : int
        Time points at the same positions.
    echoes : int
        Echoes at the same positions.
    spacing : tuple of 3 floats
        Distance between neighbors along (D, H, W), in millimeters.
    orientation : tuple of 6 floats
        Image Orientation (Patient): X, then Y.
    origin : tuple of 3 floats
        Position of the first slice, LPS millimeters.
    shear : tuple of 2 floats
        How far each slice lies off the one before it along (Y, X), in millimeters: a tilted gantry.
    modality : {"CT", "MR", "PT"}
        Modality.
    bits_allocated, bits_stored : int
        Bits of a cell, and of a value in it.
    signed : bool
        Whether stored values are.
    dirty : bool
        Whether the bits above the values hold noise.
    slope, intercept : float
        From stored to modality values.
    syntax : {"implicit", "little", "big", "deflated", "rle"}
        Transfer syntax.
    told_by : {"temporal", "acquisition", "trigger", "time", "number"}
        What tells time points apart: Temporal Position Identifier, Acquisition Number, Trigger Time,
        Acquisition Time, or nothing but the Instance Number.
    missing : tuple of int
        Slices that are not written.
    copied : tuple of int
        Slices of which a second file is written, equal byte by byte.
    shuffled : bool
        Whether file names, and Instance Numbers where nothing depends on them, are in random order.
    numbered : bool
        Whether there are Instance Numbers.
    series_uid, instance_uids : bool
        Whether Series and SOP Instance UIDs are there.
    seed : int
        Of the values and the order.
    """

    slices: int = 8
    rows: int = 6
    columns: int = 7
    times: int = 1
    echoes: int = 1
    spacing: tuple[float, float, float] = (2.0, 0.8, 0.6)
    orientation: tuple[float, float, float, float, float, float] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    origin: tuple[float, float, float] = (-10.0, -20.0, 30.0)
    shear: tuple[float, float] = (0.0, 0.0)
    modality: str = "CT"
    bits_allocated: int = 16
    bits_stored: int = 12
    signed: bool = False
    dirty: bool = False
    slope: float = 1.0
    intercept: float = -1024.0
    syntax: TransferSyntax = "little"
    told_by: ToldBy = "temporal"
    missing: tuple[int, ...] = ()
    copied: tuple[int, ...] = ()
    shuffled: bool = False
    numbered: bool = True
    series_uid: bool = True
    instance_uids: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        gaps = np.diff(self.present)
        if not self.present or (gaps.size and np.median(gaps) != 1):
            raise ValueError("so many slices are missing that the distance between them is lost")
        if not 0 < self.bits_stored <= self.bits_allocated:
            raise ValueError(f"{self.bits_stored} bits stored in {self.bits_allocated}")
        if set(self.copied) - set(self.present):
            raise ValueError("a slice that is missing can't be copied")

    @property
    def present(self) -> tuple[int, ...]:
        """The slices that are written, ascending."""
        return tuple(n for n in range(self.slices) if n not in self.missing)

    def positions(self) -> npt.NDArray[np.float64]:
        """Return Image Position (Patient) of each slice, as written; (D, 3), with 4 decimals."""
        x, y = np.asarray(self.orientation).reshape(2, 3)
        step = slice_normal(self.orientation) * self.spacing[0] + y * self.shear[0] + x * self.shear[1]
        return np.asarray(np.round(self.origin + np.arange(self.slices)[:, None] * step, 4))

    def stored(self) -> npt.NDArray[np.int64]:
        """Return the stored values; (echoes, times, D, H, W)."""
        low = -(1 << (self.bits_stored - 1)) if self.signed else 0
        shape = (self.echoes, self.times, self.slices, self.rows, self.columns)
        values = np.random.default_rng(self.seed).integers(low, low + (1 << self.bits_stored), shape)
        # both ends, whatever is drawn
        values[..., 0, 0], values[..., -1, -1] = low, low + (1 << self.bits_stored) - 1
        return values

    def truth(self) -> tuple[Truth, ...]:
        """Return what reading must give, for each echo."""
        present = list(self.present)
        values = self.stored()[:, :, present] * self.slope + self.intercept
        gaps = tuple((n, int(gap) - 1) for n, gap in enumerate(np.diff(present)) if gap > 1)
        across = math.hypot(*self.shear)
        tilt = math.degrees(math.atan2(across, self.spacing[0])) if len(present) > 1 else 0.0
        return tuple(
            Truth(array, self._affine(present), gaps, len(self.copied) * self.times, tilt) for array in values
        )

    def _affine(self, present: list[int]) -> Affine:
        """Index to LPS (PS3.3 C.7.6.2.1.1), written out once more so that it is no copy of what it checks."""
        positions = self.positions()
        first, last = positions[present[0]], positions[present[-1]]
        x, y = np.asarray(self.orientation).reshape(2, 3)
        affine = np.eye(4)
        steps = present[-1] - present[0]
        affine[:3, 0] = (last - first) / steps if steps else slice_normal(self.orientation) * self.spacing[0]
        affine[:3, 1], affine[:3, 2] = y * self.spacing[1], x * self.spacing[2]
        affine[:3, 3] = first
        return affine


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """
    What reading one series of a study must give.

    Attributes
    ----------
    array : numpy.ndarray
        (C, D, H, W) float64: modality values of the slices that were written.
    affine : numpy.ndarray
        (4, 4): index to LPS millimeters, where no slice is missing.
    missing : tuple of (int, int)
        Slices that are followed by a gap, and how many are missing there.
    copies : int
        Files that are there twice.
    tilt : float
        Degrees.
    """

    array: npt.NDArray[np.float64]
    affine: Affine
    missing: tuple[tuple[int, int], ...]
    copies: int
    tilt: float

    def error(
        self, *, on_missing: Policy = "raise", on_duplicate: Policy = "warn", on_tilt: Policy = "warn"
    ) -> type[MedimgError] | None:
        """Return the error that reading must end in under these policies; None for a volume."""
        if self.missing and on_missing == "raise":
            return MissingSlicesError
        if self.tilt and on_tilt == "raise":
            return TiltedGantryError
        if self.copies and on_duplicate == "raise":
            return DuplicateSlicesError
        return None

    def warns(
        self, *, on_missing: Policy = "raise", on_duplicate: Policy = "warn", on_tilt: Policy = "warn"
    ) -> bool:
        """Return whether reading must warn under these policies."""
        facts = ((self.missing, on_missing), (self.copies, on_duplicate), (self.tilt, on_tilt))
        return any(fact and policy == "warn" for fact, policy in facts)


def write_dicom(study: Study, folder: str | Path) -> tuple[Truth, ...]:
    """
    Write a study as DICOM, one file for each image.

    Parameters
    ----------
    study : Study
        What to write.
    folder : str or Path
        Where to; made where it is missing.

    Returns
    -------
    tuple of Truth
        What reading it must give, for each echo.
    """
    from medimg.testing.writing import write_study

    write_study(study, Path(folder))
    return study.truth()
