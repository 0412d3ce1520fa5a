"""Resampling of tensors: what a volume makes of the same values."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.core.geometry import image_affine
from medimg.core.kernels import Interpolation
from medimg.core.volume import Volume
from medimg.errors import PreprocessError
from medimg.preprocessing.resample_tensor import resample_tensor

KINDS: tuple[Interpolation, ...] = get_args(Interpolation)
SPACING = (2.0, 0.8, 0.6)


def numbers(shape: tuple[int, ...], dtype: str = "int16") -> np.ndarray[Any, Any]:
    low = 0 if dtype == "uint8" else -1000
    return np.random.default_rng(5).integers(low, 256 if dtype == "uint8" else 3000, shape).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 2), *[st.integers(1, 20)] * 3),
    wanted=st.tuples(*[st.floats(0.3, 12)] * 3),
    dtype=st.sampled_from(["int16", "uint8", "int32", "float32", "float64", "uint16"]),
    how=st.tuples(st.sampled_from(KINDS), st.booleans(), st.booleans()),
    gradient=st.booleans(),
)
def test_a_tensor_becomes_what_a_volume_becomes(
    shape: tuple[int, int, int, int],
    wanted: tuple[float, float, float],
    dtype: str,
    how: tuple[Interpolation, bool, bool],
    gradient: bool,
) -> None:
    """Those that need a gradient are computed by torch, as on an accelerator."""
    kind, antialias, padded = how
    array = numbers(shape, dtype)
    padding = np.random.default_rng(6).random(shape) < 0.3 if padded else None
    volume = Volume(array, image_affine(SPACING), padding=padding)
    expected = volume.resample(wanted, interpolation=kind, antialias=antialias)
    mask = None if padding is None else torch.from_numpy(padding)
    values = torch.from_numpy(array)
    if gradient:
        values = values.to(torch.float32).requires_grad_()
    found = resample_tensor(values, SPACING, wanted, interpolation=kind, antialias=antialias, padding=mask)
    assert found.values.dtype == torch.float32
    assert found.values.shape == expected.shape
    assert (
        np.abs(found.values.detach().numpy() - expected.array).max()
        <= 1e-6 * np.abs(array.astype(float)).max()
    )
    assert (found.padding is None) == (expected.padding is None)
    if found.padding is not None and expected.padding is not None:
        assert np.array_equal(found.padding.numpy(), expected.padding)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_does_not_spread(bad: float, gradient: bool) -> None:
    array = numbers((1, 6, 7, 8), "float32")
    array[0, 2:4, 2:5, 2:5] = bad
    expected = Volume(array, image_affine(SPACING)).resample((1.0, 0.5, 1.1))
    values = torch.from_numpy(array).requires_grad_(gradient)
    found = resample_tensor(values, SPACING, (1.0, 0.5, 1.1))
    assert np.allclose(found.values.detach().numpy(), expected.array, atol=1e-3)
    assert found.padding is not None
    assert expected.padding is not None
    assert np.array_equal(found.padding.numpy(), expected.padding)
    nothing = resample_tensor(torch.full((1, 4, 4, 4), bad, requires_grad=gradient), SPACING, 1.0)
    assert (nothing.values == 0).all()
    assert nothing.padding is not None
    assert nothing.padding.all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_value_passes_its_share_back(kind: Interpolation) -> None:
    values = torch.from_numpy(numbers((1, 6, 7, 8), "float64")).requires_grad_()
    result = resample_tensor(values, SPACING, (1.0, 1.0, 1.0), interpolation=kind).values
    result.sum().backward()
    assert values.grad is not None
    assert values.grad.sum().item() == pytest.approx(result.numel(), rel=1e-5)


def test_types_that_numpy_does_not_know() -> None:
    values = torch.from_numpy(numbers((1, 6, 7, 8), "uint8"))
    plain = resample_tensor(values, SPACING, 1.0).values
    assert torch.equal(resample_tensor(values.to(torch.bfloat16), SPACING, 1.0).values, plain)


def test_everything_happens_on_the_device_of_the_values() -> None:
    """The meta device computes nothing, and refuses tensors of another one."""
    values = torch.empty((1, 6, 7, 8), dtype=torch.int16, device="meta")
    padding = torch.empty((1, 6, 7, 8), dtype=torch.bool, device="meta")
    found = resample_tensor(values, SPACING, (1.0, 1.0, 1.0), padding=padding)
    assert found.padding is not None
    assert found.values.device.type == found.padding.device.type == "meta"
    assert found.values.shape == found.padding.shape == (1, 12, 6, 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
def test_an_accelerator_gives_the_same(kind: Interpolation) -> None:
    values = torch.from_numpy(numbers((1, 40, 50, 60)))
    here = resample_tensor(values, SPACING, 1.0, interpolation=kind).values
    there = resample_tensor(values.cuda(), SPACING, 1.0, interpolation=kind).values
    assert torch.allclose(here, there.cpu(), atol=1e-2)


def test_settings_for_training_take_no_digits() -> None:
    values = torch.from_numpy(numbers((1, 6, 7, 8), "float32")).requires_grad_()
    plain = resample_tensor(values, SPACING, 1.0).values
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(resample_tensor(values, SPACING, 1.0).values, plain)


def test_the_values_given_stay_as_they_are() -> None:
    values = torch.from_numpy(numbers((1, 6, 7, 8), "float32"))
    before = values.clone()
    for wanted in (SPACING, (1.0, 1.0, 1.0)):
        resample_tensor(values, SPACING, wanted, padding=values > 2000)
        assert torch.equal(values, before)


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        (torch.zeros(3, 4, 5), {}),
        (torch.zeros(1, 0, 4, 5), {}),
        (torch.zeros(1, 3, 4, 5, dtype=torch.complex64), {}),
        (torch.zeros(1, 3, 4, 5), {"padding": torch.zeros(1, 3, 4, 6, dtype=torch.bool)}),
        (torch.zeros(1, 3, 4, 5), {"interpolation": "cubic"}),
        (torch.zeros(1, 3, 4, 5), {"new_spacing": -1.0}),
        (torch.zeros(1, 3, 4, 5), {"new_spacing": 1e-6}),
        (torch.zeros(1, 3, 4, 5), {"spacing": (1.0, 0.0, 1.0)}),
        (torch.zeros(1, 3, 4, 5), {"spacing": (1.0, 1.0)}),
    ],
)
def test_unsound_input_is_refused(values: torch.Tensor, fields: dict[str, Any]) -> None:
    with pytest.raises(PreprocessError):
        resample_tensor(values, **{"spacing": SPACING, "new_spacing": 1.0, **fields})
