"""Parts of volumes: every voxel stays where it is, and facts of slices follow."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.core.geometry import index_to_lps
from medimg.core.read_report import ReadReport
from medimg.core.volume import Volume
from medimg.core.window import Window
from medimg.errors import GeometryError
from tests.io.volumes import affines

SHAPE = (2, 5, 4, 6)


def make(affine: np.ndarray[Any, Any] | None = None) -> Volume:
    """Values are unique, and every fact of a slice has its number."""
    volume = Volume.from_array(
        np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE),
        affine=np.diag([2.0, 0.5, 0.5, 1.0])[[2, 1, 0, 3]] if affine is None else affine,
        channels=["a", "b"],
    )
    uids = tuple(f"{c}.{d}" for c in "ab" for d in range(SHAPE[1]))
    return replace(
        volume,
        voi=tuple((Window(float(d), 10.0),) for d in range(SHAPE[1])),
        padding=volume.array % 3 == 0,
        report=ReadReport("DICOM", files=uids, sop_instance_uids=uids, missing=(1, 2)),
    )


def places(volume: Volume) -> dict[int, tuple[float, ...]]:
    index = np.array(list(np.ndindex(*volume.shape[1:])))
    found = index_to_lps(volume.affine, index)
    return {
        int(value): tuple(np.round(place, 6) + 0.0)
        for channel in volume.array
        for value, place in zip(channel.ravel(), found, strict=True)
    }


@st.composite
def indices(draw: st.DrawFn) -> tuple[Any, ...]:
    count = draw(st.integers(0, 4))
    at = draw(st.none() | st.integers(0, count))
    sizes = SHAPE[:count] if at is None else (*SHAPE[:at], *SHAPE[len(SHAPE) - (count - at) :])
    parts: list[Any] = [draw(st.one_of(st.integers(-n, n - 1), st.slices(n))) for n in sizes]
    if at is not None:
        parts.insert(at, ...)
    return tuple(parts)


def keep_axes(index: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same index for an array, with a slice for each number."""
    at = index.index(...) if ... in index else len(index)
    sizes = [*SHAPE[:at], *SHAPE[len(SHAPE) - (len(index) - at - 1) :]] if ... in index else SHAPE
    numbers = [part for part in index if part is not ...]
    kept = [
        slice(part % size, part % size + 1) if isinstance(part, int) else part
        for part, size in zip(numbers, sizes, strict=False)
    ]
    return (*kept[:at], ..., *kept[at:])


@settings(deadline=None, max_examples=200)
@given(index=indices(), affine=affines())
def test_voxels_stay_where_they_are(index: tuple[Any, ...], affine: np.ndarray[Any, Any]) -> None:
    volume = make(affine)
    expected = volume.array[keep_axes(index)]
    if expected.size == 0:
        with pytest.raises(GeometryError, match="selects nothing"):
            volume[index]
        return
    part = volume[index]
    assert np.array_equal(part.array, expected)
    assert not part.array.flags.writeable
    assert part.padding is not None
    assert np.array_equal(part.padding, expected % 3 == 0)
    everywhere = places(volume)
    for value, place in places(part).items():
        np.testing.assert_allclose(place, everywhere[value], atol=1e-5)
    chosen = [int(value) // 24 % 5 for value in part.array[0, :, 0, 0]]
    names = ["ab"[int(channel.flat[0]) // 120] for channel in part.array]
    assert list(part.channels) == names
    assert part.report.sop_instance_uids == tuple(f"{c}.{d}" for c in names for d in chosen)
    assert part.report.files == part.report.sop_instance_uids
    assert part.voi == tuple(volume.voi[d] for d in chosen)
    gaps = {n for n, pair in enumerate(pairwise(chosen)) for g in (1, 2) if min(pair) <= g < max(pair)}
    assert set(part.report.missing) == gaps


def test_a_number_keeps_its_axis() -> None:
    volume = make()
    assert volume[1].shape == (1, 5, 4, 6)
    assert volume[..., -1].shape == (2, 5, 4, 1)
    assert volume[0, 2, 1, 3].array.item() == volume.array[0, 2, 1, 3]
    assert volume[np.int64(1)].channels == ("b",)
    assert volume[:] is volume[...] is volume[()] is volume
    assert volume[:, ::-1].spacing == volume.spacing
    assert volume[:, ::2].spacing[0] == 2 * volume.spacing[0]
    assert volume[:, 3:4:2].spacing == volume.spacing


def test_length_and_iteration_go_by_channel() -> None:
    volume = make()
    assert len(volume) == len(np.asarray(volume)) == 2
    assert [part.channels for part in volume] == [("a",), ("b",)]
    assert [part.channels for part in reversed(volume)] == [("b",), ("a",)]
    assert all(part.array.shape == (1, 5, 4, 6) for part in volume)


def test_part_of_the_colors_is_grayscale() -> None:
    color = Volume.from_array(np.zeros((3, 2, 4, 5), np.uint8), photometric="RGB")
    color = replace(color, report=ReadReport("DICOM", sop_instance_uids=("a", "b")))
    assert color[:, 1].is_color
    for part in (color[0], color[:2], color[::-1]):
        assert part.photometric == "MONOCHROME2"
        assert part.report.sop_instance_uids == ("a", "b")
    assert color[::-1].channels == ("B", "G", "R")
    assert color[2, 1].report.sop_instance_uids == ("b",)


@pytest.mark.parametrize(
    "index", [True, 1.0, "a", [0, 1], np.array([True, False]), None, (0, None), slice(0.5, 2), slice(0, 2, 0)]
)
def test_other_indices_are_refused(index: Any) -> None:
    with pytest.raises(GeometryError, match="whole number or a slice"):
        make()[index]


def test_indices_out_of_range_end_loops() -> None:
    volume = make()
    beyond: tuple[Any, ...] = (2, -3, (0, 5), (..., 6))
    for index in beyond:
        with pytest.raises(IndexError, match="out of range") as caught:
            volume[index]
        assert isinstance(caught.value, GeometryError)
    many: tuple[Any, ...] = ((0, 0, 0, 0, 0), (..., 0, ...))
    for index in many:
        with pytest.raises(GeometryError, match="up to four axes"):
            volume[index]
