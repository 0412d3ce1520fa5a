"""Arrays rendered without torch, against the tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medimg import Preprocess, Volume, Window
from medimg.core.geometry import image_affine
from medimg.core.window import LookupTable
from medimg.errors import PreprocessError
from medimg.preprocessing import _slice_renderer

_TABLE = LookupTable(first=-50, entries=(np.arange(400) ** 1.5).astype(np.uint16), bits=16)
WINDOWS: dict[str, Any] = {
    "preset": "lung",
    "percentiles": "percentile",
    "sigmoid": Window(40.0, 300.0, "SIGMOID"),
    "exact": Window(40.3, 0.7, "LINEAR_EXACT"),
    "step": Window(20.0, 1.0),
    "beyond single precision": Window(0.0, 1e33),
    "three": ("lung", "bone", Window(40.0, 80.0, "SIGMOID")),
    "table": "dicom",
}


def make_volume(dtype: Any, *, inverted: bool = False, padded: bool = False, turned: bool = False) -> Volume:
    values = np.random.default_rng(0).normal(0, 300, (1, 5, 40, 31))
    if np.dtype(dtype).kind == "u":
        values = np.abs(values)
    array = values.astype(dtype)
    if array.dtype.kind == "f":
        array[0, 1, 3:6, 4:9] = np.nan
    affine = image_affine((2.0, 0.7, 0.9))
    if turned:
        affine = affine @ np.diag([-1.0, 1.0, -1.0, 1.0])
    padding = np.zeros(array.shape, np.bool_) if padded else None
    if padding is not None:
        padding[0, :, :7] = True
    return Volume(
        array, affine, "CT", "HU", inverted=inverted, voi=((_TABLE,),), padding=padding, space="patient"
    )


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("window", WINDOWS)
def test_arrays_are_the_tensors(window: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(_slice_renderer, "load_library", lambda: None)
    for dtype in ("i2", "u2", "u1", "f4", "i4", ">i2", "f8"):
        for fit, turned in (("pad", False), ("crop", True)):
            recipe = Preprocess(window=WINDOWS[window], size=(24, 33), fit=fit, fill=0.25)  # type: ignore[arg-type]  # of any kind
            volume = make_volume(dtype, inverted=turned, padded=turned, turned=turned)
            expected = recipe.render(volume).planes.numpy()
            found = recipe.render_array(volume)
            assert found.shape == (5, 3, 24, 33)
            assert expected.std() > 0.01
            np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=2e-6)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("channels", ["repeat", "single", "adjacent"])
def test_colors_and_neighbors(channels: Any, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(_slice_renderer, "load_library", lambda: None)
    colors = np.random.default_rng(1).integers(0, 256, (3, 4, 20, 30), np.uint8)
    recipe = Preprocess(size=32, channels=channels, slices=3)
    for volume in (
        Volume(colors, image_affine(), photometric="RGB", space="image"),
        Volume(colors[:1], image_affine(), "MR", space="image"),
    ):
        expected = recipe.render(volume).planes.numpy()
        found = recipe.render_array(volume)
        assert found.shape == (3, recipe.n_channels, 32, 32)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=2e-6)


def test_resampling_and_an_image_without_values() -> None:
    recipe = Preprocess(window="lung", size=32, spacing=1.5)
    volume = make_volume("i2")
    # without the compiled core, torch and NumPy round differently
    np.testing.assert_allclose(
        recipe.render_array(volume)[:, :1], recipe.render(volume).planes.numpy()[:, :1], rtol=0, atol=1e-6
    )
    with pytest.raises(PreprocessError, match="not finite"):
        Preprocess(window=(0, 100)).render_array(np.full((2, 8, 8), np.nan, np.float32))
    with pytest.raises(PreprocessError, match="tensors alone"):
        Preprocess(dims=3, size=16).render_array(volume)
