"""xarray's DataArray: ``to_xarray`` and ``from_xarray``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg.errors import GeometryError, ReadError
from medimg.interop._exchange import (
    as_volume,
    convert_image,
    find_facts,
    import_library,
    list_facts,
    own_values,
)
from medimg.interop.image_object import ImageObject, check_affine, guard_conversion

if TYPE_CHECKING:
    import numpy.typing as npt
    import xarray

    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = ["from_xarray", "open_data_array", "to_xarray"]

_AXES: Final = ("slice", "row", "column")
_EVEN: Final = 1e-6


@set_module("medimg")
def to_xarray(volume: Volume | Explanation) -> xarray.DataArray:
    """
    Convert a volume to a DataArray of xarray, which shares its values.

    Dimensions are "channel", "slice", "row" and "column". The coordinates of the last three are indices into
    this volume, which stay with the values if some are selected, so that ``attrs["affine"]``, the 16 numbers
    of the affine from these to LPS millimeters, row by row, holds for every part. Other attributes:
    ``modality``, ``units``, ``photometric``, ``inverted`` and ``geometry`` ("patient" or "image").

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.

    Returns
    -------
    xarray.DataArray
        (C, D, H, W), a read-only view.

    Raises
    ------
    MissingDependencyError
        If xarray is not installed.

    Examples
    --------
    >>> import medimg
    >>> array = medimg.to_xarray(medimg.read("scan.nii.gz"))  # doctest: +SKIP
    >>> array.sel(slice=17).plot()  # doctest: +SKIP
    """
    volume = as_volume(volume, "to_xarray")
    module = import_library("xarray")
    facts = list_facts(volume)
    facts.pop("channels", None)
    found: xarray.DataArray = module.DataArray(
        volume.array,
        dims=("channel", *_AXES),
        coords={
            "channel": list(volume.channels),
            **{axis: np.arange(size) for axis, size in zip(_AXES, volume.shape[1:], strict=True)},
        },
        attrs={"affine": volume.affine.ravel().tolist(), **facts},
        name="image",
    )
    return found


@set_module("medimg")
def from_xarray(array: xarray.DataArray, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert a DataArray of :func:`to_xarray`, or a part of one, to a volume with a copy of its values.

    Parameters
    ----------
    array : xarray.DataArray
        With the dimensions "slice", "row", "column" and "channel" in any order, those with one value possibly
        dropped, and the attribute ``affine``. Coordinates are indices for the affine and evenly spaced; if
        there are none, they count from 0.
    modality, units : str, optional
        As in :class:`Volume`; by default as the attributes say.

    Returns
    -------
    Volume

    Raises
    ------
    GeometryError
        If coordinates are not evenly spaced, or the affine is singular.
    ReadError
        If the affine is missing, or there are other dimensions.

    Examples
    --------
    >>> import medimg
    >>> medimg.from_xarray(medimg.to_xarray(volume)[:, 10:20, ::2, ::2])  # doctest: +SKIP
    """
    return convert_image(array, "xarray", modality=modality, units=units)


@guard_conversion("xarray")
def open_data_array(array: xarray.DataArray) -> ImageObject:
    """Return the geometry and facts of an array."""
    others = set(array.dims) - {"channel", *_AXES}
    stated = array.attrs.get("affine")
    if others or stated is None or np.size(stated) != 16:
        raise ReadError(
            f"the DataArray has the dimensions {array.dims} and {'no' if stated is None else 'an'} attribute "
            "affine; expected channel, slice, row and column, and 16 numbers, as of medimg.to_xarray"
        )
    affine = check_affine(np.reshape(np.asarray(stated, np.float64), (4, 4)), "xarray")
    part = np.eye(4)
    for number, axis in enumerate(_AXES):
        part[number, number], part[number, 3] = _find_step(array, axis)
    count = array.sizes.get("channel", 1)
    facts = find_facts({k: v for k, v in array.attrs.items() if isinstance(k, str)}, count)
    names = array.coords["channel"].values if "channel" in array.coords else ()
    if np.size(names) == count > 1 and facts.photometric != "RGB":
        facts = facts._replace(channels=tuple(str(name) for name in np.ravel(names)))
    d, h, w = (array.sizes.get(axis, 1) for axis in _AXES)
    return ImageObject(
        format="xarray",
        shape=(count, d, h, w),
        affine=affine @ part,
        load=partial(_load, array),
        **facts._asdict(),
    )


def _find_step(array: xarray.DataArray, axis: str) -> tuple[float, float]:
    """Return the step and the start of the coordinates of an axis; 1 and 0 if it has none."""
    if axis not in array.coords:
        return 1.0, 0.0
    positions = np.asarray(array.coords[axis].values, dtype=np.float64).ravel()
    steps = np.diff(positions)
    if not np.isfinite(positions).all() or (steps.size and abs(steps - steps[0]).max() > _EVEN):
        raise GeometryError(
            f"the coordinates of {axis} in the DataArray are not evenly spaced; interpolate them: "
            f"array.interp({axis}=...)"
        )
    return float(steps.mean()) if steps.size else 1.0, float(positions[0])


def _load(array: xarray.DataArray) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    dims = ("channel", *_AXES)
    full = array.expand_dims([dim for dim in dims if dim not in array.dims])
    return own_values(np.asarray(full.transpose(*dims).values)), ()
