from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import medimg
from medimg.core import geometry
from medimg.errors import DecodeError, MedimgError, NotAnImageError, ReadError, TruncatedError

RNG = np.random.default_rng(11)
CODES = ["".join(c) for order in permutations(("LR", "PA", "SI")) for c in product(*order)]
AFFINE = np.array([[0.6, 0, 0, -10], [0, 0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1.0]])


def save(path: Path, array: Any, affine: Any = AFFINE, kind: Any = nib.Nifti1Image, **header: Any) -> Path:
    image = kind(array, affine)
    for name, value in header.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_and_places(tmp_path: Path, name: str, kind: Any) -> None:
    array = RNG.integers(-1000, 1000, (4, 5, 6)).astype(np.int16)
    volume = medimg.read(save(tmp_path / name, array, kind=kind))
    assert volume.shape == (1, 6, 5, 4)
    assert volume.array.dtype == np.int16
    for i, j, k in np.ndindex(4, 5, 6):
        assert volume.array[0, k, j, i] == array[i, j, k]
    lps = geometry.index_to_lps(volume.affine, (3, 2, 1))
    ras = AFFINE @ [1, 2, 3, 1]
    assert np.allclose(lps, [-ras[0], -ras[1], ras[2]])


@pytest.mark.parametrize("code", CODES)
def test_all_orientations_hold_the_same_patient(tmp_path: Path, code: str) -> None:
    array = RNG.integers(0, 99, (4, 5, 6)).astype(np.int16)
    original = nib.Nifti1Image(array, AFFINE)
    turned = original.as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(code))
    )
    nib.save(turned, tmp_path / "turned.nii")
    nib.save(original, tmp_path / "original.nii")
    volume = medimg.read(tmp_path / "turned.nii").reorient("SPL")
    expected = medimg.read(tmp_path / "original.nii").reorient("SPL")
    assert np.array_equal(volume.array, expected.array)
    assert np.allclose(volume.affine, expected.affine, atol=1e-5)


def test_time_points_are_channels(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (4, 5, 6, 3)).astype(np.int16)
    path = save(tmp_path / "a.nii", array, pixdim=[1, 0.6, 0.8, 2.5, 2.0, 0, 0, 0])
    series = medimg.scan(path)[0]
    assert series.shape == (3, 6, 5, 4)
    assert list(series.frame_times or ()) == [0, 2, 4]
    volume = series.read([1, 2])
    assert np.array_equal(volume.select(2).array[0], array[..., 1:3, 2].transpose(2, 1, 0))


def test_rgb(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (4, 5, 6, 3)).astype(np.uint8)
    structured = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    volume = medimg.read(save(tmp_path / "a.nii", structured))
    assert volume.is_color
    assert volume.array[:, 2, 1, 0].tolist() == rgb[0, 1, 2].tolist()


def test_slopes_and_byte_order(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (4, 5, 6)).astype(np.int16)
    image = nib.Nifti1Image(array, AFFINE, nib.Nifti1Header(endianness=">"))
    image.header.set_slope_inter(2, -7)
    path = tmp_path / "a.nii"
    nib.save(image, path)
    loaded: Any = nib.load(path)
    expected = loaded.get_fdata()
    volume = medimg.read(path)
    assert np.allclose(volume.array[0].transpose(2, 1, 0), expected)
    assert volume.array.dtype.isnative


def test_the_sform_wins_over_the_qform_and_codes_of_0_place_nothing(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), AFFINE)
    image.set_qform(np.diag([3.0, 3, 3, 1]), 1)
    image.set_sform(AFFINE, 2)
    nib.save(image, tmp_path / "both.nii")
    image.set_sform(None, 0)
    nib.save(image, tmp_path / "qform.nii")
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "none.nii")
    assert medimg.read(tmp_path / "both.nii").spacing == pytest.approx((2.5, 0.8, 0.6))
    assert medimg.read(tmp_path / "qform.nii").spacing == pytest.approx((3, 3, 3))
    assert medimg.read(tmp_path / "none.nii").space == "image"


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
def test_complex_numbers_are_refused(tmp_path: Path, dtype: type) -> None:
    with pytest.raises(MedimgError, match="complex"):
        medimg.read(save(tmp_path / "a.nii", np.zeros((4, 5, 6), dtype)))


def test_damaged_nifti(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((4, 5, 6), np.int16))
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(MedimgError, match="bytes"):
        medimg.read(path)
    path.write_bytes(b"not a header" * 40)
    with pytest.raises(NotAnImageError):
        medimg.read(path)
    zipped = save(tmp_path / "a.nii.gz", RNG.integers(0, 9999, (20, 20, 20)).astype(np.int16))
    zipped.write_bytes(zipped.read_bytes()[:-60])
    with pytest.raises((TruncatedError, DecodeError)):
        medimg.read(zipped)


