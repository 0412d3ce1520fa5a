"""Volumes of arrays from elsewhere, and their values as arrays and tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from medimg.core.geometry import index_to_lps
from medimg.core.volume import Volume
from medimg.errors import GeometryError, NotAnImageError
from tests.io.volumes import SIGNS, affines

RNG = np.random.default_rng(8)
SLICES = RNG.integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
AFFINE = np.array([[0, 0, 0.5, -16], [0, 0.5, 0, -20], [-2, 0, 0, 90], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((4, 5), (1, 1, 4, 5)), ((3, 4, 5), (1, 3, 4, 5)), ((2, 3, 4, 5), (2, 3, 4, 5)), ((4, 3), (1, 1, 4, 3))],
)
def test_axes_are_added_in_front(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    array = RNG.normal(size=shape)
    volume = Volume.from_array(array)
    assert volume.shape == expected
    assert np.array_equal(volume.array.reshape(shape), array)


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 4, 5), (2, 4, 5, 3), (3, 2, 4, 5)])
def test_colors_are_first_or_last(shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 256, shape).astype(np.uint8)
    volume = Volume.from_array(array, photometric="RGB")
    assert volume.is_color
    assert volume.channels == ("R", "G", "B")
    first = array if shape[0] == 3 else np.moveaxis(array, -1, 0)
    assert np.array_equal(volume.array.squeeze(), first)


@pytest.mark.parametrize("shape", [(3, 4, 3), (3, 2, 4, 3), (4, 5), (4, 5, 4), (1, 3, 4, 5, 3)])
def test_colors_that_could_be_anywhere_or_are_nowhere_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="expected"):
        Volume.from_array(np.zeros(shape, np.uint8), photometric="RGB")


def test_colors_of_floating_point_numbers_are_from_0_to_1() -> None:
    image = RNG.random((4, 5, 3))
    assert Volume.from_array(image, photometric="RGB").white == 1
    for bad in (image * 255, -image, image * np.nan):
        with pytest.raises(NotAnImageError, match="from 0 to 1"):
            Volume.from_array(bad, photometric="RGB")


@pytest.mark.parametrize("shape", [(), (4,), (2, 0, 3), (1, 2, 3, 4, 5)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(GeometryError, match="found the shape"):
        Volume.from_array(np.zeros(shape))


@settings(deadline=None, max_examples=40)
@given(affine=affines())
def test_an_affine_to_ras_gives_each_voxel_its_place(affine: np.ndarray[Any, Any]) -> None:
    volume = Volume.from_array(SLICES, affine=affine, convention="RAS")
    index = np.array(list(np.ndindex(*SLICES.shape)))
    expected = (index @ affine[:3, :3].T + affine[:3, 3]) * SIGNS
    np.testing.assert_allclose(index_to_lps(volume.affine, index), expected, atol=1e-9)
    same = Volume.from_array(SLICES, affine=np.diag([-1.0, -1, 1, 1]) @ affine)
    np.testing.assert_allclose(same.affine, volume.affine, atol=1e-12)
    assert volume.space == same.space == "patient"


def test_a_spacing_alone_is_no_position_in_a_patient() -> None:
    volume = Volume.from_array(SLICES, spacing=(2, 0.5, 0.25), modality="CT", units="HU")
    assert (volume.space, volume.spacing, volume.modality, volume.units) == (
        "image", (2.0, 0.5, 0.25), "CT", "HU",
    )  # fmt: skip
    assert Volume.from_array(SLICES[0], spacing=(0.5, 0.25)).spacing == (1.0, 0.5, 0.25)
    assert Volume.from_array(SLICES, spacing=0.5).spacing == (0.5,) * 3
    assert Volume.from_array(SLICES).spacing == (1.0,) * 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"affine": AFFINE, "spacing": 1.0},
        {"affine": AFFINE[:3]},
        {"affine": AFFINE.T},
        {"affine": "RAS"},
        {"affine": np.zeros((4, 4)) + np.diag([0, 0, 0, 1.0])},
        {"affine": np.where(AFFINE == 90, np.nan, AFFINE)},
        {"spacing": (1, 2)},
        {"spacing": (1, 0, 2)},
        {"spacing": (1, -1, 2)},
        {"spacing": (1, np.inf, 2)},
        {"spacing": "thin"},
        {"convention": "LAS"},
        {"photometric": "YBR"},
        {"modality": 3},
        {"channels": "CT"},
        {"channels": ["a", "b"]},
    ],
)
def test_arguments_that_contradict_each_other_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(GeometryError):
        Volume.from_array(SLICES, **arguments)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 2), complex),
        np.array([["a", "b"]]),
        np.array([[object()]]),
        np.ma.masked_array(np.zeros((2, 2)), mask=np.eye(2, dtype=bool)),
        [[1, 2], [3]],
        torch.zeros(2, 2, requires_grad=True),
        np.zeros((2, 2), "datetime64[s]"),
        np.zeros((2, 2), np.longdouble),
        None,
    ],
)
def test_what_is_no_array_of_real_numbers_is_refused(array: object) -> None:
    with pytest.raises(NotAnImageError, match=r"expected|fill"):
        Volume.from_array(array)  # type: ignore[arg-type]  # on purpose


def test_values_are_copied_unless_asked_not_to() -> None:
    mine = SLICES.copy()
    copied, shared = Volume.from_array(mine), Volume.from_array(mine, copy=False)
    assert not np.shares_memory(copied.array, mine)
    assert np.shares_memory(shared.array, mine)
    mine[0, 0, 0] += 1
    assert copied.array[0, 0, 0, 0] == SLICES[0, 0, 0]
    swapped = Volume.from_array(SLICES.astype(">i2"), copy=False)
    assert swapped.array.dtype.isnative
    assert np.array_equal(swapped.array[0], SLICES)


def test_8_bit_images_are_ready_for_display_and_label_maps_are_not() -> None:
    array = np.arange(20, dtype=np.uint8).reshape(4, 5)
    assert Volume.from_array(array).display_range == (0, 255)
    assert Volume.from_array(array[None], affine=AFFINE).display_range is None
    assert Volume.from_array(array, units="HU").display_range is None
    assert Volume.from_array(array.astype(np.int16)).display_range is None
    assert Volume.from_array(array, photometric="MONOCHROME1").inverted


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", "?"])
def test_tensors_and_arrays_are_copies_without_warnings(dtype: str) -> None:
    volume = Volume.from_array(RNG.integers(0, 2, (2, 3, 4, 5)).astype(dtype))
    before = volume.array.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensors = [
            torch.as_tensor(volume),
            torch.tensor(volume),
            torch.asarray(volume),
            torch.utils.dlpack.from_dlpack(volume),
            torch.from_numpy(np.asarray(volume)),
            torch.as_tensor(volume, dtype=torch.float32),
        ]
    for tensor in tensors:
        assert np.array_equal(tensor.numpy(), before)
        tensor.fill_(7)
    assert np.array_equal(volume.array, before)


def test_truth_values_are_numbers_that_can_be_shown() -> None:
    volume = Volume.from_array(SLICES > 0)
    assert volume.array.dtype == np.int8
    assert np.array_equal(volume.array[0], SLICES > 0)
    assert volume.display_range is None
    assert volume._repr_png_()


def test_the_array_protocol_has_dtype_and_copy() -> None:
    volume = Volume.from_array(SLICES)
    assert np.asarray(volume, dtype=np.float32).dtype == np.float32
    assert np.asarray(volume).flags.writeable
    assert not np.shares_memory(np.array(volume), volume.array)
    assert volume.__array__(copy=False) is volume.array
    assert volume.__array__(np.int16, copy=False) is volume.array
    with pytest.raises(ValueError, match="without a copy"):
        volume.__array__(np.float32, copy=False)
    with pytest.raises(BufferError, match="read-only"):
        volume.__dlpack__(copy=False)
    assert np.mean(volume) == SLICES.mean()
    assert np.asarray(volume).shape == volume.shape


def test_torch_takes_big_endian_values_and_nothing_warns_of_a_tensor() -> None:
    array = np.arange(24, dtype=">i2").reshape(1, 2, 3, 4)
    tensor = torch.as_tensor(Volume(array, np.eye(4)))
    assert (tensor.dtype, tensor.tolist()) == (torch.int16, array.tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Volume.from_array(tensor[0])
    tensor += 1
    np.testing.assert_array_equal(found.array, array)
