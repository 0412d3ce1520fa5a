"""MetaTensors: MONAI's own readers and transforms on our volumes, and back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import (
    Compose,
    EnsureChannelFirst,
    Flip,
    LoadImage,
    Orientation,
    Resize,
    ScaleIntensity,
    Spacing,
    SpatialCrop,
)

import medimg
from medimg.core import geometry
from medimg.errors import ConversionError, GeometryError, ReadError
from tests.dicom_files import make_instance, write
from tests.interop.libraries import make_affine, make_volume

RAS = np.diag([-1.0, -2.0, 3.0, 1.0])


def _positions(volume: medimg.Volume) -> dict[Any, Any]:
    """Return the position of each value."""
    index = np.indices(volume.shape[1:]).reshape(3, -1).T
    return dict(
        zip(volume.array[0].ravel().tolist(), geometry.index_to_lps(volume.affine, index), strict=True)
    )


@pytest.mark.parametrize(
    "transform",
    [
        Orientation("RAS", labels=None),
        Orientation("PIL", labels=None),
        Flip(1),
        SpatialCrop(roi_start=(1, 1, 1), roi_end=(5, 4, 3)),
    ],
    ids=["RAS", "PIL", "flip", "crop"],
)
@pytest.mark.parametrize("kind", ["oblique", "sheared", "left-handed"])
def test_values_keep_their_positions_through_transforms(transform: Any, kind: Any) -> None:
    volume = make_volume(affine=make_affine(kind))
    found = medimg.from_monai(transform(medimg.to_monai(volume)))
    before, after = _positions(volume), _positions(found)
    assert set(after) <= set(before)
    for value, point in after.items():
        np.testing.assert_allclose(point, before[value], atol=1e-6)
    assert (found.modality, found.units) == ("CT", "HU")


@pytest.mark.parametrize(
    "transform", [Spacing((1.0, 1.0, 1.0)), Resize((12, 10, 8))], ids=["spacing", "resize"]
)
def test_resampled_values_are_those_at_their_positions(transform: Any) -> None:
    """A linear image of the position stays one, wherever its voxels are."""
    affine = make_affine()
    index = np.indices((8, 10, 12)).reshape(3, -1).T
    slope = np.array([0.5, -1.0, 2.0])
    array = (geometry.index_to_lps(affine, index) @ slope).reshape(1, 8, 10, 12).astype(np.float32)
    found = medimg.from_monai(transform(medimg.to_monai(medimg.Volume(array, affine))))
    inner = np.indices(found.shape[1:]).reshape(3, -1).T
    inside = ((inner > 1) & (inner < np.array(found.shape[1:]) - 3)).all(axis=1)
    wanted = geometry.index_to_lps(found.affine, inner[inside]) @ slope
    np.testing.assert_allclose(found.array[0].ravel()[inside], wanted, atol=0.02)


def test_what_readers_of_monai_return_is_what_is_read_here(tmp_path: Path) -> None:
    import nibabel as nib
    from PIL import Image

    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(tmp_path / "color.png")
    Image.fromarray(rng.integers(0, 255, (20, 30), dtype=np.uint8)).save(tmp_path / "gray.png")
    for shape in ((30, 20), (30, 20, 5), (30, 20, 5, 4)):
        nib.save(
            nib.Nifti1Image(rng.integers(0, 99, shape).astype(np.int16), RAS), tmp_path / f"{len(shape)}.nii"
        )
    plain = nib.Nifti1Image(rng.integers(0, 99, (3, 4, 5)).astype(np.int16), None)
    nib.save(plain, tmp_path / "unplaced.nii")
    write(make_instance(np.arange(12 * 16, dtype=np.uint16).reshape(12, 16)), tmp_path / "one.dcm")
    for path in sorted(tmp_path.iterdir()):
        wanted = medimg.read(path)
        reader = {".png": "PILReader", ".nii": "NibabelReader", ".dcm": "PydicomReader"}[path.suffix]
        for channel_first in (False, True):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a decoder for GPUs that is missing
                load = LoadImage(reader=reader, ensure_channel_first=channel_first, dtype=None)
                image = load(str(path))
            found = medimg.read(image)
            np.testing.assert_array_equal(found.array, wanted.array)
            np.testing.assert_allclose(found.affine, wanted.affine, atol=1e-6)
            assert found.space == wanted.space, path.name


def test_channels_that_may_be_first_or_last_are_an_error() -> None:
    meta = {"original_channel_dim": -1, "spatial_shape": np.array([4, 4, 4])}
    with pytest.raises(ReadError, match="channels first or last"):
        medimg.from_monai(MetaTensor(torch.zeros(4, 4, 4, 4), meta=meta))


def test_our_tensors_pass_ensure_channel_first_unchanged() -> None:
    tensor = medimg.to_monai(make_volume(channels=3))
    assert EnsureChannelFirst()(tensor).shape == tensor.shape == (3, 6, 5, 4)


def test_batches_and_pending_transforms_are_errors() -> None:
    batch = list_data_collate([medimg.to_monai(make_volume()), medimg.to_monai(make_volume())])
    assert batch.shape == (2, 1, 6, 5, 4)
    with pytest.raises(ReadError, match="decollate_batch"):
        medimg.from_monai(cast("Any", batch))
    lazy = Orientation("RAS", labels=None, lazy=True)(medimg.to_monai(make_volume()))
    with pytest.raises(ReadError, match="lazy transforms that are not applied yet"):
        medimg.from_monai(cast("Any", lazy))


def test_affines_to_lps_and_of_two_axes_are_followed() -> None:
    tensor = MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.tensor(RAS), meta={"space": "LPS"})
    np.testing.assert_array_equal(medimg.from_monai(tensor).affine[:3, 2], [-1, 0, 0])
    np.testing.assert_array_equal(
        medimg.from_monai(MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.tensor(RAS))).affine[:3, 2],
        [1, 0, 0],
    )
    flat = medimg.from_monai(
        MetaTensor(torch.zeros(1, 6, 5), affine=torch.diag(torch.tensor([0.5, 0.25, 1.0])))
    )
    assert (flat.space, flat.spacing, flat.shape) == ("image", (1.0, 0.25, 0.5), (1, 1, 5, 6))
    with pytest.raises(GeometryError, match="invertible"):
        medimg.from_monai(MetaTensor(torch.zeros(1, 6, 5, 4), affine=torch.zeros(4, 4)))


@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_colors_keep_their_white(dtype: str, scale: bool) -> None:
    """MONAI's transforms return float32, in the range of the integers or scaled."""
    volume = make_volume(dtype, color=True)
    volume = volume.with_array(np.where(volume.array == 250, np.iinfo(dtype).max, volume.array))
    steps = [Flip(1), *([ScaleIntensity()] if scale else [])]
    found = medimg.from_monai(Compose(steps)(medimg.to_monai(volume).float()))
    assert found.is_color
    assert found.white == 1
    assert found.array.max() == 1
    if not scale:
        wanted = volume.array[..., ::1, :] / np.float32(np.iinfo(dtype).max)
        np.testing.assert_allclose(found.array[..., ::-1, :], wanted, atol=1e-6)


