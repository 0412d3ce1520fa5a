"""Secondary captures: their pixels, captions and references."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medimg
from medimg.errors import ConversionError, GeometryError
from medimg.export import secondary_capture
from medimg.export.dicom._caption import add_caption
from tests.dicom_files import make_instance, write
from tests.export.dicom.checks import NOON, complaints, read_again, save

PIXELS = np.arange(48 * 40, dtype=np.int16).reshape(48, 40)


def test_pages_show_the_overlay_above_a_caption(
    model: medimg.TransferClassifier, ct: Path, explanation: medimg.Explanation
) -> None:
    pages = secondary_capture(model, ct, explanation=explanation)
    assert len(pages) == 4
    by_uid = {str(pydicom.dcmread(path).SOPInstanceUID) for path in ct.iterdir()}
    for page, index in zip(pages, explanation.slices, strict=True):
        overlay = explanation.overlay(index)
        factor = page.Columns // overlay.shape[1]
        shown = read_again(page).pixel_array
        height = overlay.shape[0] * factor
        np.testing.assert_array_equal(shown[:height:factor, ::factor], overlay)
        assert shown[height:].max() > 200
        assert shown.shape[1] >= 480
        (source,) = page.SourceImageSequence
        assert source.ReferencedSOPInstanceUID == explanation.volume.report.sop_instance_uids[index]
        assert source.ReferencedSOPInstanceUID in by_uid
        assert "not for diagnostic use" in page.DerivationDescription
        assert list(page.PatientOrientation) == ["L", "P"]
        assert page.ImageType[:2] == ["DERIVED", "SECONDARY"]
    assert len({page.SOPInstanceUID for page in pages}) == 4
    assert {page.SeriesInstanceUID for page in pages} == {pages[0].SeriesInstanceUID}
    assert [page.InstanceNumber for page in pages] == [1, 2, 3, 4]


def test_the_hottest_slices_are_taken(
    model: medimg.TransferClassifier, ct: Path, explanation: medimg.Explanation
) -> None:
    (page,) = secondary_capture(model, ct, explanation=explanation, most=1)
    uid = explanation.volume.report.sop_instance_uids[explanation.hottest]
    assert page.SourceImageSequence[0].ReferencedSOPInstanceUID == uid
    with pytest.raises(ConversionError, match="most"):
        secondary_capture(model, ct, most=0)


def test_the_same_gives_the_same_file(model: medimg.TransferClassifier, xray: Path) -> None:
    (first,), (second,) = (secondary_capture(model, xray, created=NOON) for _ in range(2))
    assert save(first) == save(second)
    other = "normal" if "nodule" in first.SeriesDescription else "nodule"
    (another,) = secondary_capture(model, xray, target=other)
    assert another.SeriesInstanceUID != first.SeriesInstanceUID


def test_dciodvfy_accepts_pages(
    model: medimg.TransferClassifier, ct: Path, xray: Path, tmp_path: Path
) -> None:
    for source in (ct, xray):
        page = secondary_capture(model, source, most=1)[0]
        assert complaints(page, tmp_path) == set()


def test_an_explanation_of_other_images_is_refused(
    model: medimg.TransferClassifier, ct: Path, xray: Path, explanation: medimg.Explanation
) -> None:
    with pytest.raises(GeometryError, match="voxels"):
        secondary_capture(model, xray, explanation=explanation)
    moved = explanation.volume.affine.copy()
    moved[0, 3] += 5
    volume = medimg.Volume(explanation.volume.array, moved, "CT", "HU")
    with pytest.raises(GeometryError, match="position"):
        secondary_capture(model, ct, explanation=medimg.explain(model, volume))


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_what_was_lossy_stays_lossy_and_burned_in_text_is_said(
    model: medimg.TransferClassifier, tmp_path: Path
) -> None:
    ds = make_instance(PIXELS, LossyImageCompression="01", LossyImageCompressionRatio="12.5")
    ds.LossyImageCompressionMethod, ds.BurnedInAnnotation = "ISO_10918_1", "YES"
    (page,) = secondary_capture(model, write(ds, tmp_path / "a.dcm"))
    assert (page.LossyImageCompression, page.LossyImageCompressionRatio) == ("01", 12.5)
    assert page.BurnedInAnnotation == "YES"
    assert complaints(page, tmp_path) == set()


@settings(max_examples=8, deadline=None)
@given(st.lists(st.text(max_size=200), min_size=1, max_size=3), st.integers(1, 700), st.integers(1, 40))
def test_any_caption_fits_below_any_image(lines: list[str], width: int, height: int) -> None:
    image = np.full((height, width, 3), 7, np.uint8)
    found = add_caption(image, lines)
    factor = found.shape[1] // width
    assert found.shape[1] == factor * width >= 480
    assert (found[: height * factor] == 7).all()
    assert found.shape[0] > height * factor
