"""What all conversions share: arguments, types of values, facts as metadata, shear."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from medimg.core.volume import Photometric, Space, Volume
from medimg.errors import ConversionError, GeometryError, MedimgWarning, MissingDependencyError, ReadError
from medimg.interop.image_object import find_library, open_image_object

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "as_volume",
    "check_perpendicular",
    "check_type",
    "convert_image",
    "find_facts",
    "import_library",
    "list_facts",
    "own_values",
    "warn_of_inversion",
    "widen_unsigned",
]

#: Cosine between two axes up to which they count as perpendicular; headers round directions.
_PERPENDICULAR: Final = 1e-4
#: Attributes of DICOM, as ITK's reader names them in metadata.
_MODALITY, _UNITS, _IMAGE_TYPE = "0008|0060", "0054|1001", "0008|0008"
_PHOTOMETRIC, _RESCALE_TYPE, _LUT_SHAPE = "0028|0004", "0028|1054", "2050|0020"


def as_volume(source: object, function: str) -> Volume:
    """Return a volume, or the one that a heat map makes; ConversionError for anything else."""
    if isinstance(source, Volume):
        return source
    make = getattr(source, "to_volume", None)
    volume = make() if callable(make) else None
    if isinstance(volume, Volume):
        return volume
    raise ConversionError(
        f"medimg.{function} takes a Volume or a heat map; found a {type(source).__name__}: read it first, "
        f"medimg.{function}(medimg.read(source))"
    )


def import_library(name: str, install: str | None = None) -> Any:
    """Import an optional library; MissingDependencyError says how to install it."""
    try:
        return import_module(name)
    except ImportError:
        raise MissingDependencyError(
            f"{name} is not installed; install it with: pip install {install or name}"
        ) from None


def convert_image(source: object, library: str, *, modality: str | None, units: str | None) -> Volume:
    """Return the volume of an image of a library; ReadError for anything else."""
    if find_library(source) != library:
        raise ReadError(
            f"expected an image of {library}; found a {type(source).__name__}: medimg.read takes any source"
        )
    return open_image_object(source).to_volume(modality=modality, units=units)


def check_type(volume: Volume, supported: Iterable[str], target: str, *, advice: str = "") -> None:
    """Raise ConversionError if a target has no such values."""
    dtype, types = volume.array.dtype.newbyteorder("="), list(supported)
    if dtype.name in types:
        return
    suggested = "uint8" if dtype.kind == "b" else "float32"
    way = advice or f'volume.with_array(volume.array.astype("{suggested}"))'
    raise ConversionError(
        f"{target} has no values of type {dtype.name}; expected {', '.join(types)}: convert them, {way}"
    )


def check_perpendicular(volume: Volume, target: str) -> None:
    """Raise GeometryError for a sheared volume, whose axes are not perpendicular."""
    directions = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    cosines = np.abs(directions.T @ directions - np.eye(3))
    if cosines.max() > _PERPENDICULAR:
        tilt = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
        raise GeometryError(
            f"{target} needs perpendicular axes, and those of this volume are sheared by {tilt:.3g} degrees, "
            'as with a tilted gantry: read it with on_tilt="fix", which resamples it, or use '
            "medimg.to_nibabel, to_monai or to_xarray, which keep any affine"
        )


def own_values(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a contiguous copy in native byte order, which later changes of the original don't reach."""
    return np.array(array, dtype=array.dtype.newbyteorder("="), order="C", copy=True)


def widen_unsigned(array: npt.NDArray[Any], target: str) -> npt.NDArray[Any]:
    """Return a copy with wider types for unsigned integers with which torch can't compute."""
    kind = array.dtype.newbyteorder("=").name
    if kind == "uint64" and array.size and int(array.max()) > np.iinfo(np.int64).max:
        raise ConversionError(
            f"{target} can't hold values of uint64 above 2**63 - 1; scale or clip them with volume.with_array"
        )
    wider = {"uint16": np.int32, "uint32": np.int64, "uint64": np.int64}.get(kind)
    return own_values(array) if wider is None else np.ascontiguousarray(array, dtype=wider)


def warn_of_inversion(volume: Volume, target: str) -> None:
    """Warn of a volume that displays invert, if its target can't say so."""
    if volume.inverted:
        warnings.warn(
            f"{target} can't say that a display inverts this image (MONOCHROME1): its values are unchanged, "
            "and dark and bright are exchanged when it is shown or read back",
            MedimgWarning,
            stacklevel=3,
        )


