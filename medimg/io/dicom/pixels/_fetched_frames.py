"""Stored values of frames that a server sends apart from their file, a few in each request."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import MedimgError
from medimg.io.dicom.header.image_pixel import FrameFormat, parse_frame_count, parse_frame_format
from medimg.io.dicom.header.transfer_syntax import NATIVE_SYNTAXES
from medimg.io.dicom.pixels._frames import decode_stored, read_native_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.io.files.blob import RemoteFrames

__all__ = ["FetchedFrames", "NotSentError"]

#: Requests at the same time, and frames and bytes of one, as if frames were not compressed.
_AT_ONCE: Final = 8
_MAX_FRAMES: Final = 16
_MAX_BYTES: Final = 2**24


class NotSentError(Exception):
    """Raised if the frames can only be read from the whole file."""


class FetchedFrames:
    """
    Some frames of a remote file, by its header and their numbers, fetched when they are first needed.

    Frames of one request are far from each other in the order of `numbers`, so that threads that decode
    neighbors wait for different requests; what is fetched ahead is bounded.
    """

    def __init__(self, source: RemoteFrames, dataset: Dataset, numbers: Sequence[int]) -> None:
        self._source = source
        self.format: FrameFormat = parse_frame_format(dataset)
        self.count: int = parse_frame_count(dataset)
        self.note: str = ""  # about the pixel data, which only a whole file can have
        size = self.format.count * self.format.dtype.itemsize
        self._batches = {
            number: batch for batch in _make_batches(sorted(set(numbers)), size) for number in batch.numbers
        }

    def decode(self, number: int) -> tuple[npt.NDArray[Any], bool]:
        """Return what :meth:`StoredFrames.decode` does; NotSentError if the file has to be read."""
        syntax, data = self._batches[number].take(number, self._source)
        if syntax not in NATIVE_SYNTAXES:
            return decode_stored(bytes(data), syntax, self.format, number)
        return read_native_frame(bytes(data), self.format), self.format.photometric == "RGB"


class _Batch:
    """Frames that are fetched together, by the first thread that needs one of them."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = tuple(numbers)
        self._lock = threading.Lock()
        self._fetched: dict[int, tuple[str, memoryview]] = {}
        self._error: MedimgError | None = None

    def take(self, number: int, source: RemoteFrames) -> tuple[str, memoryview]:
        """Return a frame and release it; the error of the request for each of its frames."""
        with self._lock:
            if self._error is not None:
                raise self._error
            if number not in self._fetched:
                self._fetch(source)
            return self._fetched.pop(number)

    def _fetch(self, source: RemoteFrames) -> None:
        try:
            found = source.read_frames(self.numbers)
        except MedimgError as error:
            self._error = error
            raise
        if found is None:
            raise NotSentError
        self._fetched = dict(zip(self.numbers, found, strict=True))


def _make_batches(numbers: Sequence[int], size: int) -> list[_Batch]:
    """Return the batches of frames of `size` bytes each, in order of their first frame."""
    most = max(1, min(_MAX_FRAMES, _MAX_BYTES // max(1, size)))
    rounds = max(1, -(-len(numbers) // (most * _AT_ONCE)))
    length = -(-len(numbers) // rounds)
    batches = []
    for start in range(0, len(numbers), max(1, length)):
        some = numbers[start : start + length]
        count = min(_AT_ONCE, len(some))
        batches += [_Batch(some[first::count]) for first in range(count)]
    return batches
