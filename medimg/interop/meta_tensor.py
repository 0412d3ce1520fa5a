"""MONAI's MetaTensor: ``to_monai`` and ``from_monai``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.errors import ReadError
from medimg.interop._exchange import (
    as_volume,
    check_library,
    check_type,
    find_facts,
    import_library,
    list_facts,
    own_values,
    widen_unsigned,
)
from medimg.interop.image_object import ImageObject, check_affine, guard_conversion

if TYPE_CHECKING:
    import numpy.typing as npt
    from monai.data.meta_tensor import MetaTensor

    from medimg.core.volume import Volume
    from medimg.saliency.explanation import Explanation

__all__ = ["TENSOR_TYPES", "from_monai", "open_meta_tensor", "tensor_values", "to_monai"]

#: Types of values that a tensor of torch can hold; unsigned ones of 16 and more bits after widening.
TENSOR_TYPES: Final = (
    "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32",
    "float64",
)  # fmt: skip


@set_module("medimg")
def to_monai(volume: Volume | Explanation) -> MetaTensor:
    """
    Convert a volume to a MetaTensor of MONAI, with a copy of its values.

    Axes are in the order of MONAI's readers, (C, i, j, k) = (C, W, H, D), and the affine maps (i, j, k) to
    RAS millimeters, so that MONAI's spatial transforms (``Spacing``, ``Orientation``) work and
    :func:`from_monai` finds the geometry again. It holds any affine, shear included. uint16, uint32 and
    uint64, with which torch can't compute, become int32, int64 and int64. ``meta`` has ``"modality"``,
    ``"units"``, ``"photometric"``, ``"inverted"``, ``"geometry"`` ("patient" or "image") and ``"channels"``;
    MONAI does not change them if a transform changes the values.

    Parameters
    ----------
    volume : Volume or Explanation
        Volume, or heat map.

    Returns
    -------
    monai.data.MetaTensor
        (C, W, H, D).

    Raises
    ------
    ConversionError
        If torch has no such values.
    MissingDependencyError
        If MONAI is not installed.

    Examples
    --------
    >>> import medimg
    >>> from medimg.core.geometry import image_affine
    >>> volume = medimg.Volume(np.zeros((1, 4, 64, 80), np.int16), image_affine((2.0, 0.5, 0.5)), "CT", "HU")
    >>> tensor = medimg.to_monai(volume)
    >>> tuple(tensor.shape), tensor.pixdim.tolist(), tensor.meta["units"]
    ((1, 80, 64, 4), [0.5, 0.5, 2.0], 'HU')
    """
    volume = as_volume(volume, "to_monai")
    check_type(volume, TENSOR_TYPES, "torch")
    meta_tensor = import_library("monai.data.meta_tensor", "monai")
    import torch

    values = torch.from_numpy(tensor_values(volume, "torch"))
    affine = torch.from_numpy(geometry.ras_from_lps(volume.affine))
    meta = {
        "affine": affine,
        "original_affine": affine.clone(),
        "original_channel_dim": 0,
        "spatial_shape": np.array(values.shape[1:]),
        **list_facts(volume),
    }
    tensor: MetaTensor = meta_tensor.MetaTensor(values, meta=meta)
    return tensor


def tensor_values(volume: Volume, target: str) -> npt.NDArray[Any]:
    """Return a contiguous copy (C, W, H, D) of types that torch computes with."""
    return widen_unsigned(volume.array.transpose(0, 3, 2, 1), target)


@set_module("medimg")
@guard_conversion("MONAI")
def from_monai(tensor: MetaTensor, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert a MetaTensor of MONAI to a volume, with a copy of its values.

    Parameters
    ----------
    tensor : monai.data.MetaTensor
        (C, W, H, D), or (C, W, H) with an affine of 3×3, which has no position in a patient
        (``space="image"``). Without a channel axis if ``meta["original_channel_dim"]`` says so. The affine
        maps to RAS, or LPS if ``meta["space"]`` says so.
    modality, units : str, optional
        As in :class:`Volume`; by default as ``meta`` says. State them after a transform that changed the
        meaning of the values, such as ``ScaleIntensity``: ``units="raw"``.

    Returns
    -------
    Volume

    Raises
    ------
    GeometryError
        If the affine is singular or not finite.
    ReadError
        If it is a batch, its axes are ambiguous, or lazy transforms are pending.

    Examples
    --------
    >>> import medimg, torch
    >>> from monai.data import MetaTensor
    >>> tensor = MetaTensor(torch.zeros(1, 80, 64, 4), affine=torch.diag(torch.tensor([-0.5, -0.5, 2, 1])))
    >>> medimg.from_monai(tensor, modality="MR")
    Volume(1×4×64×80 float32, MR, raw, spacing 2×0.5×0.5 mm, SPL)
    """
    check_library(tensor, "MONAI", "from_monai", "monai.data.MetaTensor")
    return open_meta_tensor(tensor).to_volume(modality=modality, units=units)


