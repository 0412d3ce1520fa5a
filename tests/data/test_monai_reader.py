"""The image reader for MONAI against medimg's own reading and MONAI's own reader."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.data.image_reader import ImageReader, NibabelReader
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.io.array import LoadImage
from monai.transforms.io.dictionary import LoadImaged
from monai.transforms.spatial.array import Orientation
from monai.transforms.utility.array import EnsureChannelFirst
from PIL import Image

import medimg
from medimg.core import geometry
from medimg.errors import GeometryError, MedimgError
from tests.dicom_files import write_stack
from tests.sampling import SLOW, sample

SETS = (
    "dicom_qa/me", "dicom_qa/enh", "dicom_qa/ts", "dicom_qa/mosaic_ep2d", "dicom_misc/nifti_space_dev",
    "dicom_misc/nifti_reader_js", "dicom_misc/highdicom", "dicom_misc/torchxrayvision_cxr",
)  # fmt: skip
MOST_VOXELS = 2**22

#: LoadImage tries all readers of MONAI, also one without its decoder
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader")


def assert_same_places(image: Any, volume: medimg.Volume) -> None:
    """Values and world coordinates of marked voxels of a MetaTensor, channel first, are those of a volume."""
    assert image.shape == (volume.shape[0], *volume.shape[:0:-1])
    assert np.array_equal(
        image.numpy().transpose(0, 3, 2, 1), volume.array.astype(np.float32), equal_nan=True
    )
    points = np.random.default_rng(0).integers(0, volume.shape[1:], (8, 3))
    lps = geometry.index_to_lps(volume.affine, points)
    ras = np.c_[points[:, ::-1], np.ones(len(points))] @ np.asarray(image.affine).T
    assert np.allclose(ras[:, :3], lps * (-1, -1, 1), atol=1e-3)


def test_the_class_is_one_of_monai() -> None:
    assert issubclass(medimg.MedImgReader, ImageReader)
    reader = pickle.loads(pickle.dumps(medimg.MedImgReader(on_missing="warn")))
    assert isinstance(reader, medimg.MedImgReader)
    assert reader.reading == {"on_missing": "warn"}


def test_a_folder_of_dicom_by_class_instance_and_name(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4, 6])
    volume = medimg.read(tmp_path)
    for reader in (medimg.MedImgReader, medimg.MedImgReader(on_missing="warn"), "medimg.MedImgReader"):
        image = Compose([LoadImage(reader=reader), EnsureChannelFirst()])(tmp_path)
        assert_same_places(image, volume)
    loaded = LoadImage(reader=medimg.MedImgReader)(tmp_path)
    assert loaded.meta["spatial_shape"].tolist() == list(volume.shape[:0:-1])
    assert loaded.meta["space"] == "RAS"
    assert np.isnan(loaded.meta["original_channel_dim"])
    assert (loaded.meta["modality"], loaded.meta["units"]) == ("CT", "HU")
    assert torch.equal(torch.as_tensor(loaded.meta["original_affine"]), loaded.affine)
    # all files, as a list, are the same series
    assert torch.equal(LoadImage(reader=medimg.MedImgReader)(sorted(tmp_path.iterdir())), loaded)
    by_class: Any = medimg.MedImgReader()
    by_key = LoadImaged(keys="image", reader=by_class)({"image": tmp_path})
    assert torch.equal(by_key["image"], loaded)
    # values keep their type, and may be written to
    array, _ = medimg.MedImgReader().get_data(medimg.MedImgReader().read(tmp_path))
    assert array.dtype == volume.array.dtype
    assert array.flags.writeable
    # MONAI's transforms keep the places
    turned = Orientation("RAS", labels=None)(EnsureChannelFirst()(loaded))
    assert_same_places(turned, volume.reorient("SAR"))


def test_nifti_equals_the_reader_of_monai(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    affine = np.array([[-1.5, 0.2, 0, 4], [0.1, 2, 0.3, -7], [0, 0.1, 2.5, 9], [0, 0, 0, 1]])
    for shape in ((5, 6, 7), (5, 6, 7, 2)):
        nibabel.save(
            nibabel.Nifti1Image(rng.normal(size=shape).astype(np.float32), affine), tmp_path / "a.nii.gz"
        )
        ours, theirs = (
            Compose([LoadImage(reader=reader), EnsureChannelFirst()])(tmp_path / "a.nii.gz")
            for reader in (medimg.MedImgReader, NibabelReader)
        )
        assert torch.equal(ours.as_tensor(), theirs.as_tensor())
        assert torch.allclose(ours.affine, theirs.affine, atol=1e-6)
    # several files are channels
    rng_values = rng.normal(size=(5, 6, 7)).astype(np.float32)
    paths = [tmp_path / f"{n}.nii" for n in range(3)]
    for n, path in enumerate(paths):
        nibabel.save(nibabel.Nifti1Image(rng_values + n, affine), path)
    # a Compose would load each of them by itself
    both: list[Any] = [
        EnsureChannelFirst()(LoadImage(reader=r)(paths)) for r in (medimg.MedImgReader, NibabelReader)
    ]
    assert torch.equal(both[0].as_tensor(), both[1].as_tensor())
    nibabel.save(nibabel.Nifti1Image(rng_values, np.eye(4)), paths[1])
    reader = medimg.MedImgReader()
    with pytest.raises(GeometryError, match="differ"):
        reader.get_data(reader.read(paths))


def test_colors_are_channels(tmp_path: Path) -> None:
    rgb = np.random.default_rng(2).integers(0, 256, (6, 9, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    image = Compose([LoadImage(reader=medimg.MedImgReader), EnsureChannelFirst()])(tmp_path / "a.png")
    assert image.shape == (3, 9, 6, 1)
    assert np.array_equal(image[..., 0].numpy(), rgb.transpose(2, 1, 0))


def test_what_can_be_read_is_told_by_its_contents(tmp_path: Path) -> None:
    reader = medimg.MedImgReader()
    write_stack(tmp_path / "ct", [0, 2])
    named = tmp_path / "noname"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(named, "PNG")
    (tmp_path / "text.nii").write_text("no image")
    assert reader.verify_suffix(tmp_path / "ct")
    assert reader.verify_suffix([named, str(named)])
    assert not reader.verify_suffix(tmp_path / "text.nii")
    assert not reader.verify_suffix(tmp_path / "nowhere.nii")
    with pytest.raises(MedimgError):
        reader.read(tmp_path / "text.nii")
    loader = LoadImage()
    loader.register(reader)
    assert loader(tmp_path / "ct").shape[-1] == 2


@pytest.mark.slow
def test_series_of_the_data_sets_are_ours_by_world_coordinates(real_data: Path) -> None:
    reader = medimg.MedImgReader(on_missing="keep")
    tops = [
        f"{top}/{p.name}" for top in ("cls", "dicom_misc", "dicom_qa") for p in (real_data / top).iterdir()
    ]
    compared = 0
    for part in tops if SLOW else sample(SETS, 2):
        for series in sample(medimg.scan(real_data / part), 5):
            if np.prod(series.shape) > MOST_VOXELS:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    volume = series.read(on_missing="keep")
                except MedimgError as error:
                    with pytest.raises(type(error)):
                        reader.read(series)
                    continue
                array, metadata = reader.get_data(reader.read(series))
            image = MetaTensor(torch.from_numpy(array.astype(np.float32)), meta=metadata)
            assert_same_places(EnsureChannelFirst()(image), volume)
            compared += 1
    assert compared >= 4
