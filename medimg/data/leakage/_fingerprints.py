"""Fingerprints of the pixels of series, whatever their headers, names and encoding."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np

from medimg.core.progress import Progress, progress_bar
from medimg.data.cache.images import decode_intensity
from medimg.data.cache.keys import stat_files
from medimg.data.image_loader import ImagesReader
from medimg.data.leakage._image_hash import THUMBNAIL, hash_perceptually, hash_pixels, make_thumbnail
from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.pixels.frame_reader import FrameReader
from medimg.io.dicom.series.volume_reader import StackReader
from medimg.io.series import Policies
from medimg.preprocessing.torch_threads import map_sources

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    import numpy.typing as npt

    from medimg.errors import ExecutorError
    from medimg.io.series import Series

__all__ = ["Fingerprint", "compute_fingerprints", "count_unknown_pixels", "find_fingerprint"]

#: Images of a series that are compared for near-duplicates.
_MOST_THUMBNAILS: Final = 32
_AT_ONCE: Final = 8
#: Images whose fingerprints are cached.
_MOST_CACHED: Final = 2**18
#: Images are taken as stored: nothing is repaired, and nothing raises an error.
_UNCHANGED: Final = Policies(on_missing="keep", on_duplicate="keep", on_tilt="keep", values="rescaled")
_Key: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Fingerprint:
    """
    Digests of all images of a series, and perceptual hashes and thumbnails of at most 32.

    Each image has a digest of its stored values and one of its modality values; constant images have none.
    """

    digests: frozenset[bytes] = field(repr=False)
    hashes: npt.NDArray[np.uint64] = field(repr=False)  # (m,)
    thumbnails: npt.NDArray[np.uint8] = field(repr=False)  # (m, 32, 32)


class _Image(NamedTuple):
    """Stored and modality values, (H, W) or (3, H, W), and whether a display inverts them."""

    stored: npt.NDArray[Any] | None
    values: npt.NDArray[Any]
    inverted: bool


class _FingerprintCache:
    """Fingerprints of unchanged files, those used last."""

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
            while self._size > _MOST_CACHED:
                self._size -= self._found.popitem(last=False)[1][1]


_CACHE: Final = _FingerprintCache()


def count_unknown_pixels(several: Sequence[Series]) -> int:
    """Return the number of pixels, by the headers, of series whose fingerprints are not known yet."""
    return sum(math.prod(series.shape) for series in several if find_fingerprint(series) is None)


def find_fingerprint(series: Series) -> Fingerprint | None:
    """Return the fingerprint of a series if it was computed before and its files have not changed."""
    return _CACHE.get(_make_key(series)) if _CACHE else None


def compute_fingerprints(
    several: Sequence[Series],
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: Progress = "auto",
) -> list[Fingerprint | None]:
    """
    Decode series, a few images at a time, and return their fingerprints; None if one can't be decoded.

    They are kept in memory, so that a process decodes the same files once.
    """
    # of another process, only what it finds comes back
    keys = [None if executor is None else _make_key(series) for series in several]
    known = [_CACHE.get(key) for key in keys]
    missing = [n for n, found in enumerate(known) if found is None]
    todo = [several[n] for n in missing]
    results = map_sources(_find_or_decode, todo, workers, executor, lost=_lose, small=True)
    bar = progress_bar(results, desc="comparing", unit="series", progress=progress, total=len(todo))
    for n, found in zip(missing, bar, strict=True):
        known[n] = found
        if found is not None and executor is not None:
            _CACHE.put(keys[n] if keys[n] == _make_key(several[n]) else None, found)
    return known


def _lose(series: Series, error: ExecutorError) -> None:
    """A series that takes its workers down can't be decoded."""


def _make_key(series: Series) -> _Key | None:
    states = stat_files(series)
    return None if states is None else (series.uid, series.path, series.shape, states)


def _find_or_decode(series: Series) -> Fingerprint | None:
    key = _make_key(series)
    known = _CACHE.get(key)
    if known is not None:
        return known
    try:
        found = _decode(series)
    except (MedimgError, MemoryError):
        return None
    _CACHE.put(key if key == _make_key(series) else None, found)
    return found


def _decode(series: Series) -> Fingerprint:
    digests: set[bytes] = set()
    small = []
    shown = _choose_thumbnails(series)
    with quiet_pydicom():
        for number, image in enumerate(_iter_images(series)):
            found_digests = (hash_pixels(v) for v in (image.stored, image.values) if v is not None)
            digests.update(digest for digest in found_digests if digest is not None)
            found = make_thumbnail(image.values) if number in shown else None
            if found is not None:
                small.append(255 - found if image.inverted else found)
    thumbnails = np.stack(small) if small else np.empty((0, THUMBNAIL, THUMBNAIL), np.uint8)
    return Fingerprint(frozenset(digests), hash_perceptually(thumbnails), thumbnails)


def _choose_thumbnails(series: Series) -> frozenset[int]:
    """Return the indices of the images that get a thumbnail: all, or some at even distances."""
    channels, depth = series.shape[:2]
    count = depth if channels == 3 else channels * depth
    return frozenset(int(n) for n in np.rint(np.linspace(0, count - 1, min(count, _MOST_THUMBNAILS))))


def _iter_images(series: Series) -> Iterator[_Image]:
    if isinstance(series.reader, StackReader):
        yield from _iter_frames(series.reader)
        return
    if isinstance(series.reader, ImagesReader):
        yield from _iter_prepared(series.reader)
        return
    for volume in series.pieces(_AT_ONCE, policies=_UNCHANGED):
        for d in range(volume.shape[1]):
            channels = volume.array[:, d]
            for values in [channels] if volume.photometric == "RGB" else channels:
                yield _Image(None, values, volume.inverted)


def _iter_prepared(reader: ImagesReader) -> Iterator[_Image]:
    """Yield images as they were prepared, before normalization."""
    planes = decode_intensity(reader.load_images(reader.recipe).take())
    for image in planes.numpy():
        for values in image.reshape(-1, *image.shape[-2:]) if image.shape[0] == 1 else [image]:
            yield _Image(None, values, inverted=False)


def _iter_frames(reader: StackReader) -> Iterator[_Image]:
    frames = [frame for channel in reader.plan.channels for frame in channel]
    files = FrameReader(frames)
    for frame in frames:
        # values beyond float32 become infinite, which is no reason to warn
        with np.errstate(over="ignore", invalid="ignore"):
            meaning, stored = files.load(frame)
            values = meaning.apply(stored)
        is_color = values.ndim == 3
        yield _Image(None if is_color or meaning.is_stored else stored, values, meaning.inverted)