@guard_conversion("MONAI")
def open_meta_tensor(tensor: MetaTensor) -> ImageObject:
    """Return the geometry and facts of a tensor."""
    if tensor.pending_operations:
        raise ReadError(
            "the MetaTensor has lazy transforms that are not applied yet; apply them first, with "
            "monai.transforms.lazy.functional.apply_pending, or a Compose that is not lazy"
        )
    shape, affine = _find_axes(tensor)
    c, i, j, k = shape
    facts = find_facts(tensor.meta, c, space="image" if len(tensor.affine) == 3 else "patient")
    if facts.space == "image":
        lps = geometry.image_affine(geometry.spacing_of(affine)[::-1])
    elif tensor.meta.get("space") == "LPS":
        lps = geometry.lps_from_space(affine, "LPS")
    else:
        lps = geometry.lps_from_ras(affine)
    return ImageObject(
        format="MONAI", shape=(c, k, j, i), affine=lps, load=partial(_load, tensor, shape), **facts._asdict()
    )


def _find_axes(tensor: MetaTensor) -> tuple[tuple[int, int, int, int], geometry.Affine]:
    """Return the sizes (C, i, j, k), and the (4, 4) affine of (i, j, k)."""
    shape, affine = tuple(tensor.shape), np.asarray(tensor.affine.cpu(), dtype=np.float64)
    has_channels = not _has_no_channel(tensor.meta.get("original_channel_dim"), len(shape))
    known = {(4, 4): True, (3, 4): False, (3, 3): True, (2, 3): False}
    if affine.ndim != 2 or known.get((len(shape), len(affine))) is not has_channels:
        raise ReadError(
            f"the MetaTensor has the shape {shape} and an affine of {affine.shape}; expected one image, "
            "(C, W, H, D) with 4×4 or (C, W, H) with 3×3: split a batch with "
            "monai.data.decollate_batch, add an axis of channels with EnsureChannelFirst, or of depth"
        )
    c, *sizes = shape if has_channels else (1, *shape)
    if len(affine) == 3:
        affine = np.insert(np.insert(affine, 2, 0, axis=0), 2, 0, axis=1)
        affine[2, 2] = 1.0
    i, j, k = (*sizes, 1)[:3]
    return (c, i, j, k), check_affine(affine, "MONAI")


def _has_no_channel(stated: Any, dimensions: int) -> bool:
    """Whether a tensor has no axis of channels; an image of four axes always has one."""
    is_none = stated == "no_channel" or (isinstance(stated, float) and np.isnan(stated))
    return dimensions < 4 and is_none


def _load(tensor: MetaTensor, shape: tuple[int, int, int, int]) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    plain = tensor.as_tensor().detach().cpu()
    steps: tuple[str, ...] = ()
    if str(plain.dtype) == "torch.bfloat16":
        plain, steps = plain.float(), ("bfloat16 to float32",)
    return own_values(plain.numpy().reshape(shape).transpose(0, 3, 2, 1)), steps
