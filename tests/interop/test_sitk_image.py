"""SimpleITK images: shapes, metadata of DICOM, filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

import medimg
from medimg.errors import GeometryError, ReadError
from tests.dicom_files import make_instance, write
from tests.interop.libraries import make_affine, make_volume


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({}, ("CT", "HU", False)),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ("CT", "raw", False)),
        ({"Modality": "MR"}, ("MR", "raw", False)),
        ({"PresentationLUTShape": "INVERSE"}, ("CT", "HU", True)),
        (
            {"Modality": "CR", "ImagePositionPatient": None, "ImageOrientationPatient": None},
            ("CR", "raw", False),
        ),
    ],
)
def test_dicom_read_by_simpleitk_has_the_facts_of_our_reader(
    attributes: dict[str, Any], wanted: tuple[str, str, bool], tmp_path: Path
) -> None:
    path = write(
        make_instance(np.arange(12 * 16, dtype=np.uint16).reshape(12, 16), **attributes), tmp_path / "a.dcm"
    )
    ours, theirs = medimg.read(path), medimg.read(sitk.ReadImage(str(path)))
    assert (theirs.modality, theirs.units, theirs.inverted) == wanted
    assert (ours.modality, ours.units, ours.inverted, ours.space) == (*wanted, theirs.space)
    np.testing.assert_array_equal(ours.array, theirs.array)
    np.testing.assert_allclose(ours.affine, theirs.affine)


@pytest.mark.parametrize("shape", [None, "INVERSE"])
def test_values_that_simpleitk_inverts_are_not_inverted_again(shape: str | None, tmp_path: Path) -> None:
    pixels = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16)
    facts = {"PhotometricInterpretation": "MONOCHROME1", "Modality": "CT"}
    dataset = make_instance(pixels, **facts, **({"PresentationLUTShape": shape} if shape else {}))
    found = medimg.read(sitk.ReadImage(str(write(dataset, tmp_path / "a.dcm"))))
    assert found.array[0, 0, 0, 0] > found.array[0, 0, -1, -1]
    assert (found.inverted, found.photometric, found.units) == (False, "MONOCHROME2", "raw")


def test_filters_of_simpleitk_on_our_volumes() -> None:
    volume = make_volume("float32", affine=make_affine("left-handed"))
    image = medimg.to_sitk(volume)
    found = medimg.from_sitk(sitk.Flip(image, [True, False, False]))
    same = {value: i for i, value in enumerate(volume.array.ravel().tolist())}
    flat = [np.unravel_index(same[v], volume.shape)[1:] for v in found.array.ravel().tolist()]
    before = np.array(flat) @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    index = np.indices(found.shape[1:]).reshape(3, -1).T
    np.testing.assert_allclose(index @ found.affine[:3, :3].T + found.affine[:3, 3], before, atol=1e-6)


@pytest.mark.parametrize(
    ("suffix", "channels"), [(".nii.gz", 1), (".nii.gz", 4), (".mha", 1), (".mha", 4), (".nrrd", 1)]
)
def test_files_that_simpleitk_writes_of_our_volumes_are_read_as_these(
    suffix: str, channels: int, tmp_path: Path
) -> None:
    volume = make_volume(channels=channels)
    sitk.WriteImage(medimg.to_sitk(volume), str(tmp_path / f"a{suffix}"))
    found = medimg.read(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(found.array, volume.array)
    np.testing.assert_allclose(found.affine, volume.affine, atol=1e-4)


def test_dimensions() -> None:
    flat = sitk.Image([6, 5], sitk.sitkUInt8)
    flat.SetSpacing([0.5, 0.25])
    found = medimg.from_sitk(flat)
    assert (found.shape, found.space, found.spacing) == ((1, 1, 5, 6), "image", (1.0, 0.25, 0.5))
    rgb = medimg.from_sitk(sitk.Image([6, 5], sitk.sitkVectorUInt8, 3))
    assert (rgb.shape, rgb.is_color) == ((3, 1, 5, 6), True)
    vector = medimg.from_sitk(sitk.Image([6, 5, 4], sitk.sitkVectorFloat32, 2))
    assert (vector.shape, vector.is_color) == ((2, 4, 5, 6), False)
    for image in (sitk.Image([6, 5, 4], sitk.sitkComplexFloat32), sitk.Image([2] * 5, sitk.sitkUInt8)):
        with pytest.raises(ReadError, match="expected 2 to 4 dimensions"):
            medimg.from_sitk(image)
    mixed = sitk.Image([2] * 4, sitk.sitkUInt8)
    turn = np.eye(4)
    turn[[2, 3]] = turn[[3, 2]]
    mixed.SetDirection(turn.ravel().tolist())
    with pytest.raises(ReadError, match="mix its fourth dimension"):
        medimg.from_sitk(mixed)


def test_a_sheared_image_of_simpleitk_is_read_as_it_is() -> None:
    image = sitk.Image([6, 5, 4], sitk.sitkUInt8)
    image.SetDirection([1, 0.2, 0, 0, 1, 0, 0, 0, 1])
    found = medimg.from_sitk(image)
    np.testing.assert_allclose(found.affine[:3, 1], [0.2, 1, 0])
    with pytest.raises(GeometryError, match="perpendicular"):
        medimg.to_sitk(found)


def test_keys_of_the_same_name_with_other_contents_are_ignored() -> None:
    image = sitk.Image([6, 5, 4], sitk.sitkUInt8)
    for key in ("photometric", "inverted", "geometry", "channels", "display_range", "dtype"):
        image.SetMetaData(key, "[banana")
    found = medimg.from_sitk(image)
    assert (found.photometric, found.inverted, found.space, found.display_range) == (
        "MONOCHROME2", False, "patient", None,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["UInt8", "UInt16", "UInt32", "UInt64"])
def test_a_label_map_is_an_image_of_its_labels(kind: str) -> None:
    labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 5
    image = sitk.GetImageFromArray(labels)
    image.SetSpacing((0.5, 0.75, 2.0))
    image.SetOrigin((5.0, 6.0, 7.0))
    label_map = sitk.Cast(image, getattr(sitk, f"sitkLabel{kind}"))
    label_map.SetMetaData("0008|0060", "CT")
    found = medimg.read(label_map)
    np.testing.assert_array_equal(found.array[0], labels)
    assert found.array.dtype == np.dtype(kind.lower())
    assert found.modality == "CT"
    np.testing.assert_array_equal(found.affine, medimg.read(image).affine)
