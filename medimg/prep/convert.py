"""From a source to tensors in one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medimg.prep.recipe import Preprocess

if TYPE_CHECKING:
    import torch

    from medimg.core.volume import Volume
    from medimg.io.read import Source

__all__ = ["to_tensor"]


def to_tensor(
    source: Source | Volume,
    *,
    device: str | torch.device | None = None,
    out: torch.Tensor | None = None,
    **recipe_fields: Any,
) -> torch.Tensor:
    """
    Read an image and make normalized tensors of its slices.

    Parameters
    ----------
    source : str, Path, list of these, Series or Volume
        What to read; see :func:`medimg.read`.
    device : str or torch.device, optional
        Where to compute; that of `out`, or the CPU, by default.
    out : torch.Tensor, optional
        (at least N, 3, H, W) float32, contiguous: takes the tensors; see :class:`medimg.Preprocess`.
    **recipe_fields
        Fields of :class:`medimg.Preprocess`, such as ``window="lung"``.

    Returns
    -------
    torch.Tensor
        (N, 3, 224, 224) float32 unless `size` says otherwise.

    Raises
    ------
    PreprocessError
        If a field is unknown or unsound, or the recipe does not fit the image.
    ReadError, SeriesError
        If the source can't be read.

    Examples
    --------
    >>> import numpy as np
    >>> from medimg.core.geometry import image_affine
    >>> from medimg.core.volume import Volume
    >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    >>> to_tensor(volume, window="lung", slices=2).shape
    torch.Size([2, 3, 224, 224])
    """
    return Preprocess.from_dict(recipe_fields)(source, device=device, out=out)
