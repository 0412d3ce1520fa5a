"""nibabel images: ``to_nibabel`` and ``from_nibabel``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.errors import ConversionError, GeometryError, ReadError
from medimg.interop._exchange import (
    as_volume,
    check_perpendicular,
    check_type,
    convert_image,
    own_values,
    warn_of_inversion,
)
from medimg.interop.image_object import ImageObject, check_affine, guard_conversion

if TYPE_CHECKING:
    import numpy.typing as npt
    from nibabel.nifti1 import Nifti1Image
    from nibabel.spatialimages import SpatialImage

    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = ["from_nibabel", "open_nibabel", "to_nibabel"]

_TYPES: Final = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
)  # fmt: skip
_RGB: Final = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
_COLORS: Final = {("R", "G", "B"), ("R", "G", "B", "A")}
_MILLIMETERS: Final = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 1e-3}
#: Greatest size of an axis in NIfTI-1 (nifti1.h: dim is int16).
_MAX_SIZE: Final = 2**15 - 1
#: Codes of a form: unknown, and scanner-based anatomical coordinates.
_UNKNOWN, _SCANNER = 0, 1


@set_module("medimg")
def to_nibabel(volume: Volume | Explanation) -> Nifti1Image:
    """
    Convert a volume to a NIfTI image of nibabel, which shares its values.

    Axes are in the order of NIfTI, (i, j, k) = (W, H, D), with channels that are no colors as the fourth
    axis, time; colors of 8 bits have the type RGB24. The affine maps to RAS millimeters and is exact in
    memory; files of NIfTI round it to 32 bits. An image without a position in a patient
    (``space="image"``) has sform and qform code 0 and voxel sizes. NIfTI has no place for modality, units
    and names of channels.

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.

    Returns
    -------
    nibabel.Nifti1Image
        ``image.dataobj`` is a read-only view of the volume; ``nibabel.Nifti2Image`` if an axis is longer than
        32,767.

    Raises
    ------
    ConversionError
        If NIfTI has no such values (bool, float16, colors that are not of 8 bits).

    Examples
    --------
    >>> import medimg
    >>> from medimg.core.geometry import lps_from_ras
    >>> volume = medimg.Volume(np.zeros((1, 4, 64, 80), np.int16), lps_from_ras(np.diag([0.5, 0.5, 2, 1])))
    >>> image = medimg.to_nibabel(volume)
    >>> image.shape, image.affine.diagonal().tolist(), image.get_data_dtype().name
    ((80, 64, 4), [0.5, 0.5, 2.0, 1.0], 'int16')
    """
    import nibabel as nib

    volume = as_volume(volume, "to_nibabel")
    warn_of_inversion(volume, "NIfTI")
    array = _to_axes(volume)
    affine = geometry.ras_from_lps(volume.affine)
    kind: Any = nib.Nifti1Image if max(array.shape) <= _MAX_SIZE else nib.Nifti2Image
    image: nib.Nifti1Image = kind(array, affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm")
    if volume.space == "image":
        image.header.set_zooms((*volume.spacing[::-1], *[1.0] * (array.ndim - 3)))
        image.header.set_qform(None, _UNKNOWN)
        image.set_sform(None, _UNKNOWN, update_affine=True)
        return image
    # updating the affine from the header would round it to 32 bits
    image.set_sform(affine, _SCANNER, update_affine=False)
    try:
        check_perpendicular(volume, "")
    except GeometryError:
        return image  # a qform is a rotation
    image.set_qform(affine, _SCANNER, update_affine=False)
    return image


def _to_axes(volume: Volume) -> npt.NDArray[Any]:
    """Return values (W, H, D) or (W, H, D, C), a view unless they are colors."""
    if not volume.is_color:
        check_type(volume, _TYPES, "NIfTI")
        array = volume.array.transpose(3, 2, 1, 0)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        return array[..., 0] if volume.shape[0] == 1 else array
    if volume.array.dtype != np.uint8:
        raise ConversionError(
            f"NIfTI has colors of 8 bits only, and these are of type {volume.array.dtype.name}: convert them "
            "with volume.with_array, or convert one color, volume.select(channel)"
        )
    packed = np.ascontiguousarray(volume.array.transpose(1, 2, 3, 0)).view(_RGB)
    return packed[..., 0].transpose(2, 1, 0)


@set_module("medimg")
def from_nibabel(image: SpatialImage, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert an image of nibabel to a volume, with a copy of its values.

    The fourth or fifth axis becomes channels. Values are scaled by slope and intercept as nibabel does. A
    NIfTI image whose sform and qform code are 0 has voxel sizes, but no position in a patient
    (``space="image"``).

    Parameters
    ----------
    image : nibabel.spatialimages.SpatialImage
        NIfTI, MGH, MINC, PAR/REC, AFNI or another image with an affine.
    modality, units : str, optional
        As in :class:`Volume`; unknown by default.

    Returns
    -------
    Volume

    Raises
    ------
    GeometryError
        If the affine is singular or not finite.
    ReadError
        If it is ANALYZE, in which left and right are ambiguous, has complex numbers or other axes, or its
        file can't be read.

    Examples
    --------
    >>> import nibabel as nib
    >>> import medimg
    >>> image = nib.Nifti1Image(np.zeros((80, 64, 4), np.int16), np.diag([-0.5, -0.5, 2, 1]))
    >>> medimg.from_nibabel(image, modality="MR")
    Volume(1×4×64×80 int16, MR, raw, spacing 2×0.5×0.5 mm, SPL)
    """
    return convert_image(image, "nibabel", modality=modality, units=units)


