"""xarray's DataArray: parts of one keep their positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import medimg
from medimg.errors import GeometryError, ReadError
from tests.interop.libraries import make_volume

xarray = pytest.importorskip("xarray")


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a[:, 1:3, ::2, 1:],
        lambda a: a[:, :, ::-1],
        lambda a: a.sel(channel="echo 1"),
        lambda a: a.isel(slice=2),
        lambda a: a.transpose("column", "row", "slice", "channel"),
        lambda a: a.isel(slice=[1], row=[2]) * 2.0 / 2.0,
        lambda a: a.interp(slice=[0.5, 1.5, 2.5]),
    ],
)
def test_parts_keep_their_positions(part: Any) -> None:
    volume = make_volume("float64", channels=3)
    array = part(medimg.to_xarray(volume))
    found = medimg.from_xarray(array)
    full = array.expand_dims([d for d in ("channel", "slice", "row", "column") if d not in array.dims])
    full = full.transpose("channel", "slice", "row", "column")
    np.testing.assert_array_equal(found.array, full.values)
    last = [full[axis].values[-1] for axis in ("slice", "row", "column")]
    wanted = volume.affine[:3, :3] @ last + volume.affine[:3, 3]
    index = np.array(found.shape[1:]) - 1
    np.testing.assert_allclose(found.affine[:3, :3] @ index + found.affine[:3, 3], wanted, atol=1e-9)
    assert found.units == "HU"


def test_arrays_without_a_geometry_are_errors() -> None:
    array = medimg.to_xarray(make_volume())
    for given in (array.drop_attrs(), array.rename(row="y"), xarray.DataArray(np.zeros((2, 2)))):
        with pytest.raises(ReadError, match=r"as of medimg\.to_xarray"):
            medimg.from_xarray(given)
    with pytest.raises(GeometryError, match="not evenly spaced"):
        medimg.from_xarray(array[:, [0, 1, 3]])


def test_attributes_can_be_written_to_netcdf() -> None:
    """They are numbers, text and lists of numbers."""
    for value in medimg.to_xarray(make_volume(channels=2)).attrs.values():
        assert isinstance(value, str) or all(isinstance(number, float) for number in value)
