"""One scan in many formats: the same values at the same places, and the same tensors."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its users know
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedCTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, generate_uid

import medimg
from medimg.core import geometry
from medimg.core.volume import Volume
from medimg.errors import MedimgWarning
from medimg.testing.studies import Study, write_dicom
from tests.conformance import Conformance
from tests.io import sabotage
from tests.sampling import SLOW

FORMATS = ("zip", "legacy enhanced", "enhanced", "nii", "nii.gz", "nrrd", "mha", "mhd")
WINDOW = medimg.Window(center=40, width=400)
OBLIQUE = Study(
    slices=7,
    rows=24,
    columns=31,
    spacing=(3.1, 0.9, 1.3),
    orientation=(0.89252714, 0.40610887, 0.19640196, -0.24548816, 0.08107247, 0.96600354),
    origin=(-81.5, 12.25, 140.0),
    shuffled=True,
)


@dataclass(frozen=True)
class Scan:
    """One scan: its files, and what they hold as pydicom alone sees it."""

    files: tuple[Path, ...]
    values: npt.NDArray[Any]
    affine: npt.NDArray[np.float64]

    @property
    def datasets(self) -> list[FileDataset]:
        return [pydicom.dcmread(path) for path in self.files]


@pytest.fixture(scope="module", params=["CT", "MR", "oblique"])
def scan(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Scan:
    if request.param == "oblique":
        folder = tmp_path_factory.mktemp("oblique")
        (truth,) = write_dicom(OBLIQUE, folder)
        return Scan(tuple(sorted(folder.iterdir())), truth.array[0], truth.affine)
    real_data: Path = request.getfixturevalue("real_data")
    parts = {
        "CT": "dicom_misc/lidc_3pat_excerpt/tests/assets/test_image_data/small/LIDC-IDRI-0001",
        "MR": "dicom_qa/fmap/In/Siemens/4_gre_field_ph",
    }
    original = sabotage.original(real_data / parts[request.param], count=40 if SLOW else 8)
    first = original.datasets[0]
    x, y = np.asarray(first.ImageOrientationPatient, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0] = (original.positions[-1] - original.positions[0]) / (len(original.positions) - 1)
    affine[:3, 1], affine[:3, 2] = y * float(first.PixelSpacing[0]), x * float(first.PixelSpacing[1])
    affine[:3, 3] = original.positions[0]
    return Scan(tuple(Path(str(ds.filename)) for ds in original.datasets), original.values, affine)


def as_zip(scan: Scan, folder: Path) -> Path:
    with zipfile.ZipFile(folder / "scan.zip", "w") as archive:
        for n, path in enumerate(scan.files):
            archive.write(path, f"export/{n * 7 % 101}/IM{n}")
    return folder / "scan.zip"


def as_legacy_enhanced(scan: Scan, folder: Path) -> Path:
    """By highdicom, from the classic instances."""
    datasets = scan.datasets
    for ds in datasets:
        # what highdicom wants, and the excerpts lack
        for keyword, value in (
            ("FrameOfReferenceUID", "1.2.3"), ("AccessionNumber", ""), ("StudyID", ""),
            ("StudyDate", "20000101"), ("StudyTime", "120000"), ("PatientBirthDate", ""), ("PatientSex", ""),
            ("ReferringPhysicianName", ""), ("PositionReferenceIndicator", ""), ("Manufacturer", "none"),
            ("InstanceNumber", 1),
        ):  # fmt: skip
            if keyword not in ds:
                setattr(ds, keyword, value)
    kinds = {
        "CT": highdicom.legacy.LegacyConvertedEnhancedCTImage,
        "MR": highdicom.legacy.LegacyConvertedEnhancedMRImage,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = kinds[datasets[0].Modality](datasets, generate_uid(), 11, generate_uid(), 1)
        image.save_as(folder / "legacy.dcm")
    return folder / "legacy.dcm"


def item(**attributes: Any) -> Sequence:
    ds = Dataset()
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return Sequence([ds])


def as_enhanced(scan: Scan, folder: Path) -> Path:
    """Written by hand: frames out of order, a rescale of its own for each of them."""
    datasets = scan.datasets
    first = datasets[0]
    is_ct = first.Modality == "CT"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = EnhancedCTImageStorage if is_ct else EnhancedMRImageStorage
    meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = generate_uid(), ExplicitVRLittleEndian
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.SeriesInstanceUID, ds.StudyInstanceUID = generate_uid(), generate_uid()
    ds.Modality, ds.InstanceNumber, ds.PatientID = first.Modality, 1, "none"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    ds.Rows, ds.Columns, ds.NumberOfFrames = first.Rows, first.Columns, len(datasets)
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    ds.SharedFunctionalGroupsSequence = item(
        PixelMeasuresSequence=item(PixelSpacing=first.PixelSpacing, SliceThickness=99),
        PlaneOrientationSequence=item(ImageOrientationPatient=first.ImageOrientationPatient),
    )
    groups: list[Dataset] = []
    pixels = []
    order = np.random.default_rng(8).permutation(len(datasets))
    for n, place in enumerate(order):
        instance = datasets[place]
        values = sabotage.rescaled(instance)
        slope, intercept = (1, int(values.min()) - n) if is_ct else (2, int(values.min()) - 2 * n)
        pixels.append(((values - intercept) / slope).astype("<u2"))
        groups += item(
            FrameContentSequence=item(DimensionIndexValues=[1, int(place) + 1], StackID="1"),
            PlanePositionSequence=item(ImagePositionPatient=instance.ImagePositionPatient),
            PixelValueTransformationSequence=item(
                RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU" if is_ct else "US"
            ),
        )
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    ds.PixelData = np.stack(pixels).tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(folder / "enhanced.dcm", enforce_file_format=True)
    return folder / "enhanced.dcm"


def as_nifti(suffix: str) -> Callable[[Scan, Path], Path]:
    def write(scan: Scan, folder: Path) -> Path:
        ras = np.diag([-1.0, -1, 1, 1]) @ scan.affine[:, [2, 1, 0, 3]]
        image = nib.Nifti1Image(scan.values.transpose(2, 1, 0).astype(np.int16), ras)
        nib.save(image, folder / f"scan.{suffix}")
        return folder / f"scan.{suffix}"

    return write


def as_itk(suffix: str) -> Callable[[Scan, Path], Path]:
    def write(scan: Scan, folder: Path) -> Path:
        image = sitk.GetImageFromArray(scan.values.astype(np.int16))
        spacing = np.linalg.norm(scan.affine[:3, :3], axis=0)
        image.SetSpacing([float(v) for v in spacing[::-1]])
        image.SetDirection((scan.affine[:3, :3] / spacing)[:, ::-1].ravel().tolist())
        image.SetOrigin(scan.affine[:3, 3].tolist())
        sitk.WriteImage(image, str(folder / f"scan.{suffix}"), useCompression=suffix == "nrrd")
        return folder / f"scan.{suffix}"

    return write


WRITERS: dict[str, Callable[[Scan, Path], Path]] = {
    "zip": as_zip,
    "legacy enhanced": as_legacy_enhanced,
    "enhanced": as_enhanced,
    "nii": as_nifti("nii"),
    "nii.gz": as_nifti("nii.gz"),
    "nrrd": as_itk("nrrd"),
    "mha": as_itk("mha"),
    "mhd": as_itk("mhd"),
}


@pytest.fixture(scope="module")
def classic(scan: Scan) -> Volume:
    """The scan as its files are."""
    volume = read(list(scan.files))
    assert_same_places(volume, scan)
    return volume


def read(source: Any) -> Volume:
    with warnings.catch_warnings(action="ignore", category=MedimgWarning):
        return medimg.read(source)


def assert_same_places(found: Volume, scan: Scan, tolerance: float = 1e-3) -> None:
    """Every voxel of the scan has its value where it lies in the patient."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in scan.values.shape), indexing="ij"), axis=-1)
    world = geometry.index_to_lps(scan.affine, index)
    back = np.linalg.inv(found.affine)
    places = world @ back[:3, :3].T + back[:3, 3]
    rounded = np.rint(places).astype(int)
    off = np.abs(places - rounded) * np.asarray(found.spacing)
    assert off.max() < tolerance, f"{off.max()} mm"
    d, h, w = np.moveaxis(rounded, -1, 0)
    assert found.array[0].size == scan.values.size
    assert np.array_equal(found.array[0, d, h, w], scan.values)


