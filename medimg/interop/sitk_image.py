"""SimpleITK images: ``to_sitk`` and ``from_sitk``."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.errors import ReadError
from medimg.interop._exchange import (
    as_volume,
    check_perpendicular,
    check_type,
    convert_image,
    find_facts,
    list_facts,
    own_values,
)
from medimg.interop.image_object import ImageObject, check_affine, guard_conversion

if TYPE_CHECKING:
    import numpy.typing as npt
    import SimpleITK

    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = ["from_sitk", "open_sitk", "to_sitk"]

_TYPES: Final = (
    "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
)  # fmt: skip
#: Attributes of DICOM, as SimpleITK's readers name them in metadata.
_MODALITY_TAG: Final = "0008|0060"
_POSITION_TAG: Final = "0020|0032"


@set_module("medimg")
def to_sitk(volume: Volume | Explanation) -> SimpleITK.Image:
    """
    Convert a volume to a SimpleITK image, with a copy of its values.

    Sizes are in the order of SimpleITK, (W, H, D): one slice is an image with a depth of 1. Colors become a
    vector of three components for each pixel; other channels, such as time points, a fourth dimension with a
    spacing of 1, as SimpleITK reads them from NIfTI. The geometry is exact. Metadata: modality
    (``"0008|0060"``), ``"units"``, ``"photometric"``, ``"inverted"``, ``"geometry"`` ("patient" or "image"),
    ``"dtype"``, ``"display_range"``, and ``"channels"`` as JSON; most filters of SimpleITK drop them.

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.

    Returns
    -------
    SimpleITK.Image
        The position of the voxel (i, j, k) is that of ``volume.array[:, k, j, i]``, in LPS millimeters.

    Raises
    ------
    GeometryError
        If the axes are not perpendicular: filters of ITK expect direction cosines that are.
    ConversionError
        If SimpleITK has no such values (bool, float16).

    Examples
    --------
    >>> import medimg
    >>> from medimg.core.geometry import image_affine
    >>> volume = medimg.Volume(np.zeros((1, 4, 64, 80), np.int16), image_affine((2.0, 0.5, 0.5)), "CT", "HU")
    >>> image = medimg.to_sitk(volume)
    >>> image.GetSize(), image.GetSpacing(), image.GetMetaData("units")
    ((80, 64, 4), (0.5, 0.5, 2.0), 'HU')
    """
    import SimpleITK

    volume = as_volume(volume, "to_sitk")
    check_type(volume, _TYPES, "SimpleITK")
    check_perpendicular(volume, "SimpleITK")
    array = volume.array.astype(volume.array.dtype.newbyteorder("="), copy=False)
    is_vector, is_series = volume.is_color, volume.shape[0] > 1 and not volume.is_color
    if is_vector:
        image = SimpleITK.GetImageFromArray(array.transpose(1, 2, 3, 0), isVector=True)
    else:
        image = SimpleITK.GetImageFromArray(array if is_series else array[0], isVector=False)
    columns = volume.affine[:3, 2::-1]
    spacing = np.linalg.norm(columns, axis=0)
    direction, origin = np.eye(3 + is_series), np.zeros(3 + is_series)
    direction[:3, :3] = columns / spacing
    origin[:3] = volume.affine[:3, 3]
    image.SetSpacing([*spacing.tolist(), *[1.0] * is_series])
    image.SetDirection(direction.ravel().tolist())
    image.SetOrigin(origin.tolist())
    for key, value in list_facts(volume).items():
        text = value if isinstance(value, str) else json.dumps(value)
        image.SetMetaData(_MODALITY_TAG if key == "modality" else key, text)
    return image


@set_module("medimg")
def from_sitk(image: SimpleITK.Image, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert a SimpleITK image to a volume, with a copy of its values.

    Components of a pixel become channels, three of 8 bits RGB; the fourth dimension, too. Label maps become
    images of their labels. Images of two dimensions have no position in a patient (``space="image"``), only a
    spacing.

    Parameters
    ----------
    image : SimpleITK.Image
        Image of two to four dimensions.
    modality, units : str, optional
        As in :class:`Volume`; by default as the image's metadata say: those of :func:`to_sitk`, or those that
        SimpleITK reads from DICOM.

    Returns
    -------
    Volume

    Raises
    ------
    GeometryError
        If the directions are singular, or mix the fourth dimension with space.
    ReadError
        If the image has complex numbers, other dimensions, or both components and a fourth dimension.

    Examples
    --------
    >>> import SimpleITK as sitk
    >>> import medimg
    >>> image = sitk.Image([80, 64, 4], sitk.sitkInt16)
    >>> image.SetSpacing([0.5, 0.5, 2.0])
    >>> medimg.from_sitk(image, modality="CT", units="HU")
    Volume(1×4×64×80 int16, CT, HU, spacing 2×0.5×0.5 mm, SPL)
    """
    return convert_image(image, "SimpleITK", modality=modality, units=units)


