"""Studies into DICOM files, by pydicom alone."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

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

from medimg.testing.studies import SENTINEL, Study

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["write_study"]

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
    places = [(e, t, s) for e in range(study.echoes) for t in range(study.times) for s in study.present]
    written = len(places) + len(study.copied) * study.times * study.echoes
    order = rng.permutation(written) if study.shuffled else np.arange(written)
    names = [f"{rng.integers(2**32):08x}-{n}" if study.shuffled else f"{n:04d}.dcm" for n in order]
    shuffle_numbers = study.shuffled and study.told_by != "number"
    numbers = rng.permutation(len(places)) if shuffle_numbers else np.arange(len(places))
    series, frame = generate_uid(), generate_uid()
    stored, positions = study.stored(), study.positions()
    paths, copies = [], []
    for n, (e, t, s) in enumerate(places):
        ds = _instance(study, stored[e, t, s], rng)
        ds.FrameOfReferenceUID = frame
        if study.series_uid:
            ds.SeriesInstanceUID = series
        if study.numbered:
            ds.InstanceNumber = int(numbers[n]) + 1
        ds.ImagePositionPatient = _decimal(positions[s])
        if study.echoes > 1:
            ds.EchoNumbers, ds.EchoTime = e + 1, _decimal([4.6 * (e + 1)])[0]
        if study.times > 1:
            _TOLD[study.told_by](ds, t)
        paths.append(_save(ds, study, folder / names[n]))
        copies += [paths[-1]] if s in study.copied else []
    for n, path in enumerate(copies):
        shutil.copyfile(path, folder / names[len(places) + n])
    return paths + [folder / name for name in names[len(places) :]]


def _temporal(ds: FileDataset, t: int) -> None:
    ds.TemporalPositionIdentifier = t + 1


def _acquisition(ds: FileDataset, t: int) -> None:
    ds.AcquisitionNumber = t + 1


def _trigger(ds: FileDataset, t: int) -> None:
    ds.TriggerTime = str(40 * t)


def _time(ds: FileDataset, t: int) -> None:
    ds.AcquisitionTime = f"1200{_SECONDS_APART * t:02d}"


def _nothing(ds: FileDataset, t: int) -> None:
    """Leave it to the Instance Number."""


_TOLD: Final[dict[str, Callable[[FileDataset, int], None]]] = {
    "temporal": _temporal,
    "acquisition": _acquisition,
    "trigger": _trigger,
    "time": _time,
    "number": _nothing,
}


def _decimal(values: Any) -> list[str]:
    return [format_number_as_ds(float(v)) for v in values]


def _instance(study: Study, stored: npt.NDArray[np.int64], rng: np.random.Generator) -> FileDataset:
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
    ds.PixelSpacing = _decimal(study.spacing[1:])
    ds.ImageOrientationPatient = _decimal(study.orientation)
    if len(study.present) == 1:
        # the only way to know it; elsewhere positions tell
        ds.SpacingBetweenSlices = _decimal(study.spacing[:1])[0]
    ds.SliceThickness = _decimal([study.spacing[0] * 1.5])[0]
    ds.RescaleSlope, ds.RescaleIntercept = _decimal([study.slope, study.intercept])
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
