"""NIfTI-1 and NIfTI-2 files, through nibabel."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core import geometry
from medimg.core.report import ReadReport
from medimg.core.rescale import rescaled
from medimg.core.volume import Volume
from medimg.errors import DecodeError, GeometryError, NotAnImageError, ReadError, TruncatedError
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

__all__ = ["is_nifti_name", "nifti_series"]

_MOST_BYTES: Final = 2**35
_LEAST_VOLUME: Final = 1e-15
_UNITS: Final = {"meter": 1000.0, "mm": 1.0, "micron": 1e-3, "sec": 1.0, "msec": 1e-3, "usec": 1e-6}


def is_nifti_name(name: str) -> bool:
    """Whether a file is called like a NIfTI file: ``.nii`` or ``.nii.gz``."""
    return name.lower().endswith((".nii", ".nii.gz"))


def nifti_series(path: str | Path) -> Series:
    """
    Read the header of a NIfTI file.

    Raises
    ------
    NotAnImageError
        If it is none.
    ReadError
        If it can't be opened, or holds what medimg does not read (complex numbers, five dimensions).
    """
    image = _load(path)
    channels, names = _channels(image, path)
    i, j, k = _space_shape(image)
    _check_size(image, path)
    affine, space = _affine(image, path)
    times = None
    if len(channels) == 1 and len(image.shape) > 3:
        unit = _UNITS.get(image.header.get_xyzt_units()[1], 1.0)
        step = float(image.header["pixdim"][4]) * unit
        times = tuple(step * t for t in range(image.shape[3]))
    return Series(
        uid=str(path),
        modality="",
        description="",
        shape=(names, k, j, i),
        affine=affine,
        space="patient" if space else "image",
        files=(str(path),),
        format="NIfTI",
        reader=partial(_read, str(path)),
        frame_times=times,
    )


def _load(path: str | Path) -> Any:
    import nibabel as nib

    if not Path(path).is_file():
        raise ReadError(f"there is no file {path}")
    try:
        with nib.imageglobals.LoggingOutputSuppressor():
            # no memory map: an array that changes or dies with its file would not be a value
            image: Any = nib.load(path, mmap=False)
    # nibabel raises many kinds of exception on damaged headers
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ReadError(f"{path} can't be opened: {error.strerror}") from None
        if isinstance(error, EOFError):
            raise TruncatedError(f"{path} ends before its header does") from None
        raise NotAnImageError(f"{path} is no NIfTI file ({type(error).__name__})") from None
    if not isinstance(image, nib.Nifti1Pair):
        raise NotAnImageError(f"{path} is {type(image).__name__}, not NIfTI")
    return image


def _space_shape(image: Any) -> tuple[int, int, int]:
    i, j, k = (*image.shape, 1, 1, 1)[:3]
    return int(i), int(j), int(k)


def _channels(image: Any, path: str | Path) -> tuple[tuple[str, ...], int]:
    dtype = image.get_data_dtype()
    if len(image.shape) > 4 and any(n != 1 for n in image.shape[4:]):
        raise DecodeError(f"{path} has the shape {image.shape}; up to four dimensions are supported")
    if dtype.names is not None and len(image.shape) > 3 and image.shape[3] != 1:
        raise DecodeError(f"{path} is a color image of {image.shape[3]} time points; one is supported")
    if dtype.names is not None and dtype.names[:3] == ("R", "G", "B"):
        return ("R", "G", "B"), 3
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise DecodeError(f"{path} holds {dtype} values; real numbers of up to 8 bytes or RGB are supported")
    return ("",), int(image.shape[3]) if len(image.shape) > 3 else 1


def _check_size(image: Any, path: str | Path) -> None:
    shape = image.shape
    size = float(np.prod([float(n) for n in shape])) * image.get_data_dtype().itemsize
    if min(shape, default=0) < 1 or size > _MOST_BYTES:
        raise DecodeError(f"{path} declares the shape {shape}, which is empty or unreasonably large")
    length = Path(path).stat().st_size
    if str(path).lower().endswith(".nii") and length < size + image.dataobj.offset:
        raise TruncatedError(
            f"{path} is {length} bytes long, its header promises {size + image.dataobj.offset:.0f}"
        )


def _affine(image: Any, path: str | Path) -> tuple[geometry.Affine, bool]:
    """
    Return the affine to LPS millimeters, and whether it leads into a patient.

    Sform if its code is above 0, else qform, else voxel sizes only: the rule of the NIfTI standard. Sizes
    are in the unit of xyzt_units, millimeters where it says nothing.
    """
    placed = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    unit = _UNITS.get(image.header.get_xyzt_units()[0], 1.0)
    if placed:
        affine = geometry.lps_from_ras(image.affine)
    else:
        i, j, k = (abs(float(v)) or 1.0 for v in image.header["pixdim"][1:4])
        affine = geometry.image_affine((k, j, i))
    affine[:3] *= unit
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < _LEAST_VOLUME:
        raise GeometryError(f"{path}: its affine is singular or not finite; mend it, or set sform_code to 0")
    return affine, placed


def _read(path: str, slices: Sequence[int] | None, policies: Policies) -> Volume:
    image = _load(path)
    _check_size(image, path)
    values, steps = _values(image, path)
    affine, placed = _affine(image, path)
    color = values.shape[0] == 3 and image.get_data_dtype().names is not None
    volume = Volume(
        array=values,
        affine=affine,
        photometric="RGB" if color else "MONOCHROME2",
        space="patient" if placed else "image",
        report=ReadReport(format="NIfTI", files=(path,), transforms=steps),
    )
    return volume if slices is None else volume.take(slices)


def _values(image: Any, path: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    _channels(image, path)
    try:
        stored = np.asarray(image.dataobj.get_unscaled())
    except (EOFError, ValueError) as error:
        raise TruncatedError(f"{path} ends before its values do ({type(error).__name__})") from None
    # broken compression surfaces as OSError, zlib.error and others
    except Exception as error:
        raise DecodeError(f"{path}: its values can't be read ({type(error).__name__})") from None
    stored = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    if stored.dtype.names is not None:
        rgb = np.stack([stored[name] for name in ("R", "G", "B")])
        return rgb.reshape(3, *_space_shape(image)).transpose(0, 3, 2, 1), ()
    i, j, k = _space_shape(image)
    array = stored.reshape((i, j, k, -1), order="F").transpose(3, 2, 1, 0)
    slope, intercept = float(image.dataobj.slope), float(image.dataobj.inter)
    if (slope, intercept) == (1.0, 0.0):
        return array, ()
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = array * array.dtype.type(slope) + array.dtype.type(intercept)
        return scaled, (_step(slope, intercept),)
    return rescaled(array, slope, intercept), (_step(slope, intercept),)


def _step(slope: float, intercept: float) -> str:
    return f"rescaled: {slope:g} × stored + {intercept:g}"
