"""Windows, values and recipes that single precision or JSON has no room for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medimg.core.display import render
from medimg.core.geometry import image_affine
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import PreprocessError
from medimg.preprocessing.preprocess import Preprocess
from tests.preprocessing.reference import reference_planes

FUNCTIONS = ["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def volume(array: Any, **facts: Any) -> Volume:
    return Volume(np.asarray(array), image_affine((1.0, 1.0, 1.0)), **facts)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("inverted", [False, True])
@pytest.mark.parametrize(
    ("center", "width"),
    [
        (1e300, 10), (-1e300, 10), (0, 1e300), (1e300, 1), (-4e38, 5), (4.5, 1e-40), (4.5, 1e-300),
        (4.5, 1 + 1e-12), (1e30, 1e30), (1e31, 1e31), (-1e31, 1e32), (5, 1), (4.5, 1e-29), (4.5, 1e-31),
    ],
)  # fmt: skip
def test_windows_of_any_size(function: Any, inverted: bool, center: float, width: float) -> None:
    if function == "LINEAR" and width < 1:
        pytest.skip("no such window")
    array = np.arange(2 * 8 * 8, dtype=np.int16).reshape(1, 2, 8, 8) % 11
    image = volume(array, inverted=inverted)
    recipe = Preprocess(size=8, window=Window(center, width, function))
    found = recipe.render(image).planes
    assert torch.isfinite(found).all()
    with np.errstate(over="ignore"):
        expected = reference_planes(image, recipe)
    np.testing.assert_allclose(found.expand(-1, 3, -1, -1).numpy(), expected, atol=1e-5)


def test_a_constant_image_and_one_of_tiny_numbers_have_pictures() -> None:
    for array in (np.zeros((1, 1, 8, 8)), np.arange(64.0).reshape(1, 1, 8, 8) * 1e-42):
        planes = Preprocess(size=8, window="percentile").render(volume(array.astype(np.float32))).planes
        assert torch.isfinite(planes).all()


def test_values_beyond_single_precision_are_black_or_white() -> None:
    array = np.zeros((1, 1, 1, 4))
    array[..., :] = (1e300, -1e300, np.inf, np.nan)
    recipe = Preprocess(size=(1, 4), window="lung")
    assert recipe.render(volume(array)).planes.flatten().tolist() == [1, 0, 0, 0]


def test_colors_that_are_no_numbers_are_black() -> None:
    array = np.full((3, 1, 4, 4), 0.5, np.float32)
    array[:, :, 0, 0] = np.nan
    planes = Preprocess(size=4).render(volume(array, photometric="RGB")).planes
    assert torch.isfinite(planes).all()
    assert planes[0, :, 0, 0].tolist() == [0, 0, 0]
    assert planes[0, :, 3, 3].tolist() == [0.5, 0.5, 0.5]


def test_numbers_of_numpy_are_numbers() -> None:
    three = (np.float32(0.5),) * 3
    of_numpy: dict[str, Any] = {
        "size": (np.int64(5), np.int64(6)), "slices": np.int64(2), "spacing": np.int64(2), "mean": three,
        "std": three, "percentiles": (np.int64(1), np.int64(99)), "fill": np.float32(0.5),
    }  # fmt: skip
    plain = Preprocess(
        size=(5, 6), slices=2, spacing=2, mean=(0.5,) * 3, std=(0.5,) * 3, percentiles=(1, 99), fill=0.5
    )
    assert Preprocess(**of_numpy).fingerprint == plain.fingerprint
    of_numpy["spacing"] = three
    assert Preprocess(**of_numpy).fingerprint == plain.replace(spacing=(0.5, 0.5, 0.5)).fingerprint


@pytest.mark.parametrize(
    "fields",
    [
        {"std": (1e-300, 1, 1)},
        {"mean": (1e300, 1, 1)},
        {"spacing": ("1", "1", "1")},
        {"spacing": np.ones(3)},
    ],
)
def test_unsound_recipes(fields: Any) -> None:
    with pytest.raises(PreprocessError):
        Preprocess(**fields)


@pytest.mark.parametrize("window", [Window(40, 400), "auto", "percentile", Window(0, 1, "SIGMOID")])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spacing", [None, (1.0, 1.0, 1.0)])
def test_an_image_without_a_value_is_an_error(window: Any, bad: float, spacing: Any) -> None:
    recipe = Preprocess(size=8, window=window, spacing=spacing)
    empty = volume(np.full((1, 3, 9, 9), bad, np.float32))
    with pytest.raises(PreprocessError, match="padding or not finite"):
        recipe(empty)
    with pytest.raises(PreprocessError, match="padding or not finite"):
        render(empty, window=window)
    array = empty.array.copy()
    array[0, 1, 4, 4] = 7
    assert recipe(volume(array)).isfinite().all()


def test_an_image_of_nothing_but_padding_is_an_error() -> None:
    padding = np.ones((1, 3, 9, 9), np.bool_)
    empty = volume(np.zeros((1, 3, 9, 9), np.int16), padding=padding)
    with pytest.raises(PreprocessError, match="padding or not finite"):
        Preprocess(size=8, window=Window(40, 400))(empty)
    padding[0, 1, 4, 4] = False
    some = volume(np.zeros((1, 3, 9, 9), np.int16), padding=padding)
    assert len(Preprocess(size=8, window=Window(40, 400))(some)) == 3
