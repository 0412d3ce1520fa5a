"""Volumes for tests of file formats, and where each of their voxels lies."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from medimg.core.volume import Volume

CODES = ["".join(c) for order in permutations(("LR", "PA", "SI")) for c in product(*order)]
SIGNS = np.array([-1.0, -1.0, 1.0])


def rotation(angles: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        first, second = [a for a in range(3) if a != axis]
        turn[first, first] = turn[second, second] = c
        turn[first, second], turn[second, first] = -s, s
        result = result @ turn
    return result


@st.composite
def affines(draw: st.DrawFn) -> npt.NDArray[np.float64]:
    """(i, j, k) to RAS: any of the 48 orientations, oblique or not, with unequal spacings."""
    axes = draw(st.permutations(range(3)))
    signs = draw(st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3))
    spacing = draw(st.tuples(*[st.floats(0.125, 8, width=32)] * 3))
    angle = st.one_of(st.just(0.0), st.floats(-0.5, 0.5))
    affine = np.eye(4)
    turned = np.zeros((3, 3))
    for own, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        turned[axis, own] = sign
    affine[:3, :3] = rotation(draw(st.tuples(angle, angle, angle))) @ turned * np.array(spacing)
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500, width=32)] * 3))
    return affine


@st.composite
def arrays(draw: st.DrawFn, dtypes: tuple[str, ...], time: bool = True) -> npt.NDArray[Any]:
    """(i, j, k) or (i, j, k, t) with values over the whole range of their type."""
    shape: tuple[int, ...] = draw(st.tuples(*[st.integers(1, 5)] * 3))
    if time and draw(st.booleans()):
        shape = (*shape, draw(st.integers(2, 4)))
    dtype: np.dtype[Any] = np.dtype(draw(st.sampled_from(dtypes)))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if dtype.kind == "f":
        return rng.normal(0, 1000, shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def places(affine: npt.NDArray[np.float64], index: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """LPS positions of (n, 3) indices (i, j, k) by an affine to RAS; written out, not taken from medimg."""
    ras = index @ affine[:3, :3].T + affine[:3, 3]
    return np.asarray(ras * SIGNS)


def assert_same(volume: Volume, stored: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> None:
    """Values of an array (i, j, k[, t]) at the places that an affine to RAS gives them."""
    four = stored.reshape(*stored.shape[:3], -1)
    assert volume.shape == four.shape[::-1]
    assert volume.array.dtype.isnative
    assert volume.array.dtype == stored.dtype.newbyteorder("=")
    assert np.array_equal(volume.array, four.transpose(3, 2, 1, 0))
    ijk = np.array(list(np.ndindex(*four.shape[:3])))
    found = ijk[:, ::-1] @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    np.testing.assert_allclose(found, places(affine, ijk), atol=2e-3)