@guard_conversion("SimpleITK")
def open_sitk(image: SimpleITK.Image) -> ImageObject:
    """Return the geometry and facts of an image."""
    image = _expand_labels(image)
    dimension, samples = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    kind = image.GetPixelIDTypeAsString()
    if not 2 <= dimension <= 4 or (dimension == 4 and samples > 1) or "complex" in kind:
        raise ReadError(
            f"the SimpleITK image has {dimension} dimensions of pixels of type {kind} with {samples} "
            "components; expected 2 to 4 dimensions, one component if there are 4, and no complex numbers"
        )
    w, h, d, t = (*image.GetSize(), 1, 1)[:4]
    metadata = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    is_color = samples == 3 and kind == "vector of 8-bit unsigned integer"
    is_flat = dimension == 2 or _lacks_position(image, metadata)
    facts = find_facts(metadata, samples * t, space="image" if is_flat else "patient", is_color=is_color)
    return ImageObject(
        format="SimpleITK",
        shape=(samples * t, d, h, w),
        affine=_build_affine(image, is_flat=facts.space == "image"),
        load=partial(_load, image),
        **facts._asdict(),
    )


def _expand_labels(image: SimpleITK.Image) -> SimpleITK.Image:
    """Return a label map, which stores runs of equal values, as an image of them; others unchanged."""
    import SimpleITK

    # most methods of a label map end the process
    if not image.GetPixelIDTypeAsString().startswith("label of"):
        return image
    expanded: SimpleITK.Image = SimpleITK.LabelMapToLabel(image)
    for key in image.GetMetaDataKeys():
        expanded.SetMetaData(key, image.GetMetaData(key))
    return expanded


def _lacks_position(image: SimpleITK.Image, metadata: dict[str, str]) -> bool:
    """Whether an image was read from DICOM without Image Position (Patient), as of a projection X-ray."""
    is_dicom = _MODALITY_TAG in metadata and "geometry" not in metadata and _POSITION_TAG not in metadata
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)
    return is_dicom and not any(image.GetOrigin()) and bool((direction == np.eye(len(direction))).all())


def _build_affine(image: SimpleITK.Image, *, is_flat: bool) -> geometry.Affine:
    spacing = image.GetSpacing()
    if is_flat:
        return geometry.image_affine((*spacing, 1.0)[2::-1])
    direction = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)
    if direction[3:, :3].any() or direction[:3, 3:].any():
        raise ReadError("the directions of the SimpleITK image mix its fourth dimension with space")
    columns = np.eye(4)
    columns[:3, :3] = direction[:3, :3] * spacing[:3]
    columns[:3, 3] = image.GetOrigin()[:3]
    return geometry.lps_from_space(check_affine(columns, "SimpleITK"), "LPS")


def _load(image: SimpleITK.Image) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    import SimpleITK

    array = SimpleITK.GetArrayViewFromImage(image)
    dimension = image.GetDimension()
    if image.GetNumberOfComponentsPerPixel() > 1:
        array = np.moveaxis(array, -1, 0)
    elif dimension < 4:
        array = array[None]
    return own_values(array[:, None] if dimension == 2 else array), ()
