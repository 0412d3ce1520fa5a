"""nibabel images: forms, units, scaling, axes, colors, other formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

import medimg
from medimg.errors import ReadError
from tests.interop.libraries import make_affine, make_volume

RAS = np.array([[-1.0, 0.1, 0, 5], [0.1, -2, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]])


def _images() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 99, (4, 3, 2)).astype(np.int16)
    scaled = nib.Nifti1Image(data, RAS)
    scaled.header.set_slope_inter(0.5, -3)
    meters = nib.Nifti1Image(data, RAS)
    meters.header.set_xyzt_units("meter")
    quaternion = nib.Nifti1Image(data, None)
    quaternion.set_qform(np.diag([-1.0, -2, 3, 1]), 1)
    colors = rng.integers(0, 255, (4, 3, 2, 4), dtype=np.uint8)
    rgb = colors[..., :3].copy().view(np.dtype([(c, "u1") for c in "RGB"]))[..., 0]
    rgba = colors.view(np.dtype([(c, "u1") for c in "RGBA"]))[..., 0]
    return {
        "plain": nib.Nifti1Image(data, RAS),
        "second version": nib.Nifti2Image(data, RAS),
        "slope": scaled,
        "meters": meters,
        "qform": quaternion,
        "no form": nib.Nifti1Image(data, None),
        "time": nib.Nifti1Image(rng.random((4, 3, 2, 5), np.float32), RAS),
        "vector": nib.Nifti1Image(rng.random((4, 3, 2, 1, 5), np.float32), RAS),
        "vector of bytes": nib.Nifti1Image(colors[..., None, :3].copy(), RAS),
        "flat": nib.Nifti1Image(data[..., 0], RAS),
        "rgb": nib.Nifti1Image(rgb, RAS),
        "rgba": nib.Nifti1Image(rgba, RAS),
    }


@pytest.mark.parametrize("kind", _images())
def test_an_image_is_read_as_its_file_is(kind: str, tmp_path: Path) -> None:
    nib.save(_images()[kind], tmp_path / "a.nii")
    wanted = medimg.read(tmp_path / "a.nii")
    for image in (nib.load(tmp_path / "a.nii"), _images()[kind]):
        found = medimg.read(image)
        if kind != "slope" or image.file_map["image"].filename:
            np.testing.assert_allclose(found.array, wanted.array, atol=1e-6)
        np.testing.assert_allclose(found.affine, wanted.affine, rtol=1e-6, atol=1e-4)
        assert (found.space, found.photometric, found.shape) == (
            wanted.space,
            wanted.photometric,
            wanted.shape,
        )


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", ["straight", "oblique", "sheared", "left-handed"])
def test_files_that_nibabel_writes_of_our_volumes_are_read_as_these(
    kind: Any, suffix: str, tmp_path: Path
) -> None:
    for volume in (
        make_volume(affine=make_affine(kind)),
        make_volume("float32", affine=make_affine(kind), channels=3),
        make_volume("uint8", affine=make_affine(kind), color=True),
        make_volume(space="image"),
    ):
        nib.save(medimg.to_nibabel(volume), tmp_path / f"a{suffix}")
        found = medimg.read(tmp_path / f"a{suffix}")
        np.testing.assert_array_equal(found.array, volume.array)
        np.testing.assert_allclose(found.affine, volume.affine, atol=1e-4)
        assert (found.space, found.photometric) == (volume.space, volume.photometric)


def test_both_forms_of_a_rotation_are_equal() -> None:
    image = medimg.to_nibabel(make_volume())
    assert (int(image.header["sform_code"]), int(image.header["qform_code"])) == (1, 1)
    np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
    sheared = medimg.to_nibabel(make_volume(affine=make_affine("sheared")))
    assert (int(sheared.header["sform_code"]), int(sheared.header["qform_code"])) == (1, 0)


def test_other_formats() -> None:
    data = np.arange(24, dtype=np.int16).reshape(4, 3, 2)
    found = medimg.from_nibabel(nib.MGHImage(data, RAS))
    np.testing.assert_array_equal(found.array[0], data.T)
    np.testing.assert_allclose(found.affine[:3, 2], [1, -0.1, 0])
    for kind in (nib.AnalyzeImage, nib.Spm99AnalyzeImage):
        with pytest.raises(ReadError, match="ANALYZE, in which left and right are ambiguous"):
            medimg.from_nibabel(kind(data, np.eye(4)))
    with pytest.raises(ReadError, match="either time or a vector"):
        medimg.from_nibabel(nib.Nifti1Image(np.zeros((2, 2, 2, 2, 2), np.int16), RAS))
    with pytest.raises(ReadError, match="complex64"):
        medimg.from_nibabel(nib.Nifti1Image(np.zeros((2, 2, 2), np.complex64), RAS))


def test_an_axis_too_long_for_the_first_version_is_of_the_second() -> None:
    volume = medimg.Volume(np.zeros((1, 1, 1, 40_000), np.uint8), np.eye(4))
    assert type(medimg.to_nibabel(volume)) is nib.Nifti2Image
