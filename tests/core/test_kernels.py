"""Weights of a resampled axis."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.core import _separable, kernels
from medimg.core.kernels import Interpolation, interpolation_taps, make_bands
from medimg.core.resample import compute_size

RNG = np.random.default_rng(8)
KINDS: tuple[Interpolation, ...] = get_args(Interpolation)


@pytest.mark.parametrize(("size", "count"), [(20, 8), (21, 20), (16, 5), (9, 9), (7, 21)])
def test_linear_weights_are_those_of_torchs_antialiased_interpolation(size: int, count: int) -> None:
    values = RNG.normal(size=(1, 2, size, size)).astype(np.float32)
    axis = make_bands(size, count, size / count)
    out = np.empty((2, count, count), np.float32)
    _separable.resample_axes(values[0], [make_bands(2, 2, 1.0), axis, axis], out)
    picture = torch.from_numpy(values)
    expected = torch.nn.functional.interpolate(picture, (count, count), mode="bilinear", antialias=True)
    assert np.allclose(out, expected[0].numpy(), atol=1e-5)


@pytest.mark.parametrize("scale", [10.0, 1e6, 1e300])
def test_an_axis_coarser_than_itself_becomes_one_voxel_within_its_range(scale: float) -> None:
    index, weights = interpolation_taps(9, 1, scale)
    assert compute_size(9, scale) == 1
    assert index.min() >= 0
    assert index.max() <= 8
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1)


@given(
    size=st.integers(2, 60),
    scale=st.floats(0.05, 80),
    kind=st.sampled_from(KINDS),
    antialias=st.booleans(),
)
@settings(deadline=None)
def test_bands_are_the_matrix_in_pieces(
    size: int, scale: float, kind: Interpolation, antialias: bool
) -> None:
    count = compute_size(size, scale)
    whole = np.zeros((count, size))
    index, weights = interpolation_taps(size, count, scale, kind, antialias=antialias)
    np.add.at(whole, (np.arange(count)[:, None], index), weights)
    pieces = np.zeros((count, size))
    next_start = 0
    for band in make_bands(size, count, scale, kind, antialias=antialias):
        assert band.start == next_start
        next_start = band.stop
        if kernels.is_unchanged(size, count, scale):
            assert band.weights is None
            return
        pieces[band.start : band.stop, band.first : band.last] = band.weights
    assert next_start == count
    assert np.allclose(pieces, whole, atol=1e-6)
