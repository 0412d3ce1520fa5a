"""Frames to modality values, on all cores; each file is opened once, each stored image decoded once."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.parallel import available_cores, ordered_map, parallel_for
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicom.pixels._multi_frame_reader import MultiFrameReader
from medimg.io.dicom.pixels._single_frame_reader import LoadedSlice, SingleFrameReader
from medimg.io.dicom.pixels.volume_buffer import VolumeBuffer
from medimg.io.dicom.values.suv import SUV_TAGS, get_acquisition_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.instance import Frame, Instance
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = ["FrameReader", "find_first_acquisition"]

_SUV_TAGS: Final = to_tags(*SUV_TAGS)
#: Values beyond float32 would become infinite.
_raise_overflow: Final = partial(np.errstate, over="raise", invalid="ignore")
#: A thread takes as long to start as this takes to read.
_BYTES_PER_WORKER: Final = 2**19
#: Files that are read at once, without an interruption.
_FILES_AT_ONCE: Final = 64
#: Remote files that are fetched at the same time, however few cores decode them.
_REMOTE_WORKERS: Final = 8
_STORAGE_WORKERS: Final = 16


class FrameReader:
    """Reads frames of a series; equal headers are parsed once."""

    def __init__(
        self, frames: Sequence[Frame], values: ValueKind = "rescaled", *, first_acquired: float | None = None
    ) -> None:
        self._values = values
        self._first_acquired = first_acquired
        self._single_frames = SingleFrameReader(values, first_acquired)
        self._reads_together = True
        many = [frame for frame in frames if len(frame.instance.facts) > 1]
        numbers: dict[int, list[int]] = defaultdict(list)
        for frame in many:
            numbers[id(frame.instance)].append(frame.facts.number)
        self._files = {
            id(f.instance): MultiFrameReader(
                f.instance, values, first_acquired, numbers=numbers[id(f.instance)]
            )
            for f in many
        }

    def read(self, frames: Sequence[Frame], channels: int = 1, *, workers: int | None = None) -> VolumeBuffer:
        """
        Read frames, channel by channel, into one array; slices of another size than the first are left out.

        `workers` threads read the files that are not read together. ReadError is that of the first file, in
        file order, that can't be read.
        """
        order = _order_by_file(frames)
        buffer = VolumeBuffer(len(frames), channels)
        done = self._read_alike(frames, order, buffer)
        misfits: dict[int, npt.NDArray[Any]] = {}

        def read_one(index: int) -> bool:
            loaded = self.load(frames[index], buffer.get_slot(index))
            try:
                misfit = buffer.put(index, loaded)
            except FloatingPointError:
                raise _make_overflow_error(frames[index], loaded.transform) from None
            if misfit is not None:
                misfits[index] = misfit
            done.add(index)
            return misfit is None

        if not done:
            # the first slice determines the array
            parallel_for(order[:1], read_one, workers=1, within=_raise_overflow)
            done |= self._read_alike(frames, order[1:], buffer)
        workers = available_cores() if workers is None else workers
        at_once = _count_fetches({id(frame.instance): frame.instance for frame in frames}.values())
        while todo := [index for index in order if index not in done]:
            if at_once:
                # neighbors come with different requests
                count = max(workers, at_once)
                parallel_for(todo, read_one, workers=count, within=_raise_overflow, most_at_once=1)
            else:
                count = _count_workers(workers, buffer)
                parallel_for(todo, read_one, workers=count, within=_raise_overflow)
            buffer.widen(misfits)
            misfits.clear()
        return buffer

    def _read_alike(self, frames: Sequence[Frame], order: Sequence[int], buffer: VolumeBuffer) -> set[int]:
        """
        Read the slices that are like the one read last but for their pixels, and return their indices.

        None are read into an array that does not exist yet if slice 0 is not one of them.
        """
        done: set[int] = set()
        like = self._single_frames.alike if self._reads_together and not buffer.has_padding else None
        if like is None or any(frames[n].facts.corner is not None for n in order):
            return done
        is_new = buffer.nbytes == 0
        if not buffer.allocate(like):
            return done
        for start in range(0, len(order), _FILES_AT_ONCE):
            some = order[start : start + _FILES_AT_ONCE]
            files = [(frames[n].instance, slot) for n, slot in zip(some, buffer.get_slots(some), strict=True)]
            read = self._single_frames.read_alike(like, files, _count_workers(available_cores(), buffer))
            done.update(n for n, is_read in zip(some, read, strict=True) if is_read)
            if not any(read):
                # not tried again, unless it was a single one
                self._reads_together = len(read) == 1
                break
        if is_new and 0 not in done:
            buffer.clear()
            return set()
        buffer.mark_stored(done, like)
        return done

    def load(self, frame: Frame, slot: npt.NDArray[Any] | None = None) -> LoadedSlice:
        """Decode one of the frames, once each, into `slot` if possible; raise ReadError if unreadable."""
        file = self._files.get(id(frame.instance))
        if file is not None:
            return file.load(frame)
        found = self._single_frames.load(frame.instance, slot) if frame.facts.corner is None else None
        if found is not None:
            return found
        return MultiFrameReader(frame.instance, self._values, self._first_acquired).load(frame)


def _count_fetches(instances: Iterable[Instance]) -> int:
    """Return how many files are fetched at the same time; 0 if none is elsewhere."""
    blobs = [instance.blob for instance in instances]
    if any(blob.listed_file is not None for blob in blobs):
        return _STORAGE_WORKERS
    return _REMOTE_WORKERS if any(blob.remote is not None for blob in blobs) else 0


def _count_workers(workers: int, buffer: VolumeBuffer) -> int:
    return min(workers, 1 + buffer.nbytes // _BYTES_PER_WORKER)


def _make_overflow_error(frame: Frame, transform: ModalityTransform) -> DecodeError:
    scale = "" if transform.factor == 1 else f", times {transform.factor:g}"
    return DecodeError(
        f"{frame.instance.path}: RescaleSlope {transform.slope:g} and RescaleIntercept "
        f"{transform.intercept:g}{scale} give values beyond those of float32; the file is damaged"
    )


def _order_by_file(frames: Sequence[Frame]) -> list[int]:
    """Return the indices of frames, those of a file together, files in order of their first frame."""
    indices: dict[int, list[int]] = defaultdict(list)
    for index, frame in enumerate(frames):
        indices[id(frame.instance)].append(index)
    return [index for of_file in indices.values() for index in of_file]


def find_first_acquisition(instances: Sequence[Instance]) -> float | None:
    """Return the time, in seconds, of the first acquisition of several files; None if unknown."""

    def read_time(instance: Instance) -> float | None:
        with quiet_pydicom():
            return get_acquisition_time(open_dataset(instance.blob, tags=_SUV_TAGS))

    times = list(ordered_map(read_time, instances, _count_fetches(instances) or 1))
    return min((time for time in times if time is not None), default=None)
