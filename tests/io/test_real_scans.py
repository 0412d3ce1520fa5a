"""Real scans against independent readers."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813  # the name that its users know

import medimg
from medimg.errors import MedimgError, MedimgWarning
from medimg.io.dicom.header.instance import read_instance
from tests.sampling import SLOW

# Where the independent reader gives other values on purpose or by mistake, and why
KNOWN_DIFFERENCES = {
    "TOSHIBA_J2K_SIZ1_PixRep0.dcm": "header and codestream disagree about the sign",
    "SC_rgb_jpeg_lossy_gdcm.dcm": "the header says RGB of subsampled components, which are YCbCr",
    "SC_rgb_rle_16bit.dcm": "GDCM mixes the bytes of 16-bit RLE colors; pydicom reads them as medimg does",
    "SC_rgb_rle_32bit.dcm": "the same with 32 bits",
    "mlut_18.dcm": "GDCM does not apply a modality LUT",
    "gdcm-US-ALOKA-16.dcm": "16-bit palette, scaled to 8 bits here",
    "gdcm-US-ALOKA-16_big.dcm": "16-bit palette, scaled to 8 bits here",
}


def by_simpleitk(path: str) -> np.ndarray | None:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(path)
    try:
        return np.asarray(sitk.GetArrayFromImage(reader.Execute())[0])
    except RuntimeError:
        return None


def test_chest_ct_has_hounsfield_units_and_the_geometry_of_simpleitk(real_data: Path) -> None:
    index = medimg.scan(real_data / "dicom_misc" / "lidc_3pat_excerpt")
    assert len(index) == 3
    for series in index:
        volume = series.read()
        assert volume.units == "HU"
        inside = volume.array[0] if volume.padding is None else volume.array[~volume.padding]
        counts = np.bincount(np.clip(inside.ravel(), -1023, 2000) + 1024)
        assert abs(int(counts[2:524].argmax()) + 2 - 1024 + 1000) <= 150, "air is not near -1000 HU"
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(list(series.files))
        image = reader.Execute()
        expected = np.eye(4)
        direction = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
        expected[:3, :3], expected[:3, 3] = direction[:, ::-1], image.GetOrigin()
        assert np.allclose(volume.affine, expected, atol=1e-4)
        assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["pydicom-data", "pylibjpeg-data", "wg04_dev", "fodicom_dev"])
def test_single_frames_equal_gdcm(real_data: Path, part: str) -> None:
    """Values as an independent decoder gives them; ITK inverts MONOCHROME1, medimg never does."""
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    compared = 0
    files = sorted(p for p in (real_data / "dicom_misc" / part).rglob("*") if p.is_file())
    if part != "pydicom-data" and not SLOW:
        # the others have many files of this one
        known = {(p.name, p.stat().st_size) for p in (real_data / "dicom_misc/pydicom-data").rglob("*")}
        files = [p for p in files if (p.name, p.stat().st_size) not in known]
    for path in files:
        if path.name in KNOWN_DIFFERENCES:
            continue
        try:
            instance = read_instance(path)
            if len(instance.facts) > 1 or instance.photometric == "MONOCHROME1":
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", MedimgWarning)
                volume = medimg.read(path)
        except MedimgError:
            continue
        expected = by_simpleitk(str(path))
        if expected is None or (volume.is_color and expected.dtype != volume.array.dtype):
            continue
        found = volume.array[0, 0] if not volume.is_color else np.moveaxis(volume.array[:, 0], 0, -1)
        assert np.allclose(found, expected, atol=1e-3), path.name
        compared += 1
    assert compared >= 3


def test_both_windows_of_jpeg_lossless_ct(real_data: Path) -> None:
    index = medimg.scan(real_data / "cls" / "covid_ct_md_dev")
    assert sorted(s.shape[1] for s in index) == [17, 17, 20]
    for series in index:
        volume = series.read([0, 1])
        assert [w.explanation for w in volume.voi[0]] != []
        assert len(volume.voi[0]) == 2
        assert volume.spacing[0] == pytest.approx(16)


def test_malformed_files_give_a_volume_or_a_clear_error(real_data: Path) -> None:
    tried = read = 0
    for path in sorted(p for p in (real_data / "malformed").rglob("*") if p.is_file()):
        tried += 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MedimgWarning)
            try:
                read += medimg.read(path).array.ndim == 4
            except MedimgError:
                continue
    assert tried > 100
    assert read > 10
