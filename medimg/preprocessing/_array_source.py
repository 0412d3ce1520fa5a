"""Plain arrays and tensors as sources: images in memory that have no geometry."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from medimg.core.geometry import image_affine
from medimg.core.read_report import ReadReport
from medimg.core.volume import Photometric, Volume
from medimg.errors import PreprocessError

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from medimg.io.read import Source
    from medimg.preprocessing.render import ImageSource

__all__ = ["as_source"]

_EXPECTED: Final = (
    "(H, W), (D, H, W) or (C, D, H, W), colors of 8 bits also (H, W, 3) or (D, H, W, 3), images of "
    "torchvision (1, H, W) or (3, H, W)"
)


def as_source(source: ImageSource) -> Source | Volume:
    """
    Return the volume of an array or tensor; other sources, and tensors with an affine, are unchanged.

    PreprocessError if the axes are not clear by the shape.
    """
    if isinstance(source, np.ndarray):
        return _make_volume(source)
    if _is_tensor(source) and not hasattr(source, "affine"):
        return _make_volume(cast("torch.Tensor", source))
    # a tensor with an affine is another library's image
    return source


def _is_tensor(source: object) -> bool:
    """Whether a source is a tensor; without torch there is none."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _make_volume(source: npt.NDArray[Any] | torch.Tensor) -> Volume:
    # torchvision is imported by whoever made such an image
    is_image = any(c.__module__.startswith("torchvision.tv_tensors") for c in type(source).__mro__)
    values = _to_numpy(source)
    if values.dtype.kind not in "biuf" or values.ndim not in (2, 3, 4) or 0 in values.shape:
        raise _make_error(values)
    if is_image:
        return _make_image(values)
    if values.dtype == np.uint8 and values.ndim > 2 and values.shape[-1] == 3:
        colors = np.moveaxis(values, -1, 0)
        return _place(colors if colors.ndim == 4 else colors[:, None], "RGB")
    if values.ndim == 3 and values.shape[0] == 3:
        raise PreprocessError(
            f"an array of shape {values.shape} may be three slices or three colors: pass "
            "torchvision.tv_tensors.Image(array) for colors, a medimg.Volume for slices"
        )
    return _place(values.reshape((1,) * (4 - values.ndim) + values.shape))


def _to_numpy(source: npt.NDArray[Any] | torch.Tensor) -> npt.NDArray[Any]:
    if isinstance(source, np.ndarray):
        return source
    import torch

    plain = source.detach().as_subclass(torch.Tensor).cpu()
    return plain.float().numpy() if plain.dtype == torch.bfloat16 else plain.numpy()


def _make_image(values: npt.NDArray[Any]) -> Volume:
    """Return the volume of an image of torchvision, (1, H, W) or (3, H, W), which is ready for display."""
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise _make_error(values)
    white = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    if values.shape[0] == 3:
        return _place(values[:, None], "RGB")
    return _place(values[:, None], display_range=(0.0, white))


def _place(
    array: npt.NDArray[Any],
    photometric: Photometric = "MONOCHROME2",
    display_range: tuple[float, float] | None = None,
) -> Volume:
    """Return a volume (C, D, H, W) with voxels of 1 mm and no position in a patient."""
    if photometric != "RGB" and array.dtype == np.uint8:
        display_range = (0.0, 255.0)
    return Volume(
        array,
        image_affine(),
        photometric=photometric,
        space="image",
        display_range=display_range,
        report=ReadReport(),
    )


def _make_error(values: npt.NDArray[Any]) -> PreprocessError:
    return PreprocessError(
        f"expected an array of real numbers, {_EXPECTED}; found {values.dtype} of shape {values.shape}"
    )
