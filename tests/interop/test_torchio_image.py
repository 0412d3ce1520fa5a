"""TorchIO: its own transforms on our volumes, and back; lazy images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import medimg
from medimg.core import geometry
from tests.interop.libraries import make_affine, make_volume

tio = pytest.importorskip("torchio")


def _positions(volume: medimg.Volume) -> dict[Any, Any]:
    index = np.indices(volume.shape[1:]).reshape(3, -1).T
    return dict(
        zip(volume.array[0].ravel().tolist(), geometry.index_to_lps(volume.affine, index), strict=True)
    )


@pytest.mark.parametrize("kind", ["oblique", "sheared", "left-handed"])
def test_values_keep_their_positions_through_transforms(kind: Any) -> None:
    volume = make_volume(affine=make_affine(kind))
    for transform in (tio.ToCanonical(), tio.ToOrientation("PIL"), tio.Crop((1, 1, 1, 0, 1, 1))):
        found = medimg.from_torchio(transform(medimg.to_torchio(volume)))
        before, after = _positions(volume), _positions(found)
        for value, point in after.items():
            np.testing.assert_allclose(point, before[value], atol=1e-5)
        # a crop is a new image to TorchIO
        assert (found.modality, found.units) == (
            ("", "raw") if isinstance(transform, tio.Crop) else ("CT", "HU")
        )


@pytest.mark.parametrize("kind", ["oblique", "sheared"])
def test_resampled_values_are_those_at_their_positions(kind: Any) -> None:
    affine = make_affine(kind)
    slope = np.array([0.5, -1.0, 2.0])
    index = np.indices((8, 10, 12)).reshape(3, -1).T
    array = (geometry.index_to_lps(affine, index) @ slope).reshape(1, 8, 10, 12).astype(np.float32)
    image = medimg.to_torchio(medimg.Volume(array, affine))
    found = medimg.from_torchio(tio.Resample((0.6, 0.6, 1.5))(image))
    inner = np.indices(found.shape[1:]).reshape(3, -1).T
    inside = ((inner > 1) & (inner < np.array(found.shape[1:]) - 3)).all(axis=1)
    wanted = geometry.index_to_lps(found.affine, inner[inside]) @ slope
    np.testing.assert_allclose(found.array[0].ravel()[inside], wanted, atol=0.02)


def test_labels_are_a_label_map() -> None:
    assert isinstance(medimg.to_torchio(make_volume("uint8"), label=True), tio.LabelMap)
    assert isinstance(medimg.to_torchio(make_volume("uint8")), tio.ScalarImage)


def test_a_subject_of_our_images_is_transformed_together() -> None:
    volume = make_volume("uint8")
    subject = tio.Subject(image=medimg.to_torchio(volume), label=medimg.to_torchio(volume, label=True))
    turned = tio.Flip(("R",))(subject)
    np.testing.assert_array_equal(
        medimg.from_torchio(turned["image"]).array, medimg.from_torchio(turned["label"]).array
    )


def test_an_image_of_a_file_is_read_when_it_is_needed_and_stays_unloaded(tmp_path: Path) -> None:
    import nibabel as nib

    volume = make_volume()
    nib.save(medimg.to_nibabel(volume), tmp_path / "a.nii.gz")
    image = tio.ScalarImage(tmp_path / "a.nii.gz")
    series = medimg.scan(image)[0]
    assert series.shape == volume.shape
    np.testing.assert_array_equal(medimg.read(image).array, volume.array)
    np.testing.assert_allclose(medimg.read(image).affine, volume.affine, atol=1e-4)
    assert not image._loaded
