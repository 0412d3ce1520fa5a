"""What tells a picture: a digest of its values, and a hash that pictures that look alike share."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["THUMBNAIL", "hamming", "perceptual_hash", "pixel_digest", "similarity", "thumbnail"]

#: Side of a thumbnail.
THUMBNAIL: Final = 32
_KEPT: Final = 8
_DIGEST_BYTES: Final = 16
#: Gray levels, root mean square.
_LEAST_DETAIL: Final = 0.5
_TAILS: Final = (1.0, 99.0)
_SAMPLED: Final = 2**14
#: Types that whole numbers are hashed in, from the narrowest.
_WHOLE: Final = tuple(np.dtype(t) for t in ("<u1", "<i2", "<i4", "<i8"))


def pixel_digest(values: npt.NDArray[Any]) -> bytes | None:
    """
    Return a digest of the values of a picture, whatever type they are kept in.

    Parameters
    ----------
    values : numpy.ndarray
        (H, W), or (3, H, W) of colors; three equal ones count as gray.

    Returns
    -------
    bytes or None
        The first 16 bytes of a SHA-256 over shape and values; None where all values are equal, as then the
        picture is no one's.

    Examples
    --------
    >>> gray = np.arange(12).reshape(3, 4)
    >>> pixel_digest(gray) == pixel_digest(gray.astype(np.float32)) != pixel_digest(gray.T)
    True
    >>> pixel_digest(np.zeros((3, 4))) is None
    True
    """
    if values.ndim == 3 and (values == values[:1]).all():
        values = values[0]
    plain = _plain(values)
    if plain.size == 0 or (plain == plain.flat[0]).all():
        return None
    digest = hashlib.sha256(f"{plain.shape} {plain.dtype.str}".encode())
    digest.update(np.ascontiguousarray(plain).data)
    return digest.digest()[:_DIGEST_BYTES]


def _plain(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return values in the narrowest type that holds them: whole numbers, or float32."""
    if values.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            whole = values.astype(np.int64)
        if not (whole == values).all():
            # one way of writing zero, and one of what is no number
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


def thumbnail(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """
    Return a picture small and gray, between its 1st and 99th percentile.

    Parameters
    ----------
    values : numpy.ndarray
        (H, W), or (3, H, W) of colors, whose mean is taken.

    Returns
    -------
    numpy.ndarray or None
        (32, 32); None where there is nothing to see.
    """
    from PIL import Image

    plane = values.astype(np.float32) if values.ndim == 2 else values.mean(axis=0, dtype=np.float32)
    known = np.isfinite(plane)
    if not known.all():
        plane = np.where(known, plane, plane[known].min(initial=0))
    every = max(1, int(np.sqrt(plane.size / _SAMPLED)))
    low, high = np.percentile(plane[::every, ::every], _TAILS)
    if not high > low:
        return None
    plane = (np.clip(plane, low, high) - low) * np.float32(255 / (high - low))
    small = Image.fromarray(plane).resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    found = np.rint(np.asarray(small)).clip(0, 255).astype(np.uint8)
    return None if (found == found[0, 0]).all() else found


def perceptual_hash(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """
    Return which of the lowest frequencies of each thumbnail are above their median, as bits.

    Parameters
    ----------
    thumbnails : numpy.ndarray
        (n, 32, 32).

    Returns
    -------
    numpy.ndarray
        (n,) uint64: the 8×8 lowest coefficients of the discrete cosine transform (Zauner, "Implementation
        and benchmarking of perceptual image hash functions", 2010); in place of the mean, which is one of
        them, the next one along the rows.
    """
    spectrum = _spectrum(thumbnails)
    lowest = spectrum[:, :_KEPT, :_KEPT].reshape(-1, _KEPT * _KEPT).copy()
    lowest[:, 0] = spectrum[:, 0, _KEPT]
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(np.uint64)[:, 0]


def _spectrum(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return the orthonormal discrete cosine transform of type II of each."""
    basis = _cosines()
    return np.asarray(basis @ thumbnails.astype(np.float32) @ basis.T)


@cache
def _cosines() -> npt.NDArray[np.float32]:
    k, n = np.arange(THUMBNAIL)[:, None], np.arange(THUMBNAIL)
    rows = np.sqrt(2 / THUMBNAIL) * np.cos(np.pi * k * (2 * n + 1) / (2 * THUMBNAIL))
    rows[0] /= np.sqrt(2)
    return np.asarray(rows, np.float32)


def hamming(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """
    Return in how many bits hashes differ.

    Examples
    --------
    >>> hamming(np.array([0, 7], np.uint64), np.array([1, 1], np.uint64)).tolist()
    [1, 2]
    """
    different = np.bitwise_xor(a, b)
    if hasattr(np, "bitwise_count"):
        return np.asarray(np.bitwise_count(different))
    return _counted(different)


def _counted(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Count bits, 16 at a time, for NumPy before 2.0."""
    quarters = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 4)
    return np.asarray(_counts()[quarters].sum(axis=-1, dtype=np.uint8))


@cache
def _counts() -> npt.NDArray[np.uint8]:
    bits = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1)
    return np.asarray(bits.sum(axis=1, dtype=np.uint8))


def similarity(a: npt.NDArray[np.uint8], b: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """
    Return how alike each pair of thumbnails is in its details.

    Outlines are much the same in all images of one part of the body; what tells two apart, and outlasts
    compression, another size or brightness, lies in higher frequencies.

    Parameters
    ----------
    a, b : numpy.ndarray
        (n, 32, 32) each.

    Returns
    -------
    numpy.ndarray
        (n,), 1 where they differ in brightness and contrast alone: the correlation of what is left of them
        without their 8×8 lowest frequencies; 0 where less is left than half a gray level.
    """
    x, y = _details(a), _details(b)
    return np.asarray((x * y).sum(axis=(1, 2)))


def _details(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    spectrum = _spectrum(thumbnails)
    spectrum[:, :_KEPT, :_KEPT] = 0
    norms = np.sqrt((spectrum * spectrum).sum(axis=(1, 2), keepdims=True))
    faint = norms < _LEAST_DETAIL * THUMBNAIL
    return np.where(faint, np.float32(0), spectrum / np.where(faint, np.float32(1), norms))
