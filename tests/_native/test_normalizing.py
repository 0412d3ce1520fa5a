"""Compiled normalization of stored intensities: to the bit what NumPy gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medimg import Preprocess
from medimg._native.library import load_library
from medimg._native.normalizing import STORED_DTYPES, normalize
from medimg.data.cache.images import decode_intensity, normalize_images

pytestmark = pytest.mark.skipif(load_library() is None, reason="the compiled core is not used")


def run(images: list[Any], scales: list[tuple[float, float]], threads: int = 1) -> Any:
    library = load_library()
    assert library is not None
    out = np.full((len(images), len(scales), *images[0].shape[1:]), -7, np.float32)
    normalize(library, images, scales, out, threads)
    return out


def test_every_number_of_16_bits() -> None:
    stored = np.arange(2**16, dtype=np.uint16).view(np.float16)
    found = run([stored.reshape(1, 256, 256)], [(1.0, 0.0)])[0, 0].reshape(-1)
    expected = stored.astype(np.float32)
    numbers = ~np.isnan(expected)
    # 0 is added, so that -0 becomes 0
    assert np.array_equal(found[numbers].view(np.uint32), (expected[numbers] + np.float32(0)).view(np.uint32))
    assert np.isnan(found[~numbers]).all()


def test_every_number_of_8_bits() -> None:
    stored = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    found = run([stored], [(1.0, 0.0)])[0, 0]
    assert np.array_equal(found, stored[0].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("dtype", STORED_DTYPES)
@pytest.mark.parametrize("planes", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (50, 60), (3, 20, 40)])
@pytest.mark.parametrize("threads", [1, 3])
def test_images_of_any_type_and_size(dtype: Any, planes: int, size: tuple[int, ...], threads: int) -> None:
    rng = np.random.default_rng(3)
    images = [rng.random((planes, *size)) for _ in range(5)]
    stored = [(image * (255 if dtype == np.uint8 else 1)).astype(dtype) for image in images]
    scales = [(4.37, -2.12), (-0.3, 1e-3), (1e4, 7.0)]
    found = run(stored, scales, threads)
    for image, one in zip(found, stored, strict=True):
        decoded = decode_intensity(torch.from_numpy(one)).numpy()
        for channel, (factor, offset) in enumerate(scales):
            plane = decoded[channel if planes == 3 else 0]
            assert np.array_equal(image[channel], plane * np.float32(factor) + np.float32(offset))


def test_images_are_what_the_recipe_gives() -> None:
    recipe = Preprocess(window="dicom", size=(9, 11))
    generator = torch.Generator().manual_seed(0)
    given = [
        torch.rand(n, planes, 9, 11, generator=generator) for n, planes in ((2, 1), (1, 3), (6, 1), (1, 1))
    ]
    given[2] = given[2].half()
    given[3] = given[3].transpose(2, 3).contiguous().transpose(2, 3)  # not in one piece
    found = normalize_images(recipe, given)
    expected = torch.cat([recipe.normalize(decode_intensity(one)).reshape(-1, 3, 9, 11) for one in given])
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "shapes", [[(1, 8, 9)], [(2, 8, 8)], [(8, 8)], [(1, 8, 8), (3, 8, 8)], [(1, 8, 8)] * 3]
)
def test_images_that_do_not_fit_are_refused(shapes: list[tuple[int, ...]]) -> None:
    library = load_library()
    assert library is not None
    images = [np.zeros(shape, np.uint8) for shape in shapes]
    out = np.zeros((min(2, len(shapes)), 3, 8, 8), np.float32)
    with pytest.raises(ValueError, match="do not fit"):
        normalize(library, images, [(1.0, 0.0)] * 3, out, 1)
