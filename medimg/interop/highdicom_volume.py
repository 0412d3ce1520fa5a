"""highdicom's Volume: ``to_highdicom`` and ``from_highdicom``."""

from __future__ import annotations

from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.errors import ConversionError, ReadError
from medimg.interop._exchange import (
    as_volume,
    check_perpendicular,
    check_type,
    convert_image,
    import_library,
    own_values,
    warn_of_inversion,
)
from medimg.interop.image_object import ImageObject, check_affine, guard_conversion

if TYPE_CHECKING:
    import highdicom
    import numpy.typing as npt

    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = ["from_highdicom", "open_highdicom", "to_highdicom"]

_TYPES: Final = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32",
    "float64",
)  # fmt: skip
_COLORS: Final = "RGBColorChannel"


@set_module("medimg")
def to_highdicom(volume: Volume | Explanation) -> highdicom.Volume:
    """
    Convert a volume to a Volume of highdicom, which shares its values, to make DICOM objects of.

    Both have slices, rows and columns in this order and an affine to LPS millimeters, which is equal.
    Channels become a dimension behind them: colors under highdicom's descriptor of colors, others under the
    custom descriptor "channel" with their names. highdicom has no place for modality and units.

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.

    Returns
    -------
    highdicom.Volume
        (D, H, W), or (D, H, W, C), in the coordinate system "PATIENT"; its array is a read-only view.

    Raises
    ------
    GeometryError
        If the axes are not perpendicular.
    ConversionError
        If the image has no position in a patient (``space="image"``).
    MissingDependencyError
        If highdicom is not installed.

    Examples
    --------
    >>> import medimg
    >>> from medimg.core.geometry import image_affine
    >>> volume = medimg.Volume(np.zeros((1, 4, 64, 80), np.int16), image_affine((2.0, 0.5, 0.5)), "CT", "HU")
    >>> found = medimg.to_highdicom(volume)
    >>> found.spatial_shape, found.spacing, found.get_closest_patient_orientation()[0].value
    ((4, 64, 80), (2.0, 0.5, 0.5), 'H')
    """
    volume = as_volume(volume, "to_highdicom")
    check_type(volume, _TYPES, "highdicom")
    check_perpendicular(volume, "highdicom")
    if volume.space != "patient":
        raise ConversionError(
            "highdicom places volumes in a patient, and this image has no position in one; if you know it, "
            'give it one: dataclasses.replace(volume, affine=affine, space="patient")'
        )
    warn_of_inversion(volume, "highdicom")
    module = import_library("highdicom")
    channels: dict[Any, list[str]] | None = None
    array = volume.array[0]
    if volume.shape[0] > 1:
        from highdicom.volume import RGB_COLOR_CHANNEL_DESCRIPTOR, ChannelDescriptor

        array = volume.array.transpose(1, 2, 3, 0)
        if volume.is_color:
            channels = {RGB_COLOR_CHANNEL_DESCRIPTOR: ["R", "G", "B"]}
        else:
            descriptor = ChannelDescriptor("channel", is_custom=True, value_type=str)
            channels = {descriptor: list(volume.channels)}
    found: highdicom.Volume = module.Volume(array, volume.affine, "PATIENT", channels=channels)
    return found


@set_module("medimg")
def from_highdicom(
    volume: highdicom.Volume, *, modality: str | None = None, units: str | None = None
) -> Volume:
    """
    Convert a Volume of highdicom, with a copy of its values.

    Parameters
    ----------
    volume : highdicom.Volume
        With at most one dimension of channels. In the coordinate system "SLIDE" it has a spacing, but no
        position in a patient (``space="image"``).
    modality, units : str, optional
        As in :class:`Volume`; unknown by default.

    Returns
    -------
    Volume

    Raises
    ------
    ReadError
        If it has more than one dimension of channels.

    Examples
    --------
    >>> import highdicom
    >>> import medimg
    >>> found = highdicom.Volume(np.zeros((4, 64, 80), np.int16), np.diag([2.0, 0.5, 0.5, 1.0]), "PATIENT")
    >>> medimg.from_highdicom(found, modality="CT", units="HU").orientation
    'LPS'
    """
    return convert_image(volume, "highdicom", modality=modality, units=units)


@guard_conversion("highdicom")
def open_highdicom(volume: highdicom.Volume) -> ImageObject:
    """Return the geometry and channels of a volume."""
    descriptors = volume.channel_descriptors
    if len(descriptors) > 1:
        raise ReadError(
            f"the highdicom Volume has {len(descriptors)} dimensions of channels; expected at most one: "
            "select with get_channel"
        )
    d, h, w = volume.spatial_shape
    names: tuple[str, ...] = ()
    is_color = False
    if descriptors:
        values = volume.get_channel_values(descriptors[0])
        names = tuple(str(value.value if isinstance(value, Enum) else value) for value in values)
        is_color = descriptors[0].keyword == _COLORS and names == ("R", "G", "B")
    affine = check_affine(volume.affine, "highdicom")
    is_placed = volume.coordinate_system.value == "PATIENT"
    return ImageObject(
        format="highdicom",
        shape=(len(names) or 1, d, h, w),
        affine=affine if is_placed else geometry.image_affine(geometry.spacing_of(affine)),
        load=partial(_load, volume),
        space="patient" if is_placed else "image",
        photometric="RGB" if is_color else "MONOCHROME2",
        channels=names if len(names) > 1 else (),
    )


def _load(volume: Any) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    array = volume.array
    return own_values(array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)), ()
