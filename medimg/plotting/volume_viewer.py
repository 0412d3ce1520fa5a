"""Interactive viewer of a volume in a notebook, by NiiVue."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.display import choose_voi
from medimg.core.geometry import ras_from_lps
from medimg.core.window import Window
from medimg.errors import MissingDependencyError

if TYPE_CHECKING:
    import numpy.typing as npt

    from medimg.core.display import WindowChoice
    from medimg.core.volume import Volume

__all__ = ["view_volume"]

#: Types of values that NiiVue shows as they are.
_TYPES: Final = ("uint8", "int16", "uint16", "float32")


def view_volume(volume: Volume, *, window: WindowChoice = "auto", height: int = 400) -> Any:
    """Return a viewer; see :meth:`medimg.Volume.view`."""
    try:
        from ipyniivue import NiiVue
    except ImportError:
        raise MissingDependencyError(
            "ipyniivue, which views volumes, is not installed; install it with: pip install 'medimg[view]'"
        ) from None
    viewer = NiiVue(height=height)
    content = {"name": "volume.nii", "data": encode_nifti(volume)}
    viewer.load_volumes([{**content, **_find_limits(volume, window)}])
    return viewer


def _find_limits(volume: Volume, window: WindowChoice) -> dict[str, Any]:
    """Return the intensities that are shown black and white, and the colors."""
    if volume.is_color:
        return {}
    voi = choose_voi(volume, window)[0]
    if not isinstance(voi, Window):
        return {}
    limits = {"cal_min": voi.center - voi.width / 2, "cal_max": voi.center + voi.width / 2}
    return {**limits, "colormap": "gray_inv" if volume.inverted else "gray", "colorbar_visible": False}


def encode_nifti(volume: Volume) -> bytes:
    """Return a volume as the bytes of a NIfTI file; channels that are no colors are its fourth axis."""
    import nibabel

    affine = ras_from_lps(volume.affine)
    image = nibabel.Nifti1Image(_to_nifti_axes(volume), affine)
    image.header.set_xyzt_units("mm")
    return bytes(image.to_bytes())


def _to_nifti_axes(volume: Volume) -> npt.NDArray[Any]:
    """Return values (W, H, D), or (W, H, D, C)."""
    axes = volume.array.transpose(3, 2, 1, 0)
    if volume.is_color:
        colors = np.ascontiguousarray(np.rint(axes * (255.0 / volume.white)).astype(np.uint8))
        return colors.view([(name, "u1") for name in "RGB"])[..., 0]
    values = axes if axes.dtype.name in _TYPES else axes.astype(np.float32)
    return values if values.shape[3] > 1 else values[..., 0]