@guard_conversion("nibabel")
def open_nibabel(image: SpatialImage) -> ImageObject:
    """Return the geometry of an image, without reading its values."""
    names = {kind.__name__ for kind in type(image).__mro__}
    is_nifti = "Nifti1Pair" in names
    if "AnalyzeImage" in names and not is_nifti:
        raise ReadError(
            "the nibabel image is ANALYZE, in which left and right are ambiguous; make a NIfTI image of it "
            "with an affine that you have checked: nibabel.Nifti1Image(image.dataobj, affine)"
        )
    size = tuple(int(n) for n in image.shape)
    i, j, k, t, v, *more = (*size, *(1,) * (5 - len(size)))
    if any(n != 1 for n in more) or (t != 1 and v != 1):
        raise ReadError(
            f"the nibabel image has the shape {size}; three dimensions and either time or a vector "
            "are supported"
        )
    colors = image.get_data_dtype().names
    if colors is not None and (colors not in _COLORS or t * v != 1):
        raise ReadError(
            f"the nibabel image has values of fields {colors} at {t * v} time points; expected numbers, or "
            "R, G and B at one time point"
        )
    is_scaled = (getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)) != (1.0, 0.0)
    is_vector = v == 3 and image.get_data_dtype() == np.uint8 and not is_scaled
    is_color = colors is not None or is_vector
    affine, is_placed = _find_affine(image, is_nifti=is_nifti)
    return ImageObject(
        format="nibabel",
        shape=(3 if colors else t * v, k, j, i),
        affine=affine,
        load=partial(_load, image),
        space="patient" if is_placed else "image",
        photometric="RGB" if is_color else "MONOCHROME2",
    )


def _find_affine(image: Any, *, is_nifti: bool) -> tuple[geometry.Affine, bool]:
    """Return the affine to LPS millimeters, and whether it maps to a patient."""
    header = image.header
    if image.affine is None and not is_nifti:
        raise ReadError("the nibabel image has no affine; give it one, nibabel.Nifti1Image(data, affine)")
    scale = _MILLIMETERS[header.get_xyzt_units()[0]] if is_nifti else 1.0
    is_placed = not is_nifti or int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    # an affine that was set later is more than voxel sizes, whatever the codes
    is_set = image.affine is not None and not (
        is_nifti and np.allclose(image.affine, header.get_base_affine())
    )
    if image.affine is not None and (is_placed or is_set):
        affine = geometry.lps_from_ras(check_affine(image.affine, "nibabel"))
        is_placed = True
    else:
        affine = geometry.image_affine([float(size) or 1.0 for size in header.get_zooms()[2::-1]])
    affine[:3] *= scale
    return affine, is_placed


def _load(image: Any) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    array = np.asanyarray(image.dataobj)
    fields = array.dtype.names
    if fields is not None:
        planes = np.stack([array[name] for name in "RGB"])
        steps = ("transparency dropped",) if "A" in fields else ()
        return np.ascontiguousarray(planes.reshape(3, *array.shape[:3]).transpose(0, 3, 2, 1)), steps
    i, j, k = (*array.shape, 1, 1)[:3]
    # the axes beyond the third, of which one at most is longer than 1, become one
    values = array.reshape(i, j, k, -1) if array.ndim != 4 else array
    return own_values(values.transpose(3, 2, 1, 0)), ()
