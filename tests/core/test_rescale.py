"""Rescaling block by block gives what one expression over the whole array gives, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.core import rescale
from medimg.core.rescale import choose_rescaled_dtype, rescale_into, rescale_values

DTYPES = ("u1", "i1", "<u2", ">u2", "<i2", ">i2", "u4", "<i4", ">i4")


def plainly(stored: npt.NDArray[Any], slope: float, intercept: float) -> npt.NDArray[Any]:
    """The reference: Python's integers where both numbers are whole, else float64 rounded once."""
    if slope.is_integer() and intercept.is_integer():
        exact = stored.astype(object) * int(slope) + int(intercept)
        for dtype in (np.int16, np.int32):
            if exact.min() >= np.iinfo(dtype).min and exact.max() <= np.iinfo(dtype).max:
                return exact.astype(dtype)
    return (stored.astype(np.float64) * slope + intercept).astype(np.float32)


def values(dtype: str, count: int, seed: int, narrow: int) -> npt.NDArray[Any]:
    limits = np.iinfo(np.dtype(dtype))
    rng = np.random.default_rng(seed)
    stored = rng.integers(limits.min >> narrow, limits.max >> narrow, count, np.int64, endpoint=True)
    return stored.astype(dtype)


whole = st.integers(-70000, 70000).map(float)
numbers = st.one_of(
    st.sampled_from([1.0, -1.0, 0.0, 2.0, -1024.0, 2.0**31, -(2.0**40)]),
    whole,
    st.floats(-1e6, 1e6, allow_subnormal=False),
)


@settings(deadline=None, max_examples=400)
@given(
    kind=st.tuples(st.sampled_from(DTYPES), st.integers(0, 99), st.integers(0, 20)),
    linear=st.tuples(numbers, numbers),
    block=st.sampled_from([1, 7, 64, 2**15]),
    layout=st.sampled_from(["plain", "transposed", "flipped", "every other", "repeated"]),
)
def test_any_integers(
    kind: tuple[str, int, int], linear: tuple[float, float], block: int, layout: str
) -> None:
    array = values(kind[0], 120, seed=kind[1], narrow=kind[2]).reshape(4, 5, 6)
    stored = {
        "plain": array,
        "transposed": array.transpose(2, 0, 1),
        "flipped": array[::-1, :, ::-1],
        "every other": array[:, ::2, 1::3],
        "repeated": np.broadcast_to(array[:1], (3, 5, 6)),
    }[layout]
    before = array.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rescale, "_BLOCK", block)
        found = rescale_values(stored, *linear)
    expected = plainly(stored, *linear)
    assert found.dtype == expected.dtype
    assert found.shape == stored.shape
    assert np.array_equal(found, expected)
    assert np.array_equal(array, before)


@pytest.mark.parametrize(
    ("ends", "linear", "expected"),
    [
        ((0, 4095), (1.0, -1024.0), "int16"),
        ((0, 32767), (1.0, 0.0), "int16"),
        ((0, 32768), (1.0, 0.0), "int32"),
        ((-32768, 0), (-1.0, 0.0), "int32"),
        ((0, 2**31 - 1), (1.0, 0.0), "int32"),
        ((0, 2**31 - 1), (1.0, 1.0), "float32"),
        ((0, 1), (0.5, 0.0), "float32"),
        ((0, 0), (1e30, 3.0), "int16"),
    ],
)
def test_types(ends: tuple[int, int], linear: tuple[float, float], expected: str) -> None:
    assert choose_rescaled_dtype(ends, *linear) == expected
    assert rescale_values(np.array(ends, np.int64), *linear).dtype == expected


@pytest.mark.parametrize(
    ("dtype", "into"), [("u2", "i2"), ("i2", "i2"), ("u4", "i4"), ("i4", "f4"), ("u4", "f4")]
)
def test_in_the_memory_of_the_stored_values(dtype: str, into: str) -> None:
    stored = values(dtype, 100_000, 3, 2)
    linear = (1.0, -1024.0) if into.startswith("i") else (0.3, -1.7)
    expected = (stored.astype(np.float64) * linear[0] + linear[1]).astype(into)
    rescale_into(stored, *linear, stored.view(into))
    assert np.array_equal(stored.view(into), expected)


def test_other_numbers_give_other_values() -> None:
    stored = values("i2", 1000, 0, 4)
    assert not np.array_equal(rescale_values(stored, 1.0, -1024.0), rescale_values(stored, 1.0, -1023.0))
    assert not np.array_equal(rescale_values(stored, 0.5, 0.0), rescale_values(stored, 0.25, 0.0))
