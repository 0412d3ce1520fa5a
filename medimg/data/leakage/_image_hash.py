"""Hashes of images: exact digests of values, and perceptual hashes that similar images share."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.content_hash import content_hash

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = [
    "THUMBNAIL",
    "compare_details",
    "count_different_bits",
    "hash_perceptually",
    "hash_pixels",
    "make_thumbnail",
]

#: Rows and columns of a thumbnail.
THUMBNAIL: Final = 32
_KEPT: Final = 8
_DIGEST_BYTES: Final = 16
#: Gray levels, root mean square.
_LEAST_DETAIL: Final = 0.5
_TAILS: Final = (1.0, 99.0)
_SAMPLED: Final = 2**14
#: Types in which whole numbers are hashed, from the narrowest.
_WHOLE: Final = tuple(np.dtype(t) for t in ("<u1", "<i2", "<i4", "<i8"))


def hash_pixels(values: npt.NDArray[Any]) -> bytes | None:
    """
    Return 16 bytes of a SHA-256 of values (H, W) or (3, H, W), whatever their type; None if constant.

    >>> gray = np.arange(12).reshape(3, 4)
    >>> hash_pixels(gray) == hash_pixels(gray.astype(np.float32)) != hash_pixels(gray.T)
    True
    """
    if values.ndim == 3 and (values == values[:1]).all():
        values = values[0]
    plain = _narrow_type(values)
    if plain.size == 0 or (plain == plain.flat[0]).all():
        return None
    digest = content_hash([f"{plain.shape} {plain.dtype.str}", np.ascontiguousarray(plain).data])
    return bytes.fromhex(digest)[:_DIGEST_BYTES]


def _narrow_type(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values in the narrowest type that holds them: whole numbers, or float32."""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if not (whole == values).all():
            # one representation of zero, and one of NaN
            return np.where(np.isnan(values), np.float32(np.nan), values).astype("<f4") + np.float32(0)
        values = whole
    elif values.dtype.kind not in "iu":
        values = values.astype(np.uint8)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    for dtype in _WHOLE:
        info = np.iinfo(dtype)
        if info.min <= low and high <= info.max:
            return values.astype(dtype, copy=False)
    return values.astype("<u8")


def make_thumbnail(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """Return a (32, 32) grayscale thumbnail of (H, W) or (3, H, W); None if it is constant."""
    from PIL import Image

    gray = values.astype(np.float32) if values.ndim == 2 else values.mean(axis=0, dtype=np.float32)
    known = np.isfinite(gray)
    if not known.all():
        gray = np.where(known, gray, gray[known].min(initial=0))
    every = max(1, int(np.sqrt(gray.size / _SAMPLED)))
    low, high = np.percentile(gray[::every, ::every], _TAILS)
    if not high > low:
        return None
    gray = (np.clip(gray, low, high) - low) * np.float32(255 / (high - low))
    small = Image.fromarray(gray).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    found = np.rint(np.asarray(small)).clip(0, 255).astype(np.uint8)
    return None if (found == found[0, 0]).all() else found


def hash_perceptually(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """
    Hash thumbnails (n, 32, 32) to (n,) uint64: which of the 8×8 lowest frequencies exceed their median.

    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010; the mean, one of the
    frequencies, is replaced by the next one along the rows.
    """
    spectrum = _transform_cosine(thumbnails)
    lowest = spectrum[:, :_KEPT, :_KEPT].reshape(-1, _KEPT * _KEPT).copy()
    lowest[:, 0] = spectrum[:, 0, _KEPT]
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _transform_cosine(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the orthonormal discrete cosine transform (type II) of (n, 32, 32)."""
    basis = _make_cosines()
    return np.asarray(basis @ thumbnails.astype(np.float32) @ basis.T)


@cache
def _make_cosines() -> npt.NDArray[np.float32]:
    k, n = np.arange(THUMBNAIL)[:, None], np.arange(THUMBNAIL)
    rows = np.sqrt(2 / THUMBNAIL) * np.cos(np.pi * k * (2 * n + 1) / (2 * THUMBNAIL))
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


def count_different_bits(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Count the bits in which hashes differ; inputs broadcast."""
    different = np.bitwise_xor(a, b)
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(different))
    return _count_bits(different)


def _count_bits(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Count bits, 16 at a time, for NumPy before 2.0."""
    quarters = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    return np.asarray(_make_bit_table()[quarters].sum(axis=-1, dtype=np.uint8))


@cache
def _make_bit_table() -> npt.NDArray[np.uint8]:
    bits = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1)
    return np.asarray(bits.sum(axis=1, dtype=np.uint8))


def compare_details(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """
    Return the correlation (n,) of the details of thumbnails (n, 32, 32): their higher frequencies.

    Outlines are much the same in all images of one part of the body; higher frequencies distinguish two, and
    survive compression, resizing and changes of intensity. It is 0 if less than half a gray level remains.
    """
    x, y = _extract_details(a), _extract_details(b)
    return np.asarray((x * y).sum(axis=(1, 2)))


def _extract_details(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    spectrum = _transform_cosine(thumbnails)
    spectrum[:, :_KEPT, :_KEPT] = 0
    norms = np.sqrt((spectrum * spectrum).sum(axis=(1, 2), keepdims=True))
    faint = norms < _LEAST_DETAIL * THUMBNAIL
    return np.where(faint, np.float32(0), spectrum / np.where(faint, np.float32(1), norms))
