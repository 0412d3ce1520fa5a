"""Small DICOM studies of known content: a description, its files, and the expected volumes."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    RLELossless,
    generate_uid,
)
from pydicom.valuerep import format_number_as_ds

from medimg._validation import check_path
from medimg.core.geometry import slice_normal
from medimg.errors import DatasetError, DuplicateSlicesError, MissingSlicesError, TiltedGantryError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from medimg.core.geometry import Affine
    from medimg.core.stacking import Policy
    from medimg.errors import MedimgError


__all__ = ["SENTINEL", "Study", "ToldBy", "TransferSyntax", "Truth", "write_dicom", "write_study"]

TransferSyntax: TypeAlias = Literal["implicit", "little", "big", "deflated", "rle"]
ToldBy: TypeAlias = Literal["temporal", "acquisition", "trigger", "time", "number"]

#: Part of every text of a study that identifies a patient.
SENTINEL: Final = "Sentinel"
#: Degrees; more is taken for damage.
_MOST_TILT: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """
    One scan of one patient, to write as single-frame DICOM.

    Attributes
    ----------
    slices, rows, columns : int
        Size of the complete scan.
    times : int
        Number of time points at the same positions.
    echoes : int
        Number of echoes at the same positions.
    spacing : tuple of 3 floats
        Distance between neighbors along (D, H, W), in millimeters.
    orientation : tuple of 6 floats
        Image Orientation (Patient): X, then Y.
    origin : tuple of 3 floats
        Position of the first slice, LPS millimeters.
    shear : tuple of 2 floats
        Shift of each slice relative to the previous one along (Y, X), in millimeters, as by gantry tilt.
    modality : {"CT", "MR", "PT"}
        Modality.
    bits_allocated, bits_stored : int
        Bits Allocated and Bits Stored.
    signed : bool
        Whether stored values are signed.
    dirty : bool
        Whether the bits above the values hold noise.
    slope, intercept : float
        Rescale Slope and Intercept.
    syntax : {"implicit", "little", "big", "deflated", "rle"}
        Transfer syntax.
    told_by : {"temporal", "acquisition", "trigger", "time", "number"}
        Attribute that distinguishes time points: Temporal Position Identifier, Acquisition Number, Trigger
        Time, Acquisition Time, or only the Instance Number.
    missing : tuple of int
        Slices that are not written.
    copied : tuple of int
        Slices written twice, in files that are equal byte by byte.
    shuffled : bool
        Whether file names, and Instance Numbers unless needed, are in random order.
    numbered : bool
        Whether there are Instance Numbers.
    series_uid, instance_uids : bool
        Whether there are Series and SOP Instance UIDs.
    seed : int
        Seed of the values and the order.
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
            raise ValueError("too many slices are missing to determine the distance between them")
        if not 0 < self.bits_stored <= self.bits_allocated:
            raise ValueError(f"{self.bits_stored} bits stored in {self.bits_allocated}")
        if set(self.copied) - set(self.present):
            raise ValueError("a missing slice can't be copied")

    @property
    def present(self) -> tuple[int, ...]:
        """Indices of the slices that are written, ascending."""
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
        # include both ends of the range
        values[..., 0, 0], values[..., -1, -1] = low, low + (1 << self.bits_stored) - 1
        return values

    def truth(self) -> tuple[Truth, ...]:
        """Return the expected result of reading, for each echo."""
        present = list(self.present)
        values = self.stored()[:, :, present] * self.slope + self.intercept
        gaps = tuple((n, int(gap) - 1) for n, gap in enumerate(np.diff(present)) if gap > 1)
        across = math.hypot(*self.shear)
        tilt = math.degrees(math.atan2(across, self.spacing[0])) if len(present) > 1 else 0.0
        return tuple(
            Truth(array, self._compute_affine(present), gaps, len(self.copied) * self.times, tilt)
            for array in values
        )

    def _compute_affine(self, present: list[int]) -> Affine:
        """Return index to LPS (PS3.3 C.7.6.2.1.1), implemented independently of the code it checks."""
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
    Expected result of reading one series of a study.

    Attributes
    ----------
    array : numpy.ndarray
        (C, D, H, W) float64: modality values of the slices that were written.
    affine : numpy.ndarray
        (4, 4): index to LPS millimeters, if no slice is missing.
    missing : tuple of (int, int)
        Index of each slice before a gap, and the number of missing slices.
    copies : int
        Number of duplicate files.
    tilt : float
        Gantry tilt in degrees.
    """

    array: npt.NDArray[np.float64]
    affine: Affine
    missing: tuple[tuple[int, int], ...]
    copies: int
    tilt: float

    def error(
        self, *, on_missing: Policy = "raise", on_duplicate: Policy = "warn", on_tilt: Policy = "warn"
    ) -> type[MedimgError] | None:
        """Return the error that reading must raise under these policies; None for a volume."""
        if self.missing and on_missing == "raise":
            return MissingSlicesError
        if (self.tilt and on_tilt == "raise") or (self.tilt > _MOST_TILT and on_tilt != "keep"):
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
        Study to write.
    folder : str or Path
        Output folder, created if missing.

    Returns
    -------
    tuple of Truth
        Expected result of reading, for each echo.
    """
    write_study(study, check_path("folder", folder, error=DatasetError))
    return study.truth()


