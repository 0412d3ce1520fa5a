"""``write_nifti``: a volume as ``.nii`` or ``.nii.gz``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np

from medimg.core import geometry
from medimg.io.formats._image_facts import FACTS_FIELD, ImageFacts
from medimg.io.formats._value_writer import check_values, iter_values, open_gzip
from medimg.io.formats.nifti import COMMENT

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    import numpy.typing as npt

    from medimg.core.volume import Volume

__all__ = ["write_nifti"]

#: Sizes of axes that NIfTI-1 holds.
_MAX_SIZE: Final = 2**15 - 1
#: Largest error of a position by rounding to 32 bits, in voxels.
_ROUNDING: Final = 1e-3
_ORTHOGONAL: Final = 1e-6
_SCANNER: Final = 1


def write_nifti(volume: Volume, path: Path, *, compress: bool) -> None:
    """
    Write a volume as NIfTI-1; as NIfTI-2 if it is too large, or 32 bits are too few for its positions.

    The sform has the affine; the qform has it too if it is a rotation. Channels are time points, colors are
    RGB24. Modality, units and names of channels are in a header extension (a comment).
    """
    check_values(volume, "NIfTI")
    extension = _build_extension(ImageFacts.of_volume(volume))
    header = _build_header(volume, len(extension))
    opened: AbstractContextManager[BinaryIO] = open_gzip(path) if compress else path.open("wb")
    with opened as file:
        file.write(header.binaryblock + extension)
        for piece in iter_values(volume):
            file.write(piece)


def _build_header(volume: Volume, extension: int) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    channels, depth, height, width = volume.shape
    shape = (width, height, depth) if channels == 1 or volume.is_color else (width, height, depth, channels)
    ras = geometry.ras_from_lps(volume.affine)
    kind: Any = Nifti1Header if max(shape) <= _MAX_SIZE and _is_exact(ras, shape[:3]) else Nifti2Header
    header = kind(endianness="<")
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype([(c, "u1") for c in "RGB"]) if volume.is_color else volume.array.dtype)
    header.set_xyzt_units("mm")
    header["pixdim"][1:5] = [*volume.spacing[::-1], 0.0]
    header["scl_slope"], header["scl_inter"] = 1.0, 0.0
    if volume.space == "patient":
        header.set_sform(ras, _SCANNER)
        if _is_rotation(ras):
            header.set_qform(ras, _SCANNER)
    header.set_data_offset(header.sizeof_hdr + extension)
    return header


def _is_exact(ras: geometry.Affine, shape: tuple[int, ...]) -> bool:
    """Whether every voxel stays in place when the affine is rounded to 32 bits."""
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(ras.astype(np.float32).astype(np.float64) - ras)[:3]
        worst = moved @ np.array([*shape, 1.0])
    return bool(worst.max() < _ROUNDING * np.linalg.norm(ras[:3, :3], axis=0).min())


def _is_rotation(ras: geometry.Affine) -> bool:
    """Whether a quaternion and spacings hold an affine: its axes are perpendicular."""
    axes: npt.NDArray[np.float64] = ras[:3, :3] / np.linalg.norm(ras[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() < _ORTHOGONAL)


def _build_extension(facts: ImageFacts) -> bytes:
    """Return the four bytes that say whether extensions follow, and the extension."""
    stated = facts.to_json()
    if not stated:
        return bytes(4)
    text = f"{FACTS_FIELD}: {stated}".encode()
    size = -(-(8 + len(text)) // 16) * 16
    return b"\1\0\0\0" + np.array([size, COMMENT], "<i4").tobytes() + text.ljust(size - 8, b"\0")