def test_values_for_display_stay_so_unless_they_are_converted() -> None:
    from PIL import Image

    volume = medimg.from_pil(Image.new("L", (4, 3), 7))
    assert volume.display_range == (0.0, 255.0)
    assert medimg.from_monai(medimg.to_monai(volume)).display_range == (0.0, 255.0)
    assert medimg.from_monai(cast("Any", medimg.to_monai(volume).float())).display_range is None


def test_types_without_an_equal_in_numpy_or_torch() -> None:
    found = medimg.from_monai(
        MetaTensor(torch.ones(1, 6, 5, 4, dtype=torch.bfloat16), affine=torch.tensor(RAS))
    )
    assert (found.array.dtype, found.report.transforms) == (np.dtype("float32"), ("bfloat16 to float32",))
    with pytest.raises(ReadError, match="complex64"):
        medimg.from_monai(MetaTensor(torch.ones(1, 6, 5, 4, dtype=torch.complex64), affine=torch.tensor(RAS)))
    big = medimg.Volume(np.full((1, 1, 2, 2), 2**63, np.uint64), np.eye(4))
    with pytest.raises(ConversionError, match=r"above 2\*\*63 - 1"):
        medimg.to_monai(big)
    gradient = MetaTensor(torch.ones(1, 6, 5, 4, requires_grad=True), affine=torch.tensor(RAS))
    assert medimg.from_monai(gradient).array.max() == 1
