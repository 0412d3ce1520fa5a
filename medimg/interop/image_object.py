"""ImageObject: an image of another library, recognized without importing the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeAlias, TypeVar

import numpy as np

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.volume import Photometric, Space, Volume
from medimg.errors import GeometryError, MedimgError, ReadError

if TYPE_CHECKING:
    import highdicom
    import numpy.typing as npt
    import PIL.Image
    import pydicom
    import SimpleITK
    import torchio
    import xarray
    from monai.data.meta_tensor import MetaTensor
    from nibabel.spatialimages import SpatialImage

    #: Every image of another library that is read as a volume.
    AnyImage: TypeAlias = (
        SimpleITK.Image
        | SpatialImage
        | MetaTensor
        | torchio.Image
        | highdicom.Volume
        | PIL.Image.Image
        | xarray.DataArray
        | pydicom.Dataset
    )

__all__ = [
    "ImageObject",
    "find_library",
    "guard_conversion",
    "is_dataset",
    "is_image_object",
    "open_image_object",
]

#: Types of colors that are whole numbers, with white at the maximum.
_COLOR_TYPES: Final = frozenset({"uint8", "uint16", "uint32"})
_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")

#: Library of a class, by the root of its module and its name.
_LIBRARIES: Final = {
    ("SimpleITK", "Image"): "SimpleITK",
    ("nibabel", "SpatialImage"): "nibabel",
    ("monai", "MetaTensor"): "MONAI",
    ("torchio", "Image"): "TorchIO",
    ("highdicom", "Volume"): "highdicom",
    ("PIL", "Image"): "Pillow",
    ("xarray", "DataArray"): "xarray",
    ("pydicom", "Dataset"): "pydicom",
}
#: Module and function that describes an image, imported when one is met: reading never imports torch.
_OPENERS: Final = {
    "SimpleITK": ("sitk_image", "open_sitk"),
    "nibabel": ("nibabel_image", "open_nibabel"),
    "MONAI": ("meta_tensor", "open_meta_tensor"),
    "TorchIO": ("torchio_image", "open_torchio"),
    "highdicom": ("highdicom_volume", "open_highdicom"),
    "Pillow": ("pil_image", "open_pil"),
    "xarray": ("data_array", "open_data_array"),
}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class ImageObject:
    """
    An image of another library: its geometry and facts, and a function that returns its values.

    Attributes
    ----------
    format : str
        Name of the library.
    shape : tuple of 4 ints
        (C, D, H, W); C is 3 for a color image whose channels may turn out to be equal (`load` returns one).
    affine : numpy.ndarray
        (4, 4): index (d, h, w) to LPS millimeters.
    load : callable
        Returns the values (C, D, H, W), which nothing else changes, and steps for the report.
    space : {"patient", "image"}
        Whether the affine maps to patient coordinates.
    modality, units, photometric, inverted, channels
        As in :class:`medimg.Volume`.
    display_range : tuple of 2 floats, optional
        As in :class:`medimg.Volume`, of values of type `dtype`.
    dtype : str
        Type of the values before another library converted them; "" if unknown.
    """

    format: str
    shape: tuple[int, int, int, int]
    affine: geometry.Affine = field(repr=False)
    load: Callable[[], tuple[npt.NDArray[Any], tuple[str, ...]]] = field(repr=False)
    space: Space = "patient"
    modality: str = ""
    units: str = "raw"
    photometric: Photometric = "MONOCHROME2"
    inverted: bool = False
    channels: tuple[str, ...] = ()
    display_range: tuple[float, float] | None = None
    dtype: str = ""

    def to_volume(self, *, modality: str | None = None, units: str | None = None) -> Volume:
        """Return the volume; modality and units replace those of the image."""
        array, steps = guard_conversion(self.format)(self.load)()
        is_gray = self.photometric == "RGB" and array.shape[0] == 1
        if array.shape != self.shape and not (is_gray and array.shape[1:] == self.shape[1:]):
            raise ReadError(
                f"the {self.format} image has values of shape {array.shape}, its header says {self.shape}"
            )
        if array.dtype.kind not in "biuf":
            raise ReadError(
                f"the {self.format} image has values of type {array.dtype}; expected integers, floats or bool"
            )
        if self.photometric == "RGB" and not is_gray:
            array, steps = self._restore_colors(array, steps)
        return Volume(
            array=array.astype(array.dtype.newbyteorder("="), copy=False),
            affine=self.affine,
            modality=self.modality if modality is None else modality,
            units=self.units if units is None else units,
            photometric="MONOCHROME2" if is_gray else self.photometric,
            inverted=self.inverted,
            space=self.space,
            channels=() if is_gray else self.channels,
            display_range=self.display_range if array.dtype.name == self.dtype else None,
            report=ReadReport(format=self.format, transforms=steps),
        )

    def _restore_colors(
        self, array: npt.NDArray[Any], steps: tuple[str, ...]
    ) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
        """Return colors whose white is the maximum of their type again, after a conversion to another one."""
        if array.dtype.name == self.dtype or self.dtype not in _COLOR_TYPES:
            return array, steps
        white = np.iinfo(self.dtype).max
        if array.dtype.kind == "f":
            # a transform may have scaled them already; up to 1 of 255 all are black in either reading
            if not (array > 1).any():
                return array, steps
            scaled = array / array.dtype.type(white)
            return scaled, (*steps, f"colors divided by {white}")
        if array.min() < 0 or array.max() > white:
            raise ReadError(
                f"the {self.format} image has colors from {array.min()} to {array.max()}; expected 0 "
                f"to {white}: clip or scale them"
            )
        return array.astype(self.dtype), steps


def find_library(source: object) -> str | None:
    """
    Return the name of the library that an image belongs to; None if it is no image of a known library.

    Examples
    --------
    >>> import PIL.Image
    >>> find_library(PIL.Image.new("L", (2, 2))), find_library("scan.dcm"), find_library(np.zeros(3))
    ('Pillow', None, None)
    """
    for kind in type(source).__mro__:
        found = _LIBRARIES.get((kind.__module__.partition(".")[0], kind.__name__))
        if found is not None:
            return found
    return None


def is_dataset(source: object) -> bool:
    """Whether an object is a pydicom Dataset."""
    return find_library(source) == "pydicom"


def is_image_object(source: object) -> bool:
    """Whether an object is an image of another library, with its own geometry; a pydicom Dataset is none."""
    return find_library(source) in _OPENERS


def open_image_object(source: object) -> ImageObject:
    """Return the geometry of another library's image; ReadError or GeometryError if it is not supported."""
    library = find_library(source)
    if library not in _OPENERS:
        raise ReadError(f"a {type(source).__name__} is no image of a known library")
    module, function = _OPENERS[library]
    found: ImageObject = getattr(import_module(f"medimg.interop.{module}"), function)(source)
    return found


def guard_conversion(library: str) -> Callable[[Callable[_Args, _Result]], Callable[_Args, _Result]]:
    """Make ReadError of another library's exceptions, whose texts may hold paths or values."""

    def decorate(function: Callable[_Args, _Result]) -> Callable[_Args, _Result]:
        def guarded(*args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
            try:
                return function(*args, **kwargs)
            except (MedimgError, MemoryError):
                raise
            # images whose files are gone, or that contradict themselves, raise errors of many types
            except Exception as error:
                raise ReadError(
                    f"the {library} image can't be read ({type(error).__name__}); check that the library "
                    "itself gives its values"
                ) from None

        return guarded

    return decorate


def check_affine(affine: npt.ArrayLike, library: str) -> geometry.Affine:
    """Return a (4, 4) affine; GeometryError if it is not finite, or singular."""
    found = np.array(affine, dtype=np.float64)
    finite = found.shape == (4, 4) and np.isfinite(found).all() and (found[3] == (0, 0, 0, 1)).all()
    if not finite or np.linalg.det(found[:3, :3]) == 0:
        raise GeometryError(
            f"the affine of the {library} image is not a finite, invertible 4×4 matrix with the last row "
            "(0, 0, 0, 1); correct its directions and spacings"
        )
    return found