class Facts(NamedTuple):
    """Facts of a volume beside values and places."""

    modality: str = ""
    units: str = "raw"
    photometric: Photometric = "MONOCHROME2"
    inverted: bool = False
    space: Space = "patient"
    channels: tuple[str, ...] = ()
    display_range: tuple[float, float] | None = None
    dtype: str = ""


def list_facts(volume: Volume) -> dict[str, Any]:
    """Return the facts of a volume as metadata; nothing that identifies a patient."""
    facts: dict[str, Any] = {
        "modality": volume.modality,
        "units": volume.units,
        "photometric": volume.photometric,
        "inverted": str(volume.inverted),
        "geometry": volume.space,
        "dtype": volume.array.dtype.name,
    }
    if volume.display_range is not None:
        facts["display_range"] = "{} {}".format(*volume.display_range)
    if len(volume.channels) > 1:
        facts["channels"] = list(volume.channels)
    return {key: value for key, value in facts.items() if value != ""}


def find_facts(
    metadata: Mapping[str, Any], channels: int, *, space: Space = "patient", is_color: bool = False
) -> Facts:
    """
    Return the facts that metadata state.

    `is_color`: whether channels are colors if nothing else is stated. Keys of the same name with other
    contents are another program's.
    """
    photometric = _find_photometric(metadata, channels, is_color=is_color)
    names = metadata.get("channels")
    if isinstance(names, str) and names.startswith("["):
        names = _parse_list(names)
    is_named = isinstance(names, list | tuple) and len(names) == channels > 1
    return Facts(
        modality=_find_text(metadata, "modality", _MODALITY),
        units=_find_text(metadata, "units") or _find_dicom_units(metadata) or "raw",
        photometric=photometric,
        inverted=_is_inverted(metadata, photometric),
        space="image" if _is_unplaced(metadata) else space,
        channels=tuple(str(name) for name in names or ()) if is_named else (),
        display_range=_parse_range(_find_text(metadata, "display_range")),
        dtype=_find_text(metadata, "dtype"),
    )


def _parse_range(text: str) -> tuple[float, float] | None:
    """Return two ascending numbers; None for other texts."""
    try:
        low, high = map(float, text.split())
    except ValueError:
        return None
    return (low, high) if low < high else None


def _is_unplaced(metadata: Mapping[str, Any]) -> bool:
    """Whether an image has no position in a patient, as stated, or by the codes of its NIfTI file."""
    codes = [str(metadata.get(key)) for key in ("sform_code", "qform_code")]
    return metadata.get("geometry") == "image" or codes == ["0", "0"]


def _find_text(metadata: Mapping[str, Any], *keys: str) -> str:
    """Return the first text; readers of DICOM pad some with spaces."""
    texts = (value.strip(" \0") for key in keys if isinstance(value := metadata.get(key), str))
    return next(filter(None, texts), "")


def _find_photometric(metadata: Mapping[str, Any], channels: int, *, is_color: bool) -> Photometric:
    stated = _find_text(metadata, "photometric")
    if channels == 3 and (is_color or "RGB" in (stated, _find_text(metadata, _PHOTOMETRIC))):
        return "RGB"
    return "MONOCHROME1" if stated == "MONOCHROME1" else "MONOCHROME2"


def _is_inverted(metadata: Mapping[str, Any], photometric: Photometric) -> bool:
    """
    Whether a display inverts the values: as stated, or by the attributes of DICOM (PS3.3 C.11.6).

    ITK inverts values of MONOCHROME1 itself when it reads them, and leaves the attribute as it is.
    """
    stated = metadata.get("inverted")
    if stated in ("True", "False"):
        return bool(stated == "True")
    is_shape = _find_text(metadata, _LUT_SHAPE) == "INVERSE" and not _is_inverted_by_itk(metadata)
    return photometric == "MONOCHROME1" or is_shape


def _is_inverted_by_itk(metadata: Mapping[str, Any]) -> bool:
    return _find_text(metadata, _PHOTOMETRIC) == "MONOCHROME1"


def _find_dicom_units(metadata: Mapping[str, Any]) -> str:
    """Return the units of DICOM read and rescaled by another library, as for files (PS3.3 C.11.1)."""
    if _MODALITY not in metadata or _is_inverted_by_itk(metadata):
        return ""
    units, modality = _find_text(metadata, _RESCALE_TYPE), _find_text(metadata, _MODALITY)
    if modality == "CT":
        is_scout = "LOCALIZER" in _find_text(metadata, _IMAGE_TYPE)
        return "HU" if units in ("", "HU", "US") and not is_scout else ""
    if not units and modality == "PT":
        units = _find_text(metadata, _UNITS)
    return "" if units == "US" else units


def _parse_list(text: str) -> list[Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []
