from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from medimg.core import geometry
from medimg.core.display import choose_voi, compute_percentile_window, render
from medimg.core.read_report import ReadReport
from medimg.core.stack_repair import regrid_slices, shift_slices
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import GeometryError, PreprocessError

RNG = np.random.default_rng(5)


def make(shape: tuple[int, int, int, int] = (1, 6, 7, 8), **fields: object) -> Volume:
    array = RNG.integers(-1000, 1000, shape).astype(np.int16)
    affine = geometry.affine_from_slices([-5, 6, 7], [0, 0, 2], [1, 0, 0, 0, 1, 0], [0.8, 0.6])
    uids = tuple(f"1.{n}" for n in range(shape[1]))
    volume = Volume(array, affine, "CT", "HU", report=ReadReport("DICOM", sop_instance_uids=uids))
    return replace(volume, **fields)  # type: ignore[arg-type]  # on purpose


def test_arrays_are_read_only_and_the_input_stays_writable() -> None:
    mine = np.zeros((1, 2, 3, 4))
    volume = Volume(mine, geometry.image_affine())
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0] = 1
    mine[0] = 1


@pytest.mark.parametrize("shape", [(2, 3, 4), (1, 0, 3, 4), (1, 1, 1, 1, 1)])
def test_shapes_are_four_axes(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError):
        Volume(np.zeros(shape), geometry.image_affine())


def test_singular_affines_are_refused() -> None:
    with pytest.raises(GeometryError):
        Volume(np.zeros((1, 2, 3, 4)), np.zeros((4, 4)))


def test_with_array_keeps_the_place_and_refuses_another_size() -> None:
    volume = make()
    doubled = volume.with_array(volume.array * 2, step="doubled")
    assert np.array_equal(doubled.affine, volume.affine)
    assert doubled.report.transforms[-1] == "doubled"
    with pytest.raises(GeometryError):
        volume.with_array(volume.array[:, 1:])


def test_slice_facts_follow_a_flip() -> None:
    volume = make()
    flipped = volume.reorient("IPL")
    assert flipped.report.sop_instance_uids == volume.report.sop_instance_uids[::-1]
    assert np.array_equal(flipped.array, volume.array[:, ::-1])
    assert flipped.reorient("SPL").report.sop_instance_uids == volume.report.sop_instance_uids
    assert volume.reorient("LPS").report.sop_instance_uids == ()


def test_images_without_a_patient_are_not_reoriented() -> None:
    with pytest.raises(GeometryError):
        make(space="image").reorient("LPS")


def test_taking_slices() -> None:
    taken = make().take([1, 3, 5])
    assert taken.spacing[0] == pytest.approx(4)
    assert taken.report.sop_instance_uids == ("1.1", "1.3", "1.5")
    assert "unevenly" not in taken.report.transforms[-1]
    assert "unevenly" in make().take([0, 1, 5]).report.transforms[-1]
    for wrong in ([], [3, 1], [1, 1], [6], [-1, 2]):
        with pytest.raises(GeometryError):
            make().take(wrong)


def test_selecting_a_channel() -> None:
    volume = make((3, 2, 4, 4), channels=("e1", "e2", "e3"))
    assert np.array_equal(volume.select("e2").array, volume.array[1:2])
    assert volume.select(-1).channels == ("e3",)
    with pytest.raises(GeometryError):
        volume.select("e4")


def test_percentiles_by_counting_equal_numpys() -> None:
    for dtype in (np.int16, np.uint16, np.uint8, np.float32):
        array = RNG.normal(100, 30, (1, 3, 40, 40)).clip(0, 250).astype(dtype)
        window = compute_percentile_window(Volume(array, geometry.image_affine()), (0.5, 99.5))
        low, high = np.percentile(array.astype(np.float64), [0.5, 99.5])
        assert (window.center, window.width) == pytest.approx(((low + high) / 2, high - low), rel=1e-6)


def test_padding_takes_no_part_in_percentiles() -> None:
    array = np.full((1, 1, 10, 10), -2000, np.int16)
    array[..., 5:] = np.arange(5)
    padding = array == -2000
    plain = Volume(array, geometry.image_affine(), "MR", padding=padding)
    window = compute_percentile_window(plain, (0, 100))
    assert (window.center, window.width) == (2, 4)
    with pytest.raises(PreprocessError):
        compute_percentile_window(replace(plain, padding=np.ones_like(padding)))


