"""The compiled painter against torch; the same bits on any number of threads and without wide vectors."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import medimg
from medimg import Preprocess, Window
from medimg._native.library import describe_library, load_library
from medimg.core.geometry import image_affine
from medimg.core.volume import Volume
from medimg.core.window import LookupTable
from medimg.errors import MedimgError
from medimg.preprocessing import _slice_renderer
from tests.sampling import SLOW

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(load_library() is None, reason=f"compiled library: {describe_library()}")


@st.composite
def windows(draw: st.DrawFn) -> Window:
    function: Any = draw(st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]))
    width = draw(st.floats(1.0, 2000) | st.just(1.0) | st.just(1e-31))
    return Window(draw(st.floats(-200, 200)), max(width, 1.0) if function == "LINEAR" else width, function)


@st.composite
def tables(draw: st.DrawFn) -> LookupTable:
    entries = draw(st.lists(st.integers(0, 255), min_size=1, max_size=20))
    return LookupTable(draw(st.integers(-300, 300)), np.array(entries), bits=8)


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    """Volumes of any stored type and direction, some with padding or values that are not finite."""
    dtype = draw(st.sampled_from(["u1", "i1", "u2", "i2", "i4", "f4", "f8", ">i2", "?"]))
    shape = (1, draw(st.integers(1, 5)), draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    values: Any = rng.normal(0, 400, shape)
    if dtype[-2:] in ("f4", "f8"):
        values[rng.random(shape) < 0.05] = draw(st.sampled_from([np.nan, np.inf, 1.0]))
    elif dtype == "?":
        values = values > 0
    else:
        values = np.clip(values, np.iinfo(dtype).min, np.iinfo(dtype).max)
    directions = np.eye(3)[:, list(draw(st.permutations(range(3))))]
    directions = directions * draw(st.tuples(*[st.sampled_from([1.0, -1.0])] * 3))
    affine = image_affine()
    affine[:3, :3] = directions * (2.0, draw(st.sampled_from([0.5, 1.0])), 1.0)
    volume = Volume(values.astype(dtype), affine, "MR", "")
    padding = rng.random(shape) < 0.2 if draw(st.booleans()) else None
    declared = st.tuples(windows() | tables())
    voi = draw(st.tuples(declared) | st.tuples(*[declared] * shape[1]))
    return replace(volume, padding=padding, inverted=draw(st.booleans()), voi=voi)


@st.composite
def recipes(draw: st.DrawFn) -> Preprocess:
    """Recipes with windows of each function, narrow ones too, or those of the volume."""
    chosen: Any = [draw(windows()) for _ in range(3)]
    channels: Any = draw(st.sampled_from(["repeat", "single", "adjacent"]))
    several = channels == "repeat" and draw(st.booleans())
    return Preprocess(
        window=tuple(chosen) if several else draw(st.sampled_from([chosen[0], "dicom"])),
        channels=channels,
        size=(draw(st.integers(1, 50)), draw(st.integers(1, 50))),
        fit=draw(st.sampled_from(["pad", "crop", "stretch"])),
    )


def render(recipe: Preprocess, volume: Volume, library: ctypes.CDLL | None) -> torch.Tensor | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_slice_renderer, "load_library", lambda: library)
        try:
            return recipe.render(volume).planes
        except MedimgError as error:
            return str(error)


@settings(deadline=None, max_examples=400 if SLOW else 120)
@given(volume=volumes(), recipe=recipes())
def test_painted_as_by_torch(volume: Volume, recipe: Preprocess) -> None:
    found, expected = render(recipe, volume, load_library()), render(recipe, volume, None)
    if isinstance(expected, str) or isinstance(found, str):
        assert found == expected
    else:
        assert float((found - expected).abs().max()) <= 1e-6
        with pytest.MonkeyPatch.context() as patch:
            for library in (load_library(), None):
                patch.setattr(_slice_renderer, "load_library", lambda library=library: library)
                assert torch.equal(recipe(volume), recipe.normalize(recipe.render(volume).planes))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def plain_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The painter without wide vectors."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler")
    source = Path(medimg.__file__).parent / "_native" / "src" / "painting.cpp"
    path = tmp_path_factory.mktemp("plain") / "plain.so"
    options = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-DMEDIMG_NO_VECTORS"]
    subprocess.run([compiler, *options, str(source), "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


@pytest.mark.parametrize("depth", [1, 7])
def test_the_same_bits_on_any_processor(threads: None, plain_library: ctypes.CDLL, depth: int) -> None:
    values = np.random.default_rng(depth).normal(0, 300, (1, depth, 257, 311)).astype(np.int16)
    volume = Volume(values, image_affine(), "CT", "HU")
    recipe = Preprocess(window="soft_tissue", size=(224, 200))
    expected = render(recipe, volume, load_library())
    assert isinstance(expected, torch.Tensor)
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        for library in (load_library(), plain_library):
            found = render(recipe, volume, library)
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", ["<i2", "u1", "<f4", "<f8"])
def test_values_between_others(dtype: str) -> None:
    """A field of a structured array: steps from value to value are no whole numbers of values."""
    records = np.zeros((1, 3, 20, 30), [("flag", "u1"), ("value", dtype)])
    records["value"] = np.random.default_rng(0).integers(0, 200, records.shape)
    recipe = Preprocess(window=Window(100, 150), size=(16, 16))
    expected = recipe(Volume(records["value"].copy(), image_affine()))
    for library in (load_library(), None):
        found = render(recipe, Volume(records["value"], image_affine()), library)
        assert isinstance(found, torch.Tensor)
        assert torch.allclose(recipe.normalize(found), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["padding", "not finite"])
def test_what_is_cropped_is_content(kind: str) -> None:
    """Also of images so large that only the rows in use are resized."""
    values = np.ones((1, 1, 2000, 500), np.float32)
    hidden = np.zeros(values.shape, bool)
    hidden[:, :, 500:1500] = True
    volume = Volume(values, image_affine(), padding=hidden)
    if kind == "not finite":
        volume = Volume(np.where(hidden, np.nan, values), image_affine())
    recipe = Preprocess(window=Window(1, 2), size=(32, 32), fit="crop")
    for library in (load_library(), None):
        found = render(recipe, volume, library)
        assert isinstance(found, torch.Tensor)
        assert not found.any()
