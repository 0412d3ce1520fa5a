"""The libraries that images are converted for, and volumes to convert, for tests and the table in docs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

import medimg
from medimg.core import geometry
from medimg.errors import MedimgError, MedimgWarning
from tests.io.volumes import rotation

Index = tuple[int, int, int, int]
Point = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Library:
    """`look` returns the value at (c, d, h, w), and its position in LPS, by means of the library alone."""

    name: str
    module: str
    to: Callable[[medimg.Volume], Any]
    back: Callable[[Any], medimg.Volume]
    look: Callable[[Any, Index], tuple[Any, Point]]

    def __str__(self) -> str:
        return self.name


def _from_ras(point: Any) -> Point:
    return np.asarray(point, np.float64) * [-1, -1, 1]


def _look_sitk(image: Any, index: Index) -> tuple[Any, Point]:
    c, d, h, w = index
    at = (w, h, d, c)[: image.GetDimension()]
    value = image[at]
    point = image.TransformIndexToPhysicalPoint(at)
    return (value[c] if isinstance(value, tuple) else value), np.array(point[:3])


def _look_nibabel(image: Any, index: Index) -> tuple[Any, Point]:
    from nibabel.affines import apply_affine

    c, d, h, w = index
    array = np.asanyarray(image.dataobj)
    value = array[w, h, d]
    if array.dtype.names or array.ndim == 4:
        value = value[c]
    return value, _from_ras(apply_affine(image.affine, (w, h, d)))


def _look_tensor(image: Any, index: Index) -> tuple[Any, Point]:
    """The voxel of a MetaTensor, or of a TorchIO image."""
    c, d, h, w = index
    data = getattr(image, "tensor", image) if isinstance(image, dict) else image
    affine = np.asarray(image.affine)
    return data[c, w, h, d].item(), _from_ras((affine @ [w, h, d, 1])[:3])


def _look_highdicom(volume: Any, index: Index) -> tuple[Any, Point]:
    c, d, h, w = index
    value = volume.array[d, h, w]
    return (value[c] if np.ndim(value) else value), volume.map_indices_to_reference(np.array([[d, h, w]]))[0]


def _look_xarray(array: Any, index: Index) -> tuple[Any, Point]:
    c, d, h, w = index
    one = array[c].sel(slice=d, row=h, column=w)
    return one.item(), (np.reshape(array.attrs["affine"], (4, 4)) @ [d, h, w, 1])[:3]


def _look_pil(image: Any, index: Index) -> tuple[Any, Point]:
    c, _, h, w = index
    value = image.getpixel((w, h))
    return (value[c] if isinstance(value, tuple) else value), np.array([w, h, 0.0])


LIBRARIES = (
    Library("SimpleITK", "SimpleITK", medimg.to_sitk, medimg.from_sitk, _look_sitk),
    Library("nibabel", "nibabel", medimg.to_nibabel, medimg.from_nibabel, _look_nibabel),
    Library("MONAI", "monai", medimg.to_monai, medimg.from_monai, _look_tensor),
    Library("TorchIO", "torchio", medimg.to_torchio, medimg.from_torchio, _look_tensor),
    Library("highdicom", "highdicom", medimg.to_highdicom, medimg.from_highdicom, _look_highdicom),
    Library("Pillow", "PIL", medimg.to_pil, medimg.from_pil, _look_pil),
    Library("xarray", "xarray", medimg.to_xarray, medimg.from_xarray, _look_xarray),
)


def make_affine(
    kind: Literal["straight", "oblique", "left-handed", "sheared"] = "oblique",
) -> geometry.Affine:
    """Return an affine (d, h, w) to LPS with three spacings."""
    axes = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float64)
    if kind != "straight":
        axes = rotation((0.3, -0.2, 0.5)) @ axes
    if kind == "left-handed":
        axes[:, 0] *= -1
    affine = np.eye(4)
    affine[:3, :3] = axes * [2.5, 0.75, 0.5]
    if kind == "sheared":
        affine[:3, 0] += 0.2 * affine[:3, 1]
    affine[:3, 3] = [-31.0, 47.5, 113.25]
    return affine


def make_volume(
    dtype: str = "int16",
    *,
    affine: geometry.Affine | None = None,
    channels: int = 1,
    depth: int = 4,
    color: bool = False,
    space: Literal["patient", "image"] = "patient",
) -> medimg.Volume:
    """Return a small volume whose values are all different, as far as its type allows."""
    shape = (3 if color else channels, depth, 5, 6)
    values = np.arange(np.prod(shape)).reshape(shape)
    array = (values % 2 == 1) if dtype == "bool" else (values % 251 - 0).astype(dtype)
    return medimg.Volume(
        array,
        geometry.image_affine() if space == "image" else make_affine() if affine is None else affine,
        modality="CT",
        units="HU",
        photometric="RGB" if color else "MONOCHROME2",
        space=space,
        channels=tuple(f"echo {n}" for n in range(channels)) if channels > 1 and not color else (),
    )


#: The rows of the table: what is converted.
CASES: dict[str, Callable[[], medimg.Volume]] = {
    "2-D, no patient": lambda: make_volume(depth=1, space="image"),
    "3-D": lambda: make_volume(affine=make_affine("straight")),
    "3-D, oblique": make_volume,
    "3-D, left-handed": lambda: make_volume(affine=make_affine("left-handed")),
    "3-D, sheared": lambda: make_volume(affine=make_affine("sheared")),
    "4-D": lambda: make_volume(channels=4),
    "color, 8 bits": lambda: make_volume("uint8", color=True, depth=1),
    "color, 16 bits": lambda: make_volume("uint16", color=True, depth=1),
    **{
        f"one slice, {dtype}": partial(make_volume, dtype, depth=1)
        for dtype in ("uint8", "int16", "uint16", "int32", "float32", "float64", "bool")
    },
}


def try_round_trip(library: Library, volume: medimg.Volume) -> tuple[str, str]:
    """Return what a round trip gives, and the message of an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", MedimgWarning)
            found = library.back(library.to(volume))
    except MedimgError as error:
        return type(error).__name__, str(error)
    assert np.array_equal(found.array, volume.array), (library.name, volume)
    assert found.photometric == volume.photometric, (library.name, volume)
    kind = "" if found.array.dtype == volume.array.dtype else f", as {found.array.dtype}"
    same = np.allclose(found.affine, volume.affine, rtol=0, atol=1e-6) and found.space == volume.space
    return ("equal" if same else "values equal") + kind, ""
