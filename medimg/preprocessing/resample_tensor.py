"""Resampling of tensors to a spacing, on their own device."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from medimg.core.kernels import HALF, Interpolation, interpolation_taps
from medimg.core.resample import (
    check_interpolation,
    choose_mask_interpolation,
    plan_axes,
    resample_array,
)
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.core.resample import ResampledAxis

__all__ = ["ResampledTensor", "resample_tensor"]


class ResampledTensor(NamedTuple):
    """Resampled values, and a mask of voxels more than half of which were padding or not finite."""

    values: torch.Tensor  # (C, D', H', W') float32
    padding: torch.Tensor | None  # (C, D', H', W') bool; None if there is none


def resample_tensor(
    values: torch.Tensor,
    spacing: Sequence[float],
    new_spacing: float | Sequence[float],
    *,
    interpolation: Interpolation = "linear",
    antialias: bool = True,
    padding: torch.Tensor | None = None,
) -> ResampledTensor:
    """
    Resample a tensor (C, D, H, W) on any device, as :meth:`medimg.Volume.resample` does arrays.

    `padding` (C, D, H, W) bool marks values that count as the minimum of the others. Gradients flow back to
    the values if they require them. The affine is given by :func:`medimg.core.resample.resample_affine`.

    Examples
    --------
    >>> values = torch.arange(6, dtype=torch.int16).reshape(1, 1, 1, 6)
    >>> resample_tensor(values, (1, 1, 1), (1, 1, 2), antialias=False).values.flatten().tolist()
    [0.5, 2.5, 4.5]
    """
    if values.ndim != 4 or 0 in values.shape or values.is_complex():
        raise PreprocessError(
            f"expected real values (C, D, H, W), none of them 0; found {values.dtype} {tuple(values.shape)}"
        )
    if padding is not None and padding.shape != values.shape:
        raise PreprocessError(f"the padding is {tuple(padding.shape)}, the values {tuple(values.shape)}")
    check_interpolation(interpolation)
    axes = plan_axes(values.shape, spacing, new_spacing)
    if values.device.type == "cpu" and not values.requires_grad:
        return _resample_on_cpu(values, axes, interpolation, antialias=antialias, padding=padding)
    numbers, unusable = _replace_unusable(values.to(torch.float32), padding)
    result = _resample_axes(numbers, axes, interpolation, antialias=antialias)
    if unusable is None:
        return ResampledTensor(result, None)
    kind = choose_mask_interpolation(interpolation)
    covered = _resample_axes(unusable.to(torch.float32), axes, kind, antialias=antialias) > HALF
    return ResampledTensor(result, covered)


def _resample_on_cpu(
    values: torch.Tensor,
    axes: Sequence[ResampledAxis],
    interpolation: Interpolation,
    *,
    antialias: bool,
    padding: torch.Tensor | None,
) -> ResampledTensor:
    array, covered = resample_array(
        (values.to(torch.float32) if values.dtype == torch.bfloat16 else values).numpy(),
        axes,
        padding=None if padding is None else padding.to(torch.bool).numpy(),
        interpolation=interpolation,
        antialias=antialias,
    )
    return ResampledTensor(torch.from_numpy(array), None if covered is None else torch.from_numpy(covered))


def _replace_unusable(
    values: torch.Tensor, padding: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Replace padding and non-finite values by the minimum of the rest; also return their mask."""
    unusable = ~torch.isfinite(values)
    if padding is not None:
        unusable |= padding.to(torch.bool)
    elif not unusable.any():
        return values, None
    least = values.masked_fill(unusable, torch.inf).min()
    return torch.where(unusable, torch.where(torch.isinf(least), 0.0, least), values), unusable


def _resample_axes(
    values: torch.Tensor, axes: Sequence[ResampledAxis], interpolation: Interpolation, *, antialias: bool
) -> torch.Tensor:
    """Resample (C, D, H, W) along the axes that change, those that shrink most first."""
    for number in sorted(range(3), key=lambda n: -axes[n].scale):
        if not axes[number].is_unchanged:
            index, weights = interpolation_taps(*axes[number], interpolation, antialias=antialias)
            values = _resample_axis(values, number + 1, index, weights)
    return values


def _resample_axis(values: torch.Tensor, axis: int, index: np.ndarray, weights: np.ndarray) -> torch.Tensor:
    # no matrix product: on a GPU it may be rounded to ten bits, as settings for training ask for
    taps = torch.from_numpy(np.ascontiguousarray(index.T)).to(values.device)
    factors = torch.from_numpy(np.ascontiguousarray(weights.T, dtype=np.float32)).to(values.device)
    shape = [-1 if n == axis else 1 for n in range(values.ndim)]
    result = values.index_select(axis, taps[0]) * factors[0].reshape(shape)
    for tap, factor in zip(taps[1:], factors[1:], strict=True):
        result = result.addcmul_(values.index_select(axis, tap), factor.reshape(shape))
    return result
