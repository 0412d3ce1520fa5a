"""The CT series, in every transfer syntax, and as NIfTI; the trees of small files."""

from __future__ import annotations

import gzip
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import ndimage

from benchmarks.data.headers import SPACING, ct_header, encapsulate, place_slice, write
from medimg.phantom import chest_ct

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from benchmarks.data.scale import Scale

__all__ = ["SYNTAXES", "stored_slices", "write_ct", "write_nifti", "write_tree"]

#: Codec → UID of its transfer syntax.
SYNTAXES: Final = {
    "native": "1.2.840.10008.1.2.1",
    "rle": "1.2.840.10008.1.2.5",
    "jpeg_lossless": "1.2.840.10008.1.2.4.70",
    "jpeg_ls": "1.2.840.10008.1.2.4.80",
    "jpeg2000": "1.2.840.10008.1.2.4.90",
    "htj2k": "1.2.840.10008.1.2.4.201",
}
_NOISE_HU: Final = 14.0
_PAINTED: Final = 40


def stored_slices(scale: Scale) -> npt.NDArray[np.uint16]:
    """
    Stored values of a chest CT: (D, H, W) uint16 of 12 bits, HU + 1024.

    A phantom is painted on some slices, interpolated between them, and gets noise of its own on each, grained
    as by a soft kernel, so that it compresses about as CT does (2.6 to 1 by lossless JPEG).
    """
    painted = min(_PAINTED, scale.slices)
    clean = chest_ct(3, slices=painted, size=scale.size, noise=False).array
    places = np.linspace(0, painted - 1, scale.slices)
    stored = np.empty((scale.slices, scale.size, scale.size), np.uint16)
    for n, place in enumerate(places):
        low = min(int(place), max(painted - 2, 0))
        share = np.float32(place - low)
        between = clean[low] * (1 - share) + clean[min(low + 1, painted - 1)] * share
        stored[n] = np.clip(np.rint(between + _grain(n, scale.size) + 1024), 0, 4095)
    return stored


def _grain(seed: int, size: int) -> npt.NDArray[np.float32]:
    white = np.random.default_rng([7, seed]).standard_normal((size, size), dtype=np.float32)
    smooth = ndimage.gaussian_filter(white, 0.7)
    return np.asarray(smooth * (_NOISE_HU / smooth.std()), np.float32)


def encoded(pixels: npt.NDArray[np.uint16], codec: str) -> bytes:
    """One frame as a codestream of a codec of :data:`SYNTAXES` other than "native"."""
    import imagecodecs

    if codec == "jpeg_lossless":
        return bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12))
    if codec == "jpeg_ls":
        return bytes(imagecodecs.jpegls_encode(pixels))
    if codec == "jpeg2000":
        return bytes(imagecodecs.jpeg2k_encode(pixels, level=0, reversible=True, codecformat="j2k"))
    if codec == "htj2k":
        return bytes(imagecodecs.htj2k_encode(pixels))
    return _rle(pixels)


def _rle(pixels: npt.NDArray[np.uint16]) -> bytes:
    """High bytes, then low bytes, each row by itself by PackBits (PS3.5 annex G)."""
    import imagecodecs

    segments = []
    for plane in (pixels >> 8, pixels & 255):
        rows = [bytes(imagecodecs.packbits_encode(row.tobytes())) for row in plane.astype(np.uint8)]
        segment = b"".join(rows)
        segments.append(segment + b"\0" * (len(segment) % 2))
    header = np.zeros(16, "<u4")
    header[:3] = 2, 64, 64 + len(segments[0])
    return header.tobytes() + b"".join(segments)


def write_ct(folder: Path, stored: npt.NDArray[np.uint16], codec: str) -> None:
    """Write a series, one file for each slice; the names of the files are not in the order of the slices."""
    folder.mkdir(parents=True)
    shares = np.array_split(np.arange(len(stored)), 2)
    with ThreadPoolExecutor(2) as pool:  # encoders release the GIL
        list(pool.map(partial(_write_share, folder, codec), [stored[s] for s in shares], shares))


def _write_share(
    folder: Path, codec: str, stored: npt.NDArray[np.uint16], indices: npt.NDArray[np.int64]
) -> None:
    ds = ct_header(1, stored[0])
    for pixels, index in zip(stored, indices.tolist(), strict=True):
        place_slice(ds, index, np.random.default_rng([1, index]))
        if codec == "native":
            ds.PixelData = pixels.tobytes()
        else:
            encapsulate(ds, SYNTAXES[codec], encoded(pixels, codec))
        write(ds, folder / _name(index))


def _name(index: int) -> str:
    return f"IM{(index * 7919 + 13) % 100_003:06d}.dcm"


def write_tree(folder: Path, scale: Scale, *, layouts: int = 1) -> None:
    """
    Write a tree of small files: series of tiny slices under full headers.

    Parameters
    ----------
    folder : Path
        Gets one subfolder for each series.
    scale : Scale
        How many series, and files of each.
    layouts : int
        How many sets of private elements there are; file n has set n modulo `layouts`.
    """
    rng = np.random.default_rng(5)
    pixels = rng.integers(0, 4096, (16, 16), dtype=np.uint16)
    for series in range(scale.series):
        below = folder / f"series{series:02d}"
        below.mkdir(parents=True)
        for index in range(scale.per_series):
            ds = ct_header(series + 1, pixels)
            place_slice(ds, index, rng)
            if layouts > 1:
                _add_layout(ds, (series * scale.per_series + index) % layouts)
            ds.PixelData = pixels.tobytes()
            write(ds, below / _name(index))


def _add_layout(ds: Any, layout: int) -> None:
    """Private elements in group 0009, before most that matter: one for each bit of the layout's number."""
    block = ds.private_block(0x0009, "BENCHMARK LAYOUT", create=True)
    for bit in range(12):
        if layout >> bit & 1:
            block.add_new(0x10 + bit, "SH", "x" * (2 + bit % 4 * 2))


def write_nifti(folder: Path, stored: npt.NDArray[np.uint16]) -> None:
    """Write a CT as ``ct.nii``, and as ``zipped/ct.nii.gz``, int16 HU."""
    import nibabel

    (folder / "zipped").mkdir(parents=True)
    hu = (stored.astype(np.int16) - 1024).transpose(2, 1, 0)
    image = nibabel.Nifti1Image(hu, np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0]))
    plain = folder / "ct.nii"
    nibabel.save(image, plain)
    with gzip.open(folder / "zipped" / "ct.nii.gz", "wb", compresslevel=6) as file:
        file.write(plain.read_bytes())