_SYNTAXES: Final = {
    "implicit": ImplicitVRLittleEndian,
    "little": ExplicitVRLittleEndian,
    "big": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "rle": RLELossless,
}
_CLASSES: Final = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "PT": PositronEmissionTomographyImageStorage,
}
_SECONDS_APART: Final = 3


def write_study(study: Study, folder: Path) -> list[Path]:
    """Write the files of a study; return their paths in the order echoes, times, slices, copies last."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([study.seed, 1])
    images = [(e, t, s) for e in range(study.echoes) for t in range(study.times) for s in study.present]
    written = len(images) + len(study.copied) * study.times * study.echoes
    order = rng.permutation(written) if study.shuffled else np.arange(written)
    names = [f"{rng.integers(2**32):08x}-{n}" if study.shuffled else f"{n:04d}.dcm" for n in order]
    shuffle_numbers = study.shuffled and study.told_by != "number"
    numbers = rng.permutation(len(images)) if shuffle_numbers else np.arange(len(images))
    series, frame = generate_uid(), generate_uid()
    stored, positions = study.stored(), study.positions()
    paths, copies = [], []
    for n, (e, t, s) in enumerate(images):
        ds = _make_instance(study, stored[e, t, s], rng)
        ds.FrameOfReferenceUID = frame
        if study.series_uid:
            ds.SeriesInstanceUID = series
        if study.numbered:
            ds.InstanceNumber = int(numbers[n]) + 1
        ds.ImagePositionPatient = _format_decimals(positions[s])
        if study.echoes > 1:
            ds.EchoNumbers, ds.EchoTime = e + 1, _format_decimals([4.6 * (e + 1)])[0]
        if study.times > 1:
            _TIME_SETTERS[study.told_by](ds, t)
        paths.append(_save(ds, study, folder / names[n]))
        copies += [paths[-1]] if s in study.copied else []
    for n, path in enumerate(copies):
        shutil.copyfile(path, folder / names[len(images) + n])
    return paths + [folder / name for name in names[len(images) :]]


def _set_temporal_position(ds: FileDataset, t: int) -> None:
    ds.TemporalPositionIdentifier = t + 1


def _set_acquisition_number(ds: FileDataset, t: int) -> None:
    ds.AcquisitionNumber = t + 1


def _set_trigger_time(ds: FileDataset, t: int) -> None:
    ds.TriggerTime = str(40 * t)


def _set_acquisition_time(ds: FileDataset, t: int) -> None:
    ds.AcquisitionTime = f"1200{_SECONDS_APART * t:02d}"


def _set_nothing(ds: FileDataset, t: int) -> None:
    """Set nothing: the Instance Number distinguishes time points."""


_TIME_SETTERS: Final[dict[str, Callable[[FileDataset, int], None]]] = {
    "temporal": _set_temporal_position,
    "acquisition": _set_acquisition_number,
    "trigger": _set_trigger_time,
    "time": _set_acquisition_time,
    "number": _set_nothing,
}


def _format_decimals(values: Any) -> list[str]:
    return [format_number_as_ds(float(v)) for v in values]


def _make_instance(study: Study, stored: npt.NDArray[np.int64], rng: np.random.Generator) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = _CLASSES[study.modality]
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = _SYNTAXES[study.syntax]
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = _CLASSES[study.modality]
    if study.instance_uids:
        ds.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    ds.StudyInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    ds.SeriesNumber = 7
    ds.Modality = study.modality
    ds.PatientID, ds.PatientName = f"{SENTINEL}-17", f"{SENTINEL}^Anna"
    ds.PatientBirthDate = "19011231"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if study.modality == "CT" else "OTHER"]
    ds.PixelSpacing = _format_decimals(study.spacing[1:])
    ds.ImageOrientationPatient = _format_decimals(study.orientation)
    if len(study.present) == 1:
        # the only source for a single slice; otherwise positions determine it
        ds.SpacingBetweenSlices = _format_decimals(study.spacing[:1])[0]
    ds.SliceThickness = _format_decimals([study.spacing[0] * 1.5])[0]
    ds.RescaleSlope, ds.RescaleIntercept = _format_decimals([study.slope, study.intercept])
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = (
        study.bits_allocated,
        study.bits_stored,
        study.bits_stored - 1,
    )
    ds.PixelRepresentation = int(study.signed)
    cells = stored & ((1 << study.bits_stored) - 1)
    if study.dirty:
        spare = 1 << (study.bits_allocated - study.bits_stored)
        cells |= rng.integers(0, spare, stored.shape) << study.bits_stored
    _set_pixels(ds, cells, study)
    return ds


def _set_pixels(ds: FileDataset, cells: npt.NDArray[np.int64], study: Study) -> None:
    order = ">" if study.syntax == "big" else "<"
    data = cells.astype(f"{order}u{study.bits_allocated // 8}").tobytes()
    ds.PixelData = data + bytes(len(data) % 2)
    ds["PixelData"].VR = "OW" if study.bits_allocated > 8 else "OB"
    if study.syntax == "rle":
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.compress(RLELossless, encoding_plugin="pydicom", generate_instance_uid=False)


def _save(ds: FileDataset, study: Study, path: Path) -> Path:
    pydicom.dcmwrite(
        path,
        ds,
        implicit_vr=study.syntax == "implicit",
        little_endian=study.syntax != "big",
        enforce_file_format=True,
    )
    return path
