"""Floating-point values of Philips MR against the references of dcm2niix, and by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import medimg
from medimg.errors import DecodeError
from medimg.io.dicom.header.element_values import collect_findings
from medimg.io.dicom.header.open import to_tags
from medimg.io.dicom.header.private_tags import PrivateTag, get_private_floats, get_private_integer
from medimg.io.dicom.values.real_world import PHILIPS_TAGS, compute_philips_factor
from tests.dicom_files import make_instance, write


def frame_views(ds: Dataset) -> Iterator[Dataset]:
    """What counts for the values of each frame, by the plain rules of functional groups."""
    for group in ds.PerFrameFunctionalGroupsSequence:
        view = Dataset()
        view.Modality = ds.Modality
        view.update(group[0x2005, 0x140F].value[0])
        view.update(group.PixelValueTransformationSequence[0])
        if "RealWorldValueMappingSequence" in group:
            view.RealWorldValueMappingSequence = group.RealWorldValueMappingSequence
        view.ImagePositionPatient = group.PlanePositionSequence[0].ImagePositionPatient
        yield view


def floating_point(ds: Dataset) -> list[np.ndarray]:
    stored = ds.pixel_array.reshape(-1, ds.Rows, ds.Columns)
    values = []
    for picture, view in zip(stored, frame_views(ds), strict=True):
        display = picture * float(view.RescaleSlope) + float(view.RescaleIntercept)
        values.append(display * (compute_philips_factor(view) or 1))
    return values


def same_values(frames: list[np.ndarray], reference: Path) -> bool:
    """Whether the values of frames are those of a reference, wherever dcm2niix put them."""
    expected = np.sort(np.asarray(nib.Nifti1Image.from_filename(reference).get_fdata()).ravel())
    found = np.sort(np.concatenate([f.ravel() for f in frames]))
    tolerance = 1e-3 * (expected[-1] - expected[0])
    return found.shape == expected.shape and bool(np.allclose(found, expected, rtol=0, atol=tolerance))


@pytest.mark.parametrize(("name", "prefix"), [("enh", "Philips_WIP_B0_NS_801"), ("fmap", "Ph_801_WIP_B0_NS")])
def test_a_field_map_has_magnitudes_and_hertz(real_data: Path, name: str, prefix: str) -> None:
    folder = real_data / "dicom_qa" / name
    path = next(p for p in (folder / "In").rglob("*") if p.is_file() and p.name.startswith("IM_0027"))
    frames = floating_point(pydicom.dcmread(path))
    magnitude, hertz = frames[:32], frames[32:]
    assert same_values(magnitude, folder / "Ref" / f"{prefix}_e1.nii")
    assert same_values(hertz, folder / "Ref" / f"{prefix}_e2_fieldmaphz.nii")
    assert not same_values(hertz, folder / "Ref" / f"{prefix}_e1.nii")
    views = list(frame_views(pydicom.dcmread(path)))
    assert compute_philips_factor(views[0]) == pytest.approx(118362.24 / 1.27985347985347, rel=1e-6)
    assert compute_philips_factor(views[-1]) is None


def test_classic_and_enhanced_files_of_one_scan_have_equal_values(real_data: Path) -> None:
    folder = real_data / "dicom_qa" / "philips_enh_1901"
    files = [p for p in (folder / "In").rglob("*") if p.is_file() and p.suffix == ".dcm"]
    datasets = [pydicom.dcmread(p) for p in files]
    enhanced = next(ds for ds in datasets if "PerFrameFunctionalGroupsSequence" in ds)
    classic = [ds for ds in datasets if "PerFrameFunctionalGroupsSequence" not in ds]
    assert len(classic) == 40
    from_classic = []
    for ds in classic:
        factor = compute_philips_factor(ds)
        assert factor is not None
        from_classic.append((ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)) * factor)
    assert same_values(from_classic, folder / "Ref" / "1901_WIP_3DpCASL_cl.nii.gz")
    assert same_values(floating_point(enhanced), folder / "Ref" / "1901_WIP_3DpCASL_enh_real.nii.gz")


def philips(block: int = 0x10, scale: object = 0.25, slope: object = 2.0, kind: str = "FL") -> Dataset:
    ds = Dataset()
    ds.Modality = "MR"
    ds.RescaleSlope = slope
    ds.add_new((0x2005, block), "LO", "Philips MR Imaging DD 001")
    ds.add_new((0x2005, block << 8 | 0x0E), kind, scale)
    return ds


@pytest.mark.parametrize("block", [0x10, 0x11, 0xFF])
def test_the_factor_undoes_both_slopes_wherever_the_block_lies(block: int) -> None:
    assert compute_philips_factor(philips(block)) == 1 / (2.0 * 0.25)


def test_an_element_of_another_creator_is_no_scale_slope() -> None:
    ds = philips()
    ds[0x2005, 0x0010].value = "Philips MR Imaging DD 005"
    assert compute_philips_factor(ds) is None
    ds[0x2005, 0x0010].value = "PHILIPS MR IMAGING DD 001 "
    assert compute_philips_factor(ds) == 2


def test_a_value_of_lost_representation_is_read_as_it_was_written() -> None:
    ds = philips(scale=np.float32(0.25).tobytes(), kind="UN")
    assert compute_philips_factor(ds) == 2
    tag = PrivateTag(0x2005, 0x0E, "Philips MR Imaging DD 001", "DS")
    assert get_private_floats(philips(scale=b"1.5\\2 ", kind="UN"), tag) == (1.5, 2)


@pytest.mark.parametrize("scale", [None, b"", ""])
def test_an_empty_scale_slope_is_an_absent_one(scale: object) -> None:
    assert compute_philips_factor(philips(scale=scale, kind="UN")) is None


def test_a_private_number_with_a_fraction_is_no_whole_number() -> None:
    tag = PrivateTag(0x2005, 0x0E, "Philips MR Imaging DD 001", "DS")
    with collect_findings() as findings:
        assert get_private_integer(philips(scale=2.5), tag) is None
        assert get_private_integer(philips(scale=2.0), tag) == 2
    assert [note.endswith("is not a whole number; it is not used") for note in findings] == [True]


def test_other_modalities_and_manufacturers_have_none() -> None:
    assert compute_philips_factor(Dataset()) is None
    ds = philips()
    ds.Modality = "CT"
    assert compute_philips_factor(ds) is None


@pytest.mark.parametrize(("unit", "expected"), [("Hz", None), ("1", 2.0), ("no units", 2.0)])
def test_physical_units_need_no_factor(unit: str, expected: float | None) -> None:
    ds, mapping, measured = philips(), Dataset(), Dataset()
    measured.CodeValue = unit
    mapping.MeasurementUnitsCodeSequence = Sequence([measured])
    ds.RealWorldValueMappingSequence = Sequence([mapping])
    assert compute_philips_factor(ds) == expected


@pytest.mark.parametrize(
    ("scale", "slope", "message"),
    [
        (0.0, 2.0, "Scale Slope"),
        (float("nan"), 2.0, "Scale Slope"),
        (1.0, 0, "RescaleSlope"),
        (1e-38, 1e-308, "product"),
    ],
)
def test_unusable_slopes_are_refused(scale: float, slope: float, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        compute_philips_factor(philips(scale=scale, slope=slope))


def test_header_only_reads_suffice(real_data: Path) -> None:
    folder = real_data / "dicom_qa" / "philips_enh_1901" / "In"
    path = next(p for p in folder.rglob("*.dcm") if p.stat().st_size < 100_000)
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(to_tags(*PHILIPS_TAGS)))
    assert compute_philips_factor(header) == compute_philips_factor(pydicom.dcmread(path)) is not None


#: Rescale Type, radians of a rescaled value, and the unit and slope of a mapping relative to the rescale.
PHASES = (
    ("MILLIRADIALS", 1e-3, None),
    ("MILLIRADIANS", 1e-3, None),
    ("mrad", 1e-3, None),
    ("RADIANS", 1, None),
    ("RAD", 1, None),
    ("DEGREES", math.pi / 180, None),
    ("US", 1e-3, None),
    ("US", 1, None),
    ("US", 1e-3, ("mrad", 1)),
    ("US", 1e-3, ("rad", 1e-3)),
    ("US", 0.5, ("rad", 0.5)),
)


def make_phase(unit: float, **attributes: Any) -> Any:
    """A Philips phase image of 12 bits whose rescaled values run from -π to π in units of `unit` radians."""
    ds = make_instance(
        np.array([[0, 2048, 4095]], np.uint16), Modality="MR", BitsStored=12, HighBit=11,
        ImageType=["ORIGINAL", "PRIMARY", "PHASE MAP", "P", "FFE"],
        RescaleSlope=f"{math.tau / unit / 4095:.10g}", RescaleIntercept=f"{-math.pi / unit:.10g}",
        **attributes,
    )  # fmt: skip
    block = ds.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", 0.37)
    return ds


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS")
@pytest.mark.parametrize(("name", "unit", "mapped"), PHASES)
def test_phase_is_in_radians(
    tmp_path: Path, name: str, unit: float, mapped: tuple[str, float] | None
) -> None:
    ds = make_phase(unit, RescaleType=name)
    if mapped is not None:
        code, mapping = Dataset(), Dataset()
        code.CodeValue = mapped[0]
        mapping.MeasurementUnitsCodeSequence = Sequence([code])
        mapping.RealWorldValueSlope = float(ds.RescaleSlope) * mapped[1]
        mapping.RealWorldValueIntercept = float(ds.RescaleIntercept) * mapped[1]
        ds.RealWorldValueMappingSequence = Sequence([mapping])
    path = write(ds, tmp_path / "phase.dcm")
    volume = medimg.read(path)
    assert volume.units == "rad"
    assert np.allclose(volume.array.ravel()[[0, 2]], [-math.pi, math.pi], atol=1e-4)
    rescaled = medimg.read(path, values="rescaled")
    assert np.allclose(rescaled.array.ravel()[[0, 2]], [-math.pi / unit, math.pi / unit], rtol=1e-4)


def test_magnitude_of_philips_is_no_phase(tmp_path: Path) -> None:
    ds = make_phase(1e-3, RescaleType="US")
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M_FFE", "M", "FFE"]
    assert medimg.read(write(ds, tmp_path / "magnitude.dcm")).units == "raw"
