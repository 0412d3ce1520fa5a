"""One channel, intensities from 0 to 1, windows as pairs, arrays as sources, and warnings about units."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

import medimg
from medimg.core import geometry
from medimg.core.window import Window
from medimg.errors import MedimgWarning, PreprocessError
from medimg.preprocessing.preprocess import IMAGENET_MEAN, IMAGENET_STD, RecipeFields

RNG = np.random.default_rng(11)
AFFINE = geometry.affine_from_slices([0, 0, 0], [0, 0, 2], [1, 0, 0, 0, 1, 0], [0.8, 0.6])

#: Fingerprints of recipes as they were written before there were volumes and one channel.
BEFORE: dict[str, dict[str, Any]] = {
    "b6a4f8b3a4f05cb5": {},
    "21d28aeef7d0bfef": {"window": "lung", "slices": 8},
    "932ea688f01c7f66": {"window": Window(-400, 900, "SIGMOID")},
    "e847805dbfda7a1a": {"window": ("lung", "pe", "mediastinum"), "size": (96, 64)},
    "c147263422c33525": {"channels": "adjacent", "spacing": (2.0, 1.0, 1.0)},
    "107d9f5c98bc7090": {"mean": (0.5,) * 3, "std": (0.25,) * 3, "fit": "crop", "fill": 0.5},
    "9c6c9b5e5941da4b": {"revision": 3, "orientation": "stored", "percentiles": (1.0, 99.0)},
}


def ct(shape: tuple[int, int, int] = (3, 20, 30)) -> medimg.Volume:
    return medimg.Volume(RNG.integers(-1024, 2000, (1, *shape)).astype(np.int16), AFFINE, "CT", "HU")


def test_recipes_written_before_keep_their_fingerprint_and_load() -> None:
    for fingerprint, given in BEFORE.items():
        recipe = medimg.Preprocess(**given)
        assert recipe.fingerprint == fingerprint
        written = json.loads(json.dumps(recipe.to_dict()))
        assert "dims" not in written
        assert medimg.Preprocess.from_dict(written) == recipe


def test_new_recipes_survive_json_and_differ() -> None:
    recipes = [
        medimg.Preprocess(channels="single"),
        medimg.Preprocess(channels="single", mean=0.5, std=(0.25,)),
        medimg.Preprocess(mean=None, std=None),
        medimg.Preprocess(mean=(0, 0, 0), std=(1, 1, 1)),
        medimg.Preprocess(window=(-600, 1500)),
        medimg.Preprocess(window=((-600, 1500), "bone", Window(1, 2))),
        medimg.Preprocess(dims=3, size=32),
        medimg.Preprocess(dims=3, size=(32, 32, 31)),
        medimg.Preprocess(size=32, channels="single"),
        medimg.Preprocess(dims=3, size=32, window=("lung", "bone", "brain")),
    ]
    for recipe in recipes:
        again = medimg.Preprocess.from_dict(json.loads(json.dumps(recipe.to_dict())))
        assert again == recipe
        assert again.fingerprint == recipe.fingerprint
    assert len({recipe.fingerprint for recipe in recipes}) == len(recipes)


def test_keywords_for_editors_are_the_fields() -> None:
    hints = get_type_hints(RecipeFields, localns={"SliceChoice": str, "Unpack": Any})
    assert set(hints) == {f.name for f in fields(medimg.Preprocess)}


def test_one_channel_is_the_one_that_is_repeated() -> None:
    volume = ct()
    repeated = medimg.Preprocess(window="lung", size=32)
    single = repeated.replace(channels="single")
    assert (single.mean, single.std) == (None, None)
    planes = repeated.render(volume).planes
    assert torch.equal(single(volume), planes)
    assert single(volume).shape == (3, 1, 32, 32)
    scaled = medimg.to_tensor(volume, window="lung", size=32, channels="single", mean=0.5, std=0.25)
    assert torch.allclose(scaled, (planes - 0.5) / 0.25, atol=1e-6)
    assert single.background.shape == (1, 1, 1)
    buffer = torch.empty(5, 1, 32, 32)
    assert torch.equal(single(volume, out=buffer), buffer[:3])
    leaf = planes.clone().requires_grad_()
    assert torch.allclose(single.replace(mean=0.5, std=0.25).normalize(leaf).detach(), scaled)


def test_intensities_from_0_to_1() -> None:
    volume = ct()
    planes = medimg.Preprocess(window="lung", size=32).render(volume).planes
    assert torch.equal(
        medimg.to_tensor(volume, window="lung", size=32, mean=None), planes.expand(-1, 3, -1, -1)
    )
    recipe = medimg.Preprocess(mean=None)
    assert (recipe.mean, recipe.std, recipe.normalization) == (None, None, ((0.0,) * 3, (1.0,) * 3))
    assert medimg.Preprocess(std=None).mean is None
    # a network in 2-D takes such images
    model = medimg.TransferClassifier(
        "squeezenet1_1", classes=["a", "b"], weights=None, preprocess=recipe.replace(size=32)
    )
    assert model(model.preprocess(volume)).shape == (3, 2)


def test_colors_become_their_luma(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (24, 24, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    found = medimg.to_tensor(tmp_path / "a.png", channels="single", size=24)
    expected = np.asarray(Image.fromarray(rgb).convert("L"), np.float64) / 255
    assert found.shape == (1, 1, 24, 24)
    assert np.abs(found[0, 0].numpy() - expected).max() < 1.01 / 255
    gray = np.repeat(rgb[..., :1], 3, axis=-1)
    assert torch.equal(
        medimg.to_tensor(gray, channels="single", size=24),
        medimg.to_tensor(gray[..., 0], channels="single", size=24),
    )
    with_images = medimg.Preprocess(dims=3, size=(1, 24, 24))(tmp_path / "a.png")
    assert torch.allclose(with_images, found[0][None], atol=1e-6)


def test_a_pair_is_a_window() -> None:
    assert medimg.Preprocess(window=(-600, 1500)) == medimg.Preprocess(window=Window(-600, 1500))
    both: Any = [[-600, 1500], (40, 400), "bone"]
    three = medimg.Preprocess(window=both)
    assert three.window == (Window(-600, 1500), Window(40, 400), "bone")
    assert three.channels == "windows"
    numbers: Any = (np.int64(40), np.float32(400))
    assert medimg.Preprocess(window=numbers).window == Window(40, 400)


@pytest.mark.parametrize(
    "given",
    [
        {"channels": "single", "mean": (0.5, 0.5, 0.5)},
        {"channels": "single", "std": 0},
        {"channels": "single", "window": ("lung", "bone", "brain")},
        {"mean": None, "std": (0.5, 0.5, 0.5)},
        {"std": None, "mean": (0.5, 0.5, 0.5)},
        {"mean": 0.5, "std": 0.5},
        {"window": (40, 0)},
        {"window": (float("nan"), 400)},
        {"window": (40, 400, 3)},
        {"window": (40,)},
        {"window": ("lung", 400)},
        {"window": ()},
    ],
)
def test_unsound_fields_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(PreprocessError):
        medimg.Preprocess(**given)


def test_arrays_and_tensors_are_volumes_without_geometry() -> None:
    recipe = medimg.Preprocess(size=16, window=(300, 900))
    array = RNG.integers(0, 900, (4, 12, 20)).astype(np.int16)
    volume = medimg.Volume(array[None], geometry.image_affine(), space="image")
    expected = recipe(volume)
    known: list[Any] = [array, array[None], torch.from_numpy(array)]
    for source in known:
        assert torch.equal(recipe(source), expected)
    assert torch.equal(recipe(array[1])[0], expected[1])
    with pytest.raises(PreprocessError, match="three slices or three colors"):
        recipe(array[:3])
    unknown: list[Any] = [array[None, None], array.astype(complex), np.zeros(5), np.zeros((0, 4, 4))]
    for source in unknown:
        with pytest.raises(PreprocessError, match="expected an array"):
            recipe(source)


def test_recipes_are_transforms_of_torchvision(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    recipe = medimg.Preprocess(size=24)
    expected = recipe(tmp_path / "a.png")
    from_path = v2.Compose([recipe, v2.RandomHorizontalFlip(p=1.0)])
    assert torch.equal(from_path(tmp_path / "a.png"), expected.flip(-1))
    image = tv_tensors.Image(torch.from_numpy(rgb).permute(2, 0, 1))
    pixels: list[Any] = [image, v2.ToDtype(torch.float32, scale=True)(image), rgb]
    for source in pixels:
        found = v2.Compose([recipe])(source)
        assert type(found) is torch.Tensor
        assert torch.allclose(found, expected, atol=1e-5)
    gray = tv_tensors.Image(torch.from_numpy(rgb[None, ..., 0]))
    assert torch.equal(recipe(gray), recipe(rgb[..., 0]))


def test_presets_warn_of_values_that_are_no_hounsfield_units(tmp_path: Path) -> None:
    import nibabel

    mr = RNG.integers(0, 900, (8, 8, 4)).astype(np.int16)
    for name, values in (("mr", mr), ("ct", mr - 1000)):
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / f"{name}.nii")
    volume = ct()
    sources: list[Any] = [
        tmp_path / "mr.nii",
        medimg.Volume(mr[None], AFFINE),
        mr.astype(np.float32),
        replace(volume, units="raw"),
    ]
    for source in sources:
        with pytest.warns(MedimgWarning, match=r"'lung' is in Hounsfield units.*preset\('lung'\)"):
            medimg.to_tensor(source, window="lung", size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for source in (tmp_path / "ct.nii", volume, mr - 1000):
            medimg.to_tensor(source, window="lung", size=8)
        medimg.to_tensor(tmp_path / "mr.nii", window=Window.preset("lung"), size=8)
        medimg.to_tensor(tmp_path / "mr.nii", window=(40, 400), size=8)


def test_the_mean_of_imagenet_is_that_of_three_channels() -> None:
    recipe = medimg.Preprocess(channels="single", mean=IMAGENET_MEAN, std=IMAGENET_STD)
    assert recipe == medimg.Preprocess(channels="single")
