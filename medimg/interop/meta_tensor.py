"""MONAI's MetaTensor: ``to_monai`` and ``from_monai``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from medimg._public import set_module
from medimg.core import geometry
from medimg.errors import ReadError
from medimg.interop._exchange import (
    as_volume,
    check_type,
    convert_image,
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
    ``"units"``, ``"photometric"``, ``"inverted"``, ``"geometry"`` ("patient" or "image"), ``"dtype"``,
    ``"display_range"`` and ``"channels"``; MONAI does not change them if a transform changes the values.

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
def from_monai(tensor: MetaTensor, *, modality: str | None = None, units: str | None = None) -> Volume:
    """
    Convert a MetaTensor of MONAI to a volume, with a copy of its values.

    Parameters
    ----------
    tensor : monai.data.MetaTensor
        (C, W, H, D) or (C, W, H); as MONAI's readers return it, also without channels, or with channels last.
        The affine maps to RAS, or LPS if ``meta["space"]`` says so. An image of two axes with an affine of
        3×3, or the identity, has no position in a patient (``space="image"``).
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
    return convert_image(tensor, "MONAI", modality=modality, units=units)


@guard_conversion("MONAI")
def open_meta_tensor(tensor: MetaTensor) -> ImageObject:
    """Return the geometry and facts of a tensor."""
    if tensor.pending_operations:
        raise ReadError(
            "the MetaTensor has lazy transforms that are not applied yet; apply them first, with "
            "monai.transforms.lazy.functional.apply_pending, or a Compose that is not lazy"
        )
    matrix = np.asarray(tensor.affine.cpu(), dtype=np.float64)
    if matrix.ndim == 2:
        tensor = _move_channels(tensor)
    shape, size = tuple(tensor.shape), tensor.ndim - 1
    if not 2 <= size <= 3 or matrix.shape not in {(4, 4), (size + 1, size + 1)}:
        raise ReadError(
            f"the MetaTensor has the shape {shape} and an affine of {matrix.shape}; expected one image, "
            "(C, W, H, D) or (C, W, H), with an affine for as many axes: split a batch with "
            "monai.data.decollate_batch, add an axis of channels with EnsureChannelFirst"
        )
    affine = check_affine(matrix if size == 3 else _extend_plane(matrix), "MONAI")
    # readers of photographs give the identity
    is_flat = size == 2 and (len(matrix) == 3 or bool((matrix == np.eye(4)).all()))
    c, i, j, k = (*shape, 1)[:4]
    facts = find_facts(tensor.meta, c, space="image" if is_flat else "patient")
    if facts.space == "image":
        lps = geometry.image_affine(geometry.spacing_of(affine)[::-1])
    elif tensor.meta.get("space") == "LPS":
        lps = geometry.lps_from_space(affine, "LPS")
    else:
        lps = geometry.lps_from_ras(affine)
    return ImageObject(
        format="MONAI", shape=(c, k, j, i), affine=lps, load=partial(_load, tensor), **facts._asdict()
    )


def _move_channels(tensor: MetaTensor) -> MetaTensor:
    """
    Return a tensor with channels first, as all transforms of MONAI need them.

    Its readers put none, or the last axis, and say so; what they say stays when channels are moved.
    """
    stated, shape = tensor.meta.get("original_channel_dim"), tuple(tensor.shape)
    sizes = tensor.meta.get("spatial_shape")
    size = () if sizes is None else tuple(int(n) for n in np.ravel(sizes))
    if stated == "no_channel" or (isinstance(stated, float) and np.isnan(stated)):
        return cast("MetaTensor", tensor[None]) if len(size) == len(shape) else tensor
    if stated not in (-1, len(shape) - 1) or size != shape[:-1]:
        return tensor
    if size == shape[1:]:
        raise ReadError(
            f"the MetaTensor has the shape {shape}, with channels first or last; say that they are first by "
            'meta["original_channel_dim"] = 0'
        )
    return cast("MetaTensor", tensor.moveaxis(-1, 0))


def _extend_plane(matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the (4, 4) affine of an image of two axes, whose third column need not be a direction."""
    affine = np.eye(4)
    affine[: len(matrix) - 1, :2] = matrix[:-1, :2]
    affine[: len(matrix) - 1, 3] = matrix[:-1, -1]
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    length = float(np.linalg.norm(normal))
    step = matrix[:3, 2] if len(matrix) == 4 else np.zeros(3)
    is_normal = np.linalg.norm(np.cross(step, normal)) <= 1e-4 * length * np.linalg.norm(step)
    affine[:3, 2] = step if step.any() and is_normal else normal / (length or 1.0)
    return affine


def _load(tensor: MetaTensor) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return values (C, D, H, W)."""
    plain = tensor.as_tensor().detach().cpu()
    steps: tuple[str, ...] = ()
    if str(plain.dtype) == "torch.bfloat16":
        plain, steps = plain.float(), ("bfloat16 to float32",)
    values = plain.numpy()
    return own_values((values if values.ndim == 4 else values[..., None]).transpose(0, 3, 2, 1)), steps
