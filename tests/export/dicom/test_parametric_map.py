"""Parametric maps: values and positions, as they are read again."""

from __future__ import annotations

from pathlib import Path

import highdicom as hd
import numpy as np
import pytest

import medimg
from medimg.errors import ConversionError
from medimg.export import parametric_map
from tests.dicom_files import make_instance, write, write_stack
from tests.export.dicom.checks import NOON, complaints, save


def test_it_is_read_at_the_position_of_the_source(
    model: medimg.TransferClassifier, ct: Path, explanation: medimg.Explanation, tmp_path: Path
) -> None:
    result = parametric_map(model, ct, explanation=explanation)
    path = tmp_path / "pm.dcm"
    result.save_as(path)
    found = medimg.read(path)
    np.testing.assert_array_equal(found.array[0], explanation.heat)
    np.testing.assert_allclose(found.affine, explanation.volume.affine, atol=1e-4)
    again = hd.pm.ParametricMap.from_dataset(hd.imread(path))
    assert again.get_volume(allow_missing_positions=False).spatial_shape == explanation.heat.shape
    sources = {uid for _, _, uid in again.get_source_image_uids()}
    assert sources == set(explanation.volume.report.sop_instance_uids)
    for keyword in (
        "FrameOfReferenceUID",
        "SeriesDate",
        "SeriesTime",
        "ReferencedSeriesSequence",
        "Modality",
    ):
        assert result.get(keyword), keyword


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_sheared_and_single_slices(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    for n, positions in enumerate(([0.0, 2.0, 4.0], [7.0])):
        folder = tmp_path / str(n)
        write_stack(folder, positions, shear=0.3, FrameOfReferenceUID="1.2.3.5")
        found = medimg.explain(model, folder)
        path = tmp_path / "pm.dcm"
        parametric_map(model, folder, explanation=found).save_as(path)
        again = medimg.read(path)
        columns = slice(None) if len(positions) > 1 else slice(1, None)
        np.testing.assert_allclose(again.affine[:, columns], found.volume.affine[:, columns], atol=1e-4)
        np.testing.assert_array_equal(again.array[0], found.heat)


def test_some_slices(model: medimg.TransferClassifier, ct: Path, tmp_path: Path) -> None:
    found = medimg.explain(model, ct, slices=[1, 2])
    path = tmp_path / "pm.dcm"
    parametric_map(model, ct, explanation=found).save_as(path)
    again = medimg.read(path)
    np.testing.assert_allclose(again.affine, found.to_volume().affine, atol=1e-4)
    np.testing.assert_array_equal(again.array[0], found.heat)


def test_dciodvfy_accepts_maps(
    model: medimg.TransferClassifier, ct: Path, explanation: medimg.Explanation, tmp_path: Path
) -> None:
    first, second = (parametric_map(model, ct, explanation=explanation, created=NOON) for _ in range(2))
    assert complaints(first, tmp_path) == set()
    assert save(first) == save(second)


def test_images_without_position_are_refused(model: medimg.TransferClassifier, xray: Path) -> None:
    with pytest.raises(ConversionError, match="ImagePositionPatient"):
        parametric_map(model, xray)


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_a_position_without_spacing_is_refused(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    pixels = np.arange(48 * 40, dtype=np.int16).reshape(48, 40)
    path = write(make_instance(pixels, PixelSpacing=None, FrameOfReferenceUID="1.2.3.5"), tmp_path / "a.dcm")
    with pytest.raises(ConversionError, match="PixelSpacing"):
        parametric_map(model, path)
