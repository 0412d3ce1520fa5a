"""Volumes and affines equal those that dcm2niix makes, from its published references and from fresh runs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medimg
from medimg.errors import AmbiguousSeriesError
from tests.conformance import Conformance
from tests.io.references import (
    AFFINE_MM,
    Image,
    difference,
    images_of,
    met_by,
    of_volume,
    reference,
    scanned,
)
from tests.sampling import SLOW

SETS = (
    "12bit", "canon_3000", "enh", "fmap", "me", "mosaic_ep2d", "nih", "philips_enh_1901", "ts",
    "xa60_terra",
)  # fmt: skip

#: Output of a fresh dcm2niix that medimg does not meet, by folder and file, and who is right.
EXPLAINED = {
    ("dicom_qa/ct_philips", "201_0_1.nii"): (
        "gantry tilt: dcm2niix keeps the slices and removes the shear from the affine; medimg keeps it"
    ),
    ("dicom_qa/ct_philips", "201_0_1_Tilt_1.nii"): (
        'equal with on_tilt="fix" (a separate test): the same grid; values differ only at the borders'
    ),
    ("dicom_misc/nema_enhmr_dev", "1_0_1.nii"): (
        "slice positions are 6 mm apart; dcm2niix uses Slice Thickness, 5 mm, as the distance"
    ),
    ("dicom_misc/nema_enhmr_dev", "1_0_1a.nii"): (
        "stacks of several orientations in one file: one volume by dcm2niix, four series by medimg"
    ),
    ("dicom_misc/nema_enhmr_dev", "3_0_1.nii"): "as 1_0_1.nii",
    ("dicom_misc/nema_enhmr_dev", "4_0_1.nii"): "as 1_0_1.nii",
    ("dicom_misc/dcmstack_multiecho", "3_1_1_Eq_1.nii"): (
        "a slice is missing between the second and the third: dcm2niix moves the third to the first gap"
    ),
}
FRESH = (
    "cls/covid_ct_md_dev", "dicom_misc/dcmstack_multiecho", "dicom_misc/dicom2nifti_dev",
    "dicom_misc/lidc_3pat_excerpt", "dicom_misc/nema_enhmr_dev", "dicom_qa/agfa", "dicom_qa/ct_philips",
)  # fmt: skip

needs_dcm2niix = pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="dcm2niix is not installed")


#: What these show is shown by another data set as well.
REPEATED = {"dicom_qa/agfa", "cls/covid_ct_md_dev", "fmap"}


ASKED = pytest.mark.skipif(not SLOW, reason="a data set like others: set MEDIMG_SLOW=1")


def repeats_if_asked(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(name, marks=ASKED if name in REPEATED else ()) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", repeats_if_asked(SETS))
def test_published_references_are_met(real_data: Path, name: str, conformance: Conformance) -> None:
    found = images_of(real_data / "dicom_qa" / name / "In")
    expected = [reference(p) for p in sorted((real_data / "dicom_qa" / name / "Ref").glob("*.nii*"))]
    assert expected, "no references"
    missed = {image.name: why for image in expected if (why := met_by(image, found)[1])}
    conformance.note(
        "comparison with dcm2niix: published references", f"dicom_qa/{name}", len(expected), len(missed)
    )
    assert not missed


def by_dcm2niix(folder: Path, output: Path) -> list[Image]:
    command = ["dcm2niix", "-z", "n", "-b", "n", "-d", "0", "-f", "%s_%e_%r", "-o", str(output), str(folder)]
    subprocess.run(command, capture_output=True, timeout=120, check=False)
    return [reference(path) for path in sorted(output.glob("*.nii"))]


@pytest.mark.slow
@needs_dcm2niix
@pytest.mark.parametrize("name", repeats_if_asked(FRESH))
def test_what_dcm2niix_makes_now_is_met(
    real_data: Path, tmp_path: Path, name: str, conformance: Conformance
) -> None:
    compared = 0
    missed: dict[str, str] = {}
    for n, folder in enumerate(sorted({p.parent for p in (real_data / name).rglob("*") if p.is_file()})):
        output = tmp_path / str(n)
        output.mkdir()
        expected = by_dcm2niix(folder, output)
        found = images_of(folder, on_missing="keep") if expected else []
        compared += len(expected)
        missed |= {image.name: why for image in expected if (why := met_by(image, found)[1])}
    assert compared
    stale = {image for where, image in EXPLAINED if where == name} - set(missed)
    assert not stale, f"explained, and yet met: {stale}"
    unexplained = {image: why for image, why in missed.items() if (name, image) not in EXPLAINED}
    reasons = [f"{image}: {EXPLAINED[name, image]}" for image in missed if (name, image) in EXPLAINED]
    conformance.note("comparison with dcm2niix: new conversions", name, compared, len(missed), reasons)
    assert not unexplained


def test_no_explanation_is_stale() -> None:
    assert {name for name, _ in EXPLAINED} <= set(FRESH)


@pytest.mark.slow
@needs_dcm2niix
def test_a_mended_tilt_lies_on_the_grid_of_dcm2niix(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dicom_qa" / "ct_philips" / "In" / "Philips" / "S21610" / "S2010"
    (expected,) = [i for i in by_dcm2niix(folder, tmp_path) if "Tilt" in i.name]
    found = of_volume(medimg.read(folder, on_tilt="fix"), "mended")
    assert found.values.shape == expected.values.shape
    assert np.abs(found.affine - expected.affine).max() < AFFINE_MM
    off = np.abs(found.values - expected.values)
    assert np.percentile(off, 99) <= 1
    assert off.mean() < 0.1


def test_classic_and_enhanced_are_one_volume(real_data: Path) -> None:
    for name in ("canon_3000", "philips_enh_1901"):
        folder = real_data / "dicom_qa" / name / "In"
        places = [Path(series.path).relative_to(folder).parts[0] for series in scanned(folder)]
        assert sorted(places) == ["cl", "enh"]
        classic, enhanced = images_of(folder)
        assert classic.values.shape == enhanced.values.shape
        assert np.abs(classic.affine - enhanced.affine).max() < AFFINE_MM
        if name == "canon_3000":
            assert np.array_equal(classic.values, enhanced.values)


def test_the_comparison_tells_unequal_images_apart(real_data: Path) -> None:
    path = sorted((real_data / "dicom_qa" / "me" / "Ref").glob("*.nii"))[0]
    image = reference(path)
    moved = image.affine.copy()
    moved[0, 3] += 0.1
    assert not difference(image, image)
    assert "affine" in difference(Image("", image.values, moved), image)
    assert "values" in difference(Image("", image.values * 1.01, image.affine), image)
    assert "values" in difference(Image("", image.values[:, ::-1], image.affine), image)
    assert "shape" in difference(Image("", image.values[..., 1:], image.affine), image)


@pytest.mark.parametrize(("folder", "count"), [pytest.param("agfa", 2, marks=ASKED), ("xa60_terra/In", 10)])
def test_series_of_a_study_stay_apart(real_data: Path, folder: str, count: int) -> None:
    index = scanned(real_data / "dicom_qa" / folder)
    with pytest.raises(AmbiguousSeriesError, match="2 series"):
        medimg.read([*index[0].files, *index[1].files])
    assert len({s.uid for s in index}) == len(index) == count
