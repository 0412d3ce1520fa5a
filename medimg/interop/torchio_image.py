"""TorchIO images: ``to_torchio`` and ``from_torchio``."""

from __future__ import annotations

import copy
from functools import partial
from typing import TYPE_CHECKING, Any

from medimg._public import set_module
from medimg.core import geometry
from medimg.interop._exchange import (
    as_volume,
    check_type,
    convert_image,
    find_facts,
    import_library,
    list_facts,
    own_values,
)
from medimg.interop.image_object import ImageObject, check_affine, guard_conversion
from medimg.interop.meta_tensor import TENSOR_TYPES, tensor_values

if TYPE_CHECKING:
    import numpy.typing as npt
    import torchio

    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = ["from_torchio", "open_torchio", "to_torchio"]


@set_module("medimg")
def to_torchio(
    volume: Volume | Explanation, *, label: bool = False
) -> torchio.ScalarImage | torchio.LabelMap:
    """
    Convert a volume to an image of TorchIO, with a copy of its values.

    Axes are in the order of TorchIO, (C, W, H, D), and the affine maps to RAS millimeters; it holds any
    affine, shear included. uint16, uint32 and uint64, with which torch can't compute, become int32, int64 and
    int64. The image has the items ``"modality"``, ``"units"``, ``"photometric"``, ``"inverted"``,
    ``"geometry"`` ("patient" or "image"), ``"dtype"``, ``"display_range"`` and ``"channels"``; TorchIO does
    not change them if a transform changes the values, and drops them in ``Crop``.

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.
    label : bool
        Whether the values are labels, which TorchIO never interpolates (``LabelMap``).

    Returns
    -------
    torchio.ScalarImage or torchio.LabelMap
        (C, W, H, D).

    Raises
    ------
    ConversionError
        If TorchIO has no such values (bool).
    MissingDependencyError
        If TorchIO is not installed.

    Examples
    --------
    >>> import medimg
    >>> image = medimg.to_torchio(medimg.read("scan.nii.gz"))  # doctest: +SKIP
    """
    volume = as_volume(volume, "to_torchio")
    check_type(volume, [name for name in TENSOR_TYPES if name != "bool"], "TorchIO")
    module = import_library("torchio")
    import torch

    kind = module.LabelMap if label else module.ScalarImage
    image: torchio.ScalarImage = kind(
        tensor=torch.from_numpy(tensor_values(volume, "TorchIO")),
        affine=geometry.ras_from_lps(volume.affine),
        **list_facts(volume),
    )
    return image


@set_module("medimg")
def from_torchio(image: torchio.Image, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert an image of TorchIO to a volume, with a copy of its values.

    An image that TorchIO has not loaded yet is read by TorchIO, and stays unloaded.

    Parameters
    ----------
    image : torchio.Image
        ScalarImage or LabelMap, (C, W, H, D).
    modality, units : str, optional
        As in :class:`Volume`; by default as the items of the image say. State them after a transform that
        changed the meaning of the values, such as ``ZNormalization``: ``units="raw"``.

    Returns
    -------
    Volume

    Raises
    ------
    GeometryError
        If the affine is singular or not finite.
    ReadError
        If TorchIO can't read its file.

    Examples
    --------
    >>> import medimg
    >>> import torchio  # doctest: +SKIP
    >>> medimg.from_torchio(torchio.ScalarImage("t1.nii.gz"), modality="MR")  # doctest: +SKIP
    """
    return convert_image(image, "TorchIO", modality=modality, units=units)


@guard_conversion("TorchIO")
def open_torchio(image: torchio.Image) -> ImageObject:
    """Return the geometry and facts of an image; of one with a file, without reading its values."""
    image = copy.copy(image)  # which is what loading would change
    c, w, h, d = (int(n) for n in image.shape)
    facts = find_facts(image, c)
    affine = check_affine(image.affine, "TorchIO")
    if facts.space == "image":
        lps = geometry.image_affine(geometry.spacing_of(affine)[::-1])
    else:
        lps = geometry.lps_from_ras(affine)
    return ImageObject(
        format="TorchIO", shape=(c, d, h, w), affine=lps, load=partial(_load, image), **facts._asdict()
    )


def _load(image: Any) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    loaded = copy.copy(image)
    return own_values(loaded.data.detach().cpu().numpy().transpose(0, 3, 2, 1)), ()