def test_every_nifti_of_the_data_set_equals_nibabel(real_data: Path) -> None:
    compared = 0
    for path in sorted((real_data / "dicom_misc" / "nifti_space_dev").rglob("*.nii.gz")):
        image: Any = nib.load(path)
        if image.get_data_dtype().kind == "c":
            continue
        volume = medimg.read(path)
        if volume.is_color:
            continue
        values = np.asarray(image.dataobj).reshape((*image.shape[:3], -1))
        assert np.allclose(volume.array.transpose(3, 2, 1, 0), values, rtol=1e-5, equal_nan=True)
        if volume.space == "patient":
            assert np.allclose(geometry.ras_from_lps(volume.affine), image.affine)
        compared += 1
    assert compared > 15


@pytest.mark.parametrize("suffix", ["png", "jpg", "no-extension"])
def test_gray_pictures(tmp_path: Path, suffix: str) -> None:
    gray = np.repeat(RNG.integers(0, 256, (3, 4)).astype(np.uint8), 8, axis=0).repeat(8, axis=1)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(gray).save(path, "JPEG" if suffix == "jpg" else "PNG", quality=95)
    volume = medimg.read(path)
    assert volume.shape == (1, 1, 24, 32)
    assert np.array_equal(volume.array[0, 0], np.asarray(Image.open(path)))
    assert volume.space == "image"


def test_16_bit_and_palette_and_turned_pictures(tmp_path: Path) -> None:
    deep = RNG.integers(0, 65536, (6, 8)).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(medimg.read(tmp_path / "deep.png").array[0, 0], deep)
    rgb = RNG.integers(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(rgb).quantize(8).save(tmp_path / "palette.png")
    assert medimg.read(tmp_path / "palette.png").is_color
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(tmp_path / "turned.png", exif=exif)
    assert medimg.scan(tmp_path / "turned.png")[0].shape == (3, 1, 8, 6)
    turned = medimg.read(tmp_path / "turned.png")
    assert np.array_equal(turned.array[:, 0], np.rot90(rgb, -1).transpose(2, 0, 1))


def test_gray_in_three_channels_is_gray(tmp_path: Path) -> None:
    gray = RNG.integers(0, 256, (6, 8)).astype(np.uint8)
    Image.fromarray(np.stack([gray] * 3, axis=-1)).save(tmp_path / "a.png")
    volume = medimg.read(tmp_path / "a.png")
    assert np.array_equal(volume.array[0, 0], gray)
    assert not volume.is_color
    tinted = np.stack([gray, gray, gray // 2], axis=-1)
    Image.fromarray(tinted).save(tmp_path / "b.png")
    assert medimg.read(tmp_path / "b.png").is_color


def test_damaged_pictures(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(RNG.integers(0, 256, (60, 80)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TruncatedError):
        medimg.read(path)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"junk" * 20)
    with pytest.raises(ReadError):
        medimg.read(path)


def test_units_are_millimeters_and_seconds(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((4, 5, 6, 2), np.int16), np.diag([50.0, 50, 50, 1]))
    image.header.set_xyzt_units("micron", "msec")
    image.header["pixdim"][4] = 2000
    nib.save(image, tmp_path / "a.nii")
    series = medimg.scan(tmp_path / "a.nii")[0]
    assert series.spacing == pytest.approx((0.05, 0.05, 0.05))
    assert list(series.frame_times or ()) == pytest.approx([0, 2])


def test_arrays_outlive_their_file(tmp_path: Path) -> None:
    array = RNG.integers(0, 99, (40, 50, 60)).astype(np.int16)
    path = save(tmp_path / "a.nii", array)
    volume = medimg.read(path)
    path.write_bytes(b"")
    assert np.array_equal(volume.array[0].transpose(2, 1, 0), array)


def test_color_over_time_and_singular_affines_are_refused(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (4, 5, 6, 2, 3)).astype(np.uint8)
    structured = rgb.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    with pytest.raises(DecodeError, match="time points"):
        medimg.read(save(tmp_path / "a.nii", structured))
    image = nib.Nifti1Image(np.zeros((4, 5, 6), np.int16), None)
    image.set_sform(np.diag([0.0, 0, 0, 1]), 1)
    nib.save(image, tmp_path / "b.nii")
    with pytest.raises(MedimgError, match="affine"):
        medimg.read(tmp_path / "b.nii")
    assert len(medimg.scan(tmp_path / "b.nii").skipped) == 1
