"""Fingerprints of series: what their pixels are, whatever their headers, names and encoding say."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from medimg.core.parallel import ordered_map
from medimg.data.cache.keys import stat_files
from medimg.data.leakage._image_hash import THUMBNAIL, perceptual_hash, pixel_digest, thumbnail
from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.pixels.frame_reader import FrameReader
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.series import Policies
from medimg.preprocessing.torch_threads import share_cores

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from medimg.io.series import Series

__all__ = ["Fingerprint", "fingerprints", "known_fingerprint", "pixel_count"]

#: Pictures of a series that near-duplicates are looked for among.
_MOST_THUMBNAILS: Final = 32
_AT_ONCE: Final = 8
#: Pictures whose fingerprints are kept for the next time.
_MOST_KEPT: Final = 2**18
#: Nothing is mended, and nothing is in the way: pictures are taken as they are.
_AS_THEY_ARE: Final = Policies(on_missing="keep", on_duplicate="keep", on_tilt="keep", values="rescaled")
_Key: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """
    What the pixels of a series are.

    Attributes
    ----------
    digests : frozenset of bytes
        Of each picture one over its values as stored and one over its values in modality units; pictures of
        one value have none.
    hashes : numpy.ndarray
        (m,) uint64: see :func:`medimg.data.leakage._image_hash.perceptual_hash`, of at most 32 pictures.
    thumbnails : numpy.ndarray
        (m, 32, 32) uint8 of the same.
    """

    digests: frozenset[bytes] = field(repr=False)
    hashes: npt.NDArray[np.uint64] = field(repr=False)
    thumbnails: npt.NDArray[np.uint8] = field(repr=False)


class _Image(NamedTuple):
    """Values as stored and in modality units, (H, W) or (3, H, W), and whether a display inverts them."""

    stored: npt.NDArray[Any] | None
    values: npt.NDArray[Any]
    inverted: bool


class _Kept:
    """Fingerprints of files that have not changed since, those used last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: OrderedDict[_Key, tuple[Fingerprint, int]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: _Key | None) -> Fingerprint | None:
        with self._lock:
            if key is None or key not in self._found:
                return None
            self._found.move_to_end(key)
            return self._found[key][0]

    def put(self, key: _Key | None, fingerprint: Fingerprint) -> None:
        if key is None:
            return
        size = 1 + len(fingerprint.digests)
        with self._lock:
            if key in self._found:
                return
            self._found[key] = fingerprint, size
            self._size += size
            while self._size > _MOST_KEPT:
                self._size -= self._found.popitem(last=False)[1][1]


_KEPT: Final = _Kept()


def pixel_count(several: Sequence[Series]) -> int:
    """Return how many pixels series have whose fingerprints are not known yet, by their headers."""
    return sum(math.prod(series.shape) for series in several if known_fingerprint(series) is None)


def known_fingerprint(series: Series) -> Fingerprint | None:
    """Return the fingerprint of a series if it was made before, and its files are as they were."""
    return _KEPT.get(_key(series)) if _KEPT else None


def fingerprints(
    several: Sequence[Series], *, workers: int | None = None, progress: bool | None = None
) -> list[Fingerprint | None]:
    """
    Decode series, a few pictures of each at a time, and return their fingerprints.

    They are kept in memory, so that the same files are decoded once in a process.

    Parameters
    ----------
    several : sequence of Series
        What to decode.
    workers : int, optional
        Threads; all cores by default.
    progress : bool, optional
        Whether to show a progress bar.

    Returns
    -------
    list of Fingerprint or None
        None where a series can't be decoded.
    """
    from tqdm import tqdm

    disable = None if progress is None else not progress
    made = ordered_map(_fingerprint, several, workers, initializer=share_cores)
    return list(tqdm(made, "comparing", len(several), unit="series", disable=disable, delay=1.0, leave=False))


def _key(series: Series) -> _Key | None:
    states = stat_files(series)
    return None if states is None else (series.uid, series.path, series.shape, states)


def _fingerprint(series: Series) -> Fingerprint | None:
    key = _key(series)
    known = _KEPT.get(key)
    if known is not None:
        return known
    try:
        made = _made(series)
    except (MedimgError, MemoryError):
        return None
    _KEPT.put(key if key == _key(series) else None, made)
    return made


def _made(series: Series) -> Fingerprint:
    digests: set[bytes] = set()
    small = []
    shown = _shown(series)
    with quiet_pydicom():
        for number, picture in enumerate(_images(series)):
            found_digests = (pixel_digest(v) for v in (picture.stored, picture.values) if v is not None)
            digests.update(digest for digest in found_digests if digest is not None)
            found = thumbnail(picture.values) if number in shown else None
            if found is not None:
                small.append(255 - found if picture.inverted else found)
    thumbnails = np.stack(small) if small else np.empty((0, THUMBNAIL, THUMBNAIL), np.uint8)
    return Fingerprint(frozenset(digests), perceptual_hash(thumbnails), thumbnails)


def _shown(series: Series) -> frozenset[int]:
    """Return which pictures of a series have a thumbnail: all, or some at even distances."""
    channels, depth = series.shape[:2]
    count = depth if channels == 3 else channels * depth
    return frozenset(int(n) for n in np.rint(np.linspace(0, count - 1, min(count, _MOST_THUMBNAILS))))


def _images(series: Series) -> Iterator[_Image]:
    if isinstance(series.reader, StackReader):
        yield from _frames(series.reader)
        return
    for volume in series.pieces(_AT_ONCE, policies=_AS_THEY_ARE):
        for d in range(volume.shape[1]):
            planes = volume.array[:, d]
            for values in [planes] if volume.photometric == "RGB" else planes:
                yield _Image(None, values, volume.inverted)


def _frames(reader: StackReader) -> Iterator[_Image]:
    frames = [frame for channel in reader.plan.channels for frame in channel]
    files = FrameReader(frames)
    for frame in frames:
        # values beyond float32 become infinite, which is no reason to warn
        with np.errstate(over="ignore", invalid="ignore"):
            meaning, stored = files.load(frame)
            values = meaning.values(stored)
        is_color = values.ndim == 3
        yield _Image(None if is_color or meaning.is_stored else stored, values, meaning.inverted)