@pytest.mark.parametrize("kind", WRITERS)
def test_the_same_scan_in_every_format(
    scan: Scan, classic: Volume, tmp_path: Path, kind: str, conformance: Conformance
) -> None:
    found = read(WRITERS[kind](scan, tmp_path))
    assert_same_places(found, scan)
    turned = found.reorient(classic.orientation)
    assert np.array_equal(turned.array, classic.array)
    assert np.allclose(turned.affine, classic.affine, atol=1e-3)
    if kind in {"zip", "legacy enhanced", "enhanced"}:
        assert (found.modality, found.units) == (classic.modality, classic.units)
        assert found.orientation == classic.orientation
    recipe = medimg.Preprocess(window=WINDOW, orientation="display", size=64, channels="repeat")
    expected, tensor = recipe(classic), recipe(found)
    assert expected.std() > 0.1
    assert expected.shape == tensor.shape
    off = (expected - tensor).abs().max()
    conformance.note("tensors of one scan in every format", kind, 1, int(off > 1e-5))
    assert off <= 1e-5


def test_what_is_not_the_same_is_found_out(scan: Scan, classic: Volume) -> None:
    moved = scan.affine.copy()
    moved[:3, 3] += 0.4
    with pytest.raises(AssertionError):
        assert_same_places(classic, Scan(scan.files, scan.values, moved))
    other = scan.values.copy()
    other[0, 0, 0] += 1
    with pytest.raises(AssertionError):
        assert_same_places(classic, Scan(scan.files, other, scan.affine))


def test_one_enhanced_image_in_every_transfer_syntax(real_data: Path) -> None:
    folder = real_data / "dicom_misc/pydicom-data/data_store/data"
    expected = read(folder / "emri_small.dcm")
    assert expected.shape[1] == 10
    for name in ("big_endian", "RLE", "jpeg_2k_lossless", "jpeg_ls_lossless"):
        found = read(folder / f"emri_small_{name}.dcm")
        assert np.array_equal(found.array, expected.array), name
        assert np.allclose(found.affine, expected.affine), name
    # of this one only the delimiter behind the last frame is missing
    short = read(folder / "emri_small_jpeg_2k_lossless_too_short.dcm")
    assert np.array_equal(short.array, expected.array)
