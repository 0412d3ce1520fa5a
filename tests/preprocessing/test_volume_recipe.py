"""Recipes of volumes, ``Preprocess(dims=3)``, against a plain reference, torch and MONAI."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import medimg
from medimg.adapt.shift import _compute_item_statistics, compute_statistics
from medimg.core import geometry
from medimg.core.window import Window
from medimg.errors import MedimgError, MedimgWarning, PreprocessError
from medimg.evaluation.report.example_images import to_pixels
from tests.dicom_files import write_stack
from tests.preprocessing.reference import seen, triangle

RNG = np.random.default_rng(3)
AXIAL = geometry.affine_from_slices([5, 6, 7], [0, 0, 3], [1, 0, 0, 0, 1, 0], [0.8, 0.6])


def ct(shape: tuple[int, int, int] = (9, 24, 20), **fields: Any) -> medimg.Volume:
    array = RNG.integers(-1024, 2000, (1, *shape)).astype(np.int16)
    return replace(medimg.Volume(array, AXIAL, "CT", "HU"), **fields)


def reference(volume: medimg.Volume, recipe: medimg.Preprocess) -> npt.NDArray[np.float64]:
    """(C, D, H, W), 0 to 1, in float64: windowed slices, then one matrix for each axis."""
    volume = volume.reorient("SPL") if recipe.orientation == "display" else volume
    if recipe.spacing is not None:
        volume = volume.resample(recipe.spacing)
    windows = recipe.window if isinstance(recipe.window, tuple) else (recipe.window,)
    size = recipe.image_shape[1:]
    lengths = [n * step for n, step in zip(volume.shape[1:], volume.spacing, strict=True)]
    ratios = [n / length for n, length in zip(size, lengths, strict=True)]
    scale = {"pad": min(ratios), "crop": max(ratios), "stretch": None}[recipe.fit]
    inner = size if scale is None else [max(1, round(length * scale)) for length in lengths]
    channels = []
    for window in windows:
        values = np.stack([seen(volume, recipe, window, d, d) for d in range(volume.shape[1])])
        for axis, count in enumerate(inner):
            values = np.moveaxis(
                np.tensordot(triangle(values.shape[axis], count), values, (1, axis)), 0, axis
            )
        for axis, want in enumerate(size):
            cut = max(0, values.shape[axis] - want)
            values = np.take(values, range(cut // 2, cut // 2 + min(want, values.shape[axis])), axis)
        room = [want - have for want, have in zip(size, values.shape, strict=True)]
        pads = [(n // 2, n - n // 2) for n in room]
        channels.append(np.pad(values, pads, constant_values=recipe.fill_value))
    return np.stack(channels)


@pytest.mark.parametrize(
    "fields",
    [
        {"window": "lung"},
        {"fit": "crop", "size": (6, 10, 13), "fill": 0.5},
        {"fit": "stretch", "size": 17, "window": "percentile"},
        {"window": ((-600, 1500), (40, 400), "bone"), "size": (16, 11, 30), "fill": 0.25},
        {"spacing": 1.5, "size": (12, 16, 14)},
        {"orientation": "stored", "size": (30, 9, 12)},
    ],
)
def test_volumes_equal_a_plain_float64_reference(fields: dict[str, Any]) -> None:
    recipe = medimg.Preprocess(dims=3, **{"size": (12, 20, 18), **fields})
    padding = np.zeros((1, 9, 24, 20), bool)
    padding[:, :, :5] = True
    volume = ct()
    for one in (volume, replace(volume, inverted=True).reorient("PRS"), replace(volume, padding=padding)):
        found = recipe.render(one)
        assert found.planes.shape == (1, *recipe.image_shape)
        assert np.abs(found.planes[0].numpy() - reference(one, recipe)).max() < 1e-3
        assert torch.equal(recipe(one), recipe.normalize(found.planes)[0])


def test_a_volume_is_upright_whatever_the_axes_of_its_array() -> None:
    volume, recipe = ct(), medimg.Preprocess(dims=3, size=(10, 14, 16), window="bone")
    expected = recipe(volume)
    assert expected.shape == (1, 10, 14, 16)
    for code in ("IAR", "PIL", "RIP", "LSA"):
        assert torch.allclose(recipe(volume.reorient(code)), expected, atol=1e-5), code


def test_enlarging_equals_interpolation_by_torch_and_by_world_coordinates_of_monai() -> None:
    from monai.data.meta_tensor import MetaTensor
    from monai.transforms.spatial.array import SpatialResample

    volume = ct((6, 8, 7))
    window = Window(400, 3000, "LINEAR_EXACT")
    recipe = medimg.Preprocess(dims=3, size=(12, 20, 21), fit="stretch", window=window)
    found = recipe(volume)
    shown = torch.from_numpy(window.apply(volume.array)).float()
    by_torch = F.interpolate(shown[None], size=(12, 20, 21), mode="trilinear", align_corners=False)[0]
    assert torch.allclose(found, by_torch, atol=1e-5)
    # the outer edges stay in place
    scale = np.array(volume.shape[1:]) / (12, 20, 21)
    target = volume.affine @ np.diag([*scale, 1.0])
    target[:3, 3] = volume.affine[:3, :3] @ ((scale - 1) / 2) + volume.affine[:3, 3]
    here, there = (torch.from_numpy(geometry.ras_from_lps(a)) for a in (volume.affine, target))
    image = MetaTensor(shown.permute(0, 3, 2, 1), affine=here)
    resample = SpatialResample(mode="bilinear", padding_mode="border", dtype=np.float64)
    by_monai: Any = resample(image, dst_affine=there, spatial_size=(21, 20, 12))
    assert torch.allclose(found, by_monai.as_tensor().permute(0, 3, 2, 1).float(), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(
    shape=st.tuples(*(st.integers(1, 12),) * 3),
    size=st.tuples(*(st.integers(1, 14),) * 3),
    steps=st.tuples(*(st.sampled_from([0.5, 1.0, 3.0]),) * 3),
    fit=st.sampled_from(["pad", "crop", "stretch"]),
)
def test_constant_volumes_stay_constant(shape: Any, size: Any, steps: Any, fit: Any) -> None:
    affine = np.diag([*steps, 1.0])[[2, 1, 0, 3]]
    volume = medimg.Volume(np.full((1, *shape), 25, np.uint8), affine, display_range=(0, 100))
    planes = medimg.Preprocess(dims=3, size=size, fit=fit, fill=0.75).render(volume).planes[0]
    assert planes.shape == (1, *size)
    inside = (planes - 0.25).abs() < 1e-5
    assert (inside | ((planes - 0.75).abs() < 1e-5)).all()
    assert inside.any()
    assert fit == "pad" or inside.all()


def test_a_series_read_in_pieces_gives_the_same_bits_and_names_its_middle_slice(tmp_path: Path) -> None:
    write_stack(tmp_path, [0, 2, 4, 6, 8])
    series, volume = medimg.scan(tmp_path)[0], medimg.read(tmp_path)
    recipe = medimg.Preprocess(dims=3, size=(4, 16, 16), window="soft_tissue")
    found, whole = recipe.render(series), recipe.render(volume)
    assert torch.equal(found.planes, whole.planes)
    assert found.slices == whole.slices == (2,)
    assert found.sop_instance_uids == whole.sop_instance_uids == (volume.report.sop_instance_uids[2],)
    assert found.report.transforms[-1] == f"preprocessed by recipe {recipe.fingerprint}"
    assert recipe.count(series) == 1
    resampled = recipe.replace(spacing=1.0)
    assert torch.equal(resampled(series), resampled(volume))
    assert resampled.render(volume).slices == (2,)


@pytest.mark.parametrize(
    "fields",
    [
        {"size": (64, 64)},
        {"size": 0},
        {"size": (2048, 1024, 1024)},
        {"slices": "middle"},
        {"slices": 4},
        {"channels": "adjacent"},
        {"dims": 4},
        {"dims": True},
        {"dims": "3"},
        {"mean": (0.5, 0.5, 0.5)},
    ],
)
def test_unsound_recipes_of_volumes_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PreprocessError):
        medimg.Preprocess(**{"dims": 3, **fields})


def test_a_volume_that_would_grow_without_bounds_is_refused() -> None:
    flat = medimg.Volume(np.zeros((1, 1, 500, 500), np.uint8), np.diag([0.01, 1, 1, 1.0]))
    with pytest.raises(PreprocessError, match="would grow"):
        medimg.Preprocess(dims=3, size=96, fit="crop")(flat)
    with pytest.raises(PreprocessError, match="select"):
        medimg.Preprocess(dims=3, size=8)(medimg.Volume(np.zeros((2, 3, 4, 4)), geometry.image_affine()))


def test_buffers_and_many_sources_in_three_dimensions() -> None:
    volumes = [ct(), ct((5, 30, 20))]
    recipe = medimg.Preprocess(dims=3, size=(8, 12, 10), mean=0.5, std=0.25)
    out = torch.empty(recipe.image_shape)
    expected = [recipe(volume) for volume in volumes]
    assert recipe(volumes[0], out=out).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected[0])
    with pytest.raises(PreprocessError, match=r"shape \(1, 8, 12, 10\); found \(1, 8, 12, 11\)"):
        recipe(volumes[0], out=torch.empty(1, 8, 12, 11))
    batch = medimg.read_tensors([volumes[0], "nowhere", volumes[1]], recipe)
    assert batch.counts == (1, 0, 1)
    assert torch.equal(batch.tensor, torch.stack(expected))
    assert torch.equal(batch[2][0], expected[1])
    shapes = [tuple(one.tensor.shape) for one in medimg.iter_tensors([volumes[0], "nowhere"], recipe)]
    assert shapes == [(1, 1, 8, 12, 10), (0, 1, 8, 12, 10)]
    with pytest.raises(PreprocessError, match="N or more, 1, 8, 12, 10"):
        medimg.read_tensors(volumes, recipe, out=torch.empty(2, 3, 12, 10))


def test_a_network_in_3d_is_trained_on_a_dataset_of_volumes(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    series = [tmp_path / name for name in "ab"]
    for n, folder in enumerate(series):
        uids: dict[str, Any] = {
            "SeriesInstanceUID": f"1.2.9.{n}",
            "StudyInstanceUID": f"1.2.8.{n}",
            "PatientID": f"P{n}",
        }
        write_stack(folder, [0.0, 2.0, 4.0][: 3 - n], **uids)
    rows = [f"{folder},{n % 2}" for n, folder in enumerate(series)]
    table.write_text("path,label\n" + "\n".join(rows) + "\n")
    recipe = medimg.Preprocess(dims=3, size=(4, 8, 8), window="lung")
    plain = medimg.ImageDataset.from_csv(table, preprocess=recipe)
    cached = medimg.ImageDataset.from_csv(
        table, preprocess=recipe, cache=medimg.ImageCache(tmp_path / "cache", dtype="float32")
    )
    assert (len(plain), plain.unit) == (len(series), "series")
    for n in range(len(plain)):
        image, label = plain[n]
        assert image.shape == (1, 4, 8, 8)
        assert label == n % 2
        assert torch.equal(image, recipe(plain.series[n]))
        # made, and read again
        assert torch.equal(cached[n][0], image)
    again = medimg.ImageDataset.from_csv(
        table, preprocess=recipe, cache=medimg.ImageCache(tmp_path / "cache", dtype="float32")
    )
    assert torch.equal(again[1][0], plain[1][0])
    network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(2, 2))
    loader = DataLoader(plain, batch_size=2, collate_fn=medimg.collate)
    for batch in loader:
        assert batch.images.shape == (2, 1, 4, 8, 8)
        assert batch.mask is None
        loss = F.cross_entropy(network(batch.images), batch.labels)
        loss.backward()
    flat = plain.with_preprocess(medimg.Preprocess(window="lung", size=8))
    assert flat[0][0].shape == (3, 3, 8, 8)
    gray = (recipe.render(plain.series[0]).planes[0, 0]).double()
    assert np.allclose(
        _compute_item_statistics(plain, [0])[0], compute_statistics(gray).mean(dim=0), atol=1e-5
    )
    assert to_pixels(plain[0][0], recipe).shape == (8, 8)


def test_what_is_in_2d_says_so(tmp_path: Path) -> None:
    for recipe, message in (
        (medimg.Preprocess(dims=3, size=32), "dims=3"),
        (medimg.Preprocess(channels="single", size=32), 'channels="single"'),
    ):
        for name in ("squeezenet1_1", "vit_b_32"):
            with pytest.raises(PreprocessError, match=message):
                medimg.TransferClassifier(name, classes=["a", "b"], weights=None, preprocess=recipe)


def test_a_preset_on_a_volume_without_hounsfield_units_warns() -> None:
    mr = medimg.Volume(RNG.integers(0, 900, (1, 4, 8, 8)).astype(np.int16), AXIAL)
    recipe = medimg.Preprocess(dims=3, size=8, window="lung")
    with pytest.warns(MedimgWarning, match="Hounsfield"):
        recipe(mr)
    with pytest.raises(MedimgError, match="Hounsfield"):
        recipe(replace(mr, modality="MR"))