def test_automatic_windows_go_by_modality() -> None:
    declared = ((Window(5, 10),),)
    assert choose_voi(make(voi=declared)) == (Window.preset("soft_tissue"),)
    assert choose_voi(make(voi=declared, modality="DX", units="raw")) == (Window(5, 10),)
    volume = make(voi=declared, modality="MR", units="raw")
    assert choose_voi(volume) == (compute_percentile_window(volume),)
    assert choose_voi(make(modality="DX", units="raw"))[0] not in declared[0]
    with pytest.raises(PreprocessError, match="Hounsfield"):
        choose_voi(volume, "lung")
    with pytest.raises(PreprocessError, match="declares 0"):
        choose_voi(make(), "dicom")


def test_windows_in_a_file_go_by_number_and_explanation() -> None:
    windows = (Window(1, 2, "LINEAR", "SOFT"), Window(3, 4, "LINEAR", "BONES"))
    volume = make(voi=(windows,))
    assert choose_voi(volume, 1) == (windows[1],)
    assert choose_voi(volume, "BONES") == (windows[1],)
    with pytest.raises(PreprocessError):
        choose_voi(volume, 2)


def test_pictures_are_upright_and_inverted_once() -> None:
    array = np.zeros((1, 1, 4, 6), np.int16)
    array[0, 0, 0, 0] = 100
    volume = Volume(array, geometry.image_affine(), "DX", voi=((Window.from_range(0, 100),),))
    assert render(volume)[0, 0] == 255
    assert render(replace(volume, inverted=True))[0, 0] == 0
    upside_down = geometry.affine_from_slices([0, 0, 0], [0, 0, 1], [-1, 0, 0, 0, -1, 0], [1, 1])
    placed = replace(volume, affine=upside_down, space="patient")
    assert render(placed)[-1, -1] == 255
    picture = Image.open(io.BytesIO(volume._repr_png_()))
    assert picture.size == (6, 4)


def test_nothing_of_the_files_stands_in_a_repr() -> None:
    report = ReadReport("DICOM", files=("/scans/Sentinel/1.dcm",), series_uid="1.2.3.9")
    volume = make(report=report)
    for text in (repr(volume), repr(report), str(report), volume._repr_html_()):
        assert "Sentinel" not in text
        assert "1.2.3.9" not in text


def test_gaps_are_interpolated_and_present_slices_unchanged() -> None:
    distances = np.array([0.0, 2.0, 4.0, 8.0, 10.0])
    array = (distances * 10).reshape(1, -1, 1, 1) * np.ones((1, 1, 3, 3))
    filled = regrid_slices(array.astype(np.int16), distances, 2.0)
    assert filled[0, :, 0, 0].tolist() == [0, 20, 40, 60, 80, 100]
    assert filled.dtype == np.int16


def test_deshearing_moves_slices_to_where_they_lie() -> None:
    array = np.zeros((1, 3, 9, 9), np.float32)
    array[0, :, 4, 4] = 1
    found = shift_slices(array, np.array([0.0, 1.0, 2.0]), np.array([0.0, -1.0, -0.5]))
    moved, outside = found.array, found.outside
    assert (found.first_row, found.first_column) == (0, -1)
    assert moved.shape == (1, 3, 11, 10)
    assert moved[0, 0, 4, 5] == 1
    assert moved[0, 1, 5, 4] == 1
    assert moved[0, 2, 6, 4] == moved[0, 2, 6, 5] == 0.5
    assert outside[0, 0, -2:].all()
    assert outside[0, 0, :, 0].all()
    assert not outside[0, 0, :9, 1:].any()
    assert outside[0, 1, 0].all()
    assert outside[0, 1, :, -1].all()


def test_deshearing_loses_nothing() -> None:
    array = RNG.integers(0, 99, (2, 5, 6, 7)).astype(np.int16)
    found = shift_slices(array, np.arange(5.0) * -2, np.arange(5.0) * 3)
    for d in range(5):
        rows, columns = slice(8 - 2 * d, 14 - 2 * d), slice(3 * d, 3 * d + 7)
        assert np.array_equal(found.array[:, d, rows, columns], array[:, d])
        assert found.outside[:, d].sum() == 2 * (14 * 19 - 6 * 7)


def test_files_follow_their_slices() -> None:
    report = ReadReport("DICOM", files=tuple(f"{n}.dcm" for n in range(6)), missing=(1,))
    volume = make(report=report)
    assert volume.take([1, 4]).report.files == ("1.dcm", "4.dcm")
    flipped = volume.reorient("IPL")
    assert flipped.report.files == report.files[::-1]
    assert flipped.report.missing == (3,)
