"""Tensors of the caller, and devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medimg
from medimg.core.geometry import image_affine
from medimg.core.volume import Volume
from medimg.errors import PreprocessError
from medimg.io.series import Series
from medimg.preprocessing import intensity
from medimg.preprocessing.intensity import normalize_channel
from medimg.preprocessing.preprocess import Preprocess, to_tensor
from tests.dicom_files import write_stack

RECIPE = Preprocess(size=(24, 32), window="lung")


def volume(dtype: str = "i2", depth: int = 5, **fields: Any) -> Volume:
    array = np.random.default_rng(3).integers(0, 2000, (1, depth, 40, 50)).astype(dtype)
    return replace(Volume(array, image_affine((2.0, 0.9, 0.7)), "CT", "HU"), **fields)


def test_pictures_go_into_the_first_places() -> None:
    buffer = torch.full((7, 3, 24, 32), 99.0)
    found = RECIPE(volume(), out=buffer)
    assert found.data_ptr() == buffer.data_ptr()
    assert torch.equal(found, RECIPE(volume()))
    assert found.shape == (5, 3, 24, 32)
    assert bool((buffer[5:] == 99).all())
    other = RECIPE(volume(inverted=True), out=buffer)
    assert torch.equal(other, RECIPE(volume(inverted=True)))
    assert not torch.equal(other, RECIPE(volume()))
    assert torch.equal(to_tensor(volume(), out=buffer, **RECIPE.to_dict()), RECIPE(volume()))


def test_fresh_tensors_are_not_shared() -> None:
    first = RECIPE(volume())
    kept = first.clone()
    RECIPE(volume(inverted=True))
    assert torch.equal(first, kept)


@pytest.mark.parametrize(
    "out",
    [
        torch.empty(4, 3, 24, 32),
        torch.empty(5, 1, 24, 32),
        torch.empty(5, 3, 32, 24),
        torch.empty(5, 3, 24),
        torch.empty(5, 3, 24, 32, dtype=torch.float16),
        torch.empty(5, 3, 24, 32, dtype=torch.float64),
        torch.empty(5, 3, 32, 24).transpose(2, 3),
        torch.empty(10, 3, 24, 32)[::2],
        torch.empty(5, 3, 24, 32, device="meta"),
        np.empty((5, 3, 24, 32), np.float32),
        "buffer",
    ],
    ids=[
        "few",
        "channels",
        "swapped",
        "axes",
        "half",
        "double",
        "strided",
        "every other",
        "meta",
        "numpy",
        "text",
    ],
)
def test_an_unfit_tensor_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: Any
) -> None:
    write_stack(tmp_path, [0.0, 2.0, 4.0, 6.0, 8.0])
    (series,) = medimg.scan(tmp_path)

    def refuse(*_: object, **__: object) -> Volume:
        raise AssertionError("pixels were read")

    monkeypatch.setattr(Series, "read", refuse)
    monkeypatch.setattr(Series, "pieces", refuse)
    for source in (series, volume()):
        with pytest.raises(PreprocessError, match="out"):
            RECIPE(source, device="cpu", out=out)


def test_devices_that_are_none() -> None:
    devices: tuple[Any, ...] = (
        "gpu",
        "cpu:x",
        "meta",
        3.5,
        *(() if torch.cuda.is_available() else ("cuda",)),
    )
    for device in devices:
        with pytest.raises(PreprocessError, match="device"):
            RECIPE(volume(), device=device)


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_the_cpu_is_a_device(device: Any) -> None:
    assert torch.equal(RECIPE(volume(), device=device), RECIPE(volume()))
    assert torch.equal(RECIPE.render(volume(), device=device).planes, RECIPE.render(volume()).planes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_cuda_gives_what_the_cpu_gives(dtype: str) -> None:
    values = np.random.default_rng(3).integers(0, 120, (1, 5, 300, 200)).astype(dtype)
    padded = np.random.default_rng(4).random(values.shape) < 0.1
    plain = Volume(values, image_affine((2.0, 0.9, 0.7)), "CT", "HU")
    for image in (plain, replace(plain, padding=padded, inverted=True), plain.reorient("IAR")):
        for window in (
            medimg.Window(60, 90),
            medimg.Window(60, 90, "SIGMOID"),
            medimg.Window(60, 1),
            "percentile",
        ):
            for fields in ({}, {"fit": "crop"}, {"channels": "adjacent"}):
                recipe = Preprocess(window=window, **fields)  # type: ignore[arg-type]  # several types
                found = recipe(image, device="cuda")
                assert found.device.type == "cuda"
                assert float((found.cpu() - recipe(image)).abs().max()) < 2e-3
                buffer = torch.empty(9, 3, 224, 224, device="cuda")
                assert torch.equal(recipe(image, out=buffer), found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_tensor_on_another_device_is_refused() -> None:
    with pytest.raises(PreprocessError, match="device"):
        RECIPE(volume(), device="cuda", out=torch.empty(5, 3, 24, 32))


@pytest.mark.parametrize("shape", [(1, 224, 224), (3, 7, 9), (0, 4, 4)])
def test_small_channels_are_normalized_to_the_same_bits(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By one thread of NumPy, as by all of torch."""
    image = torch.rand(shape, generator=torch.Generator().manual_seed(1))
    small, large = torch.empty(shape), torch.empty(shape)
    for mean, std in ((0.485, 0.229), (0.456, 0.224), (0.5, 0.3)):
        normalize_channel(small, image, mean, std)
        with monkeypatch.context() as patch:
            patch.setattr(intensity, "_SMALL", -1)
            normalize_channel(large, image, mean, std)
        assert torch.equal(small, large)
