"""Frames into modality values, on all cores: each file is opened once, each picture decoded once."""

from __future__ import annotations

from collections import Counter, defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core.parallel import available_cores, parallel_for
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.open import open_dataset, to_tags
from medimg.io.dicom.pixels._parsed_file import ParsedFile
from medimg.io.dicom.pixels._single_frame_reader import LoadedSlice, SingleFrameReader
from medimg.io.dicom.pixels.volume_buffer import VolumeBuffer
from medimg.io.dicom.values.suv import SUV_TAGS, get_acquisition_time

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header.instance import Frame, Instance
    from medimg.io.series import ValueKind

__all__ = ["FrameReader", "find_first_acquisition"]

_SUV_TAGS: Final = to_tags(*SUV_TAGS)
#: Values beyond float32 become infinite, which is no reason to warn.
_ignore_overflow: Final = partial(np.errstate, over="ignore", invalid="ignore")
#: A thread takes as long to start as this takes to read.
_BYTES_PER_WORKER: Final = 2**19


class FrameReader:
    """
    Reads frames of a series; what it learns from some files helps with those that it reads later.

    Parameters
    ----------
    frames : sequence of Frame
        All that will be read.
    kind : {"auto", "rescaled", "suv"}
        How values are scaled; see :func:`medimg.read`.
    first_acquired : float, optional
        What :func:`first_acquired_at` says of the series; only "suv" takes it.
    """

    def __init__(
        self, frames: Sequence[Frame], kind: ValueKind = "rescaled", *, first_acquired: float | None = None
    ) -> None:
        self._kind = kind
        self._first_acquired = first_acquired
        self._siblings = SingleFrameReader(kind, first_acquired)
        many = [frame for frame in frames if len(frame.instance.facts) > 1]
        counts = Counter(id(frame.instance) for frame in many)
        self._files = {
            id(f.instance): ParsedFile(f.instance, kind, first_acquired, frames=counts[id(f.instance)])
            for f in many
        }

    def read(self, frames: Sequence[Frame], channels: int = 1, *, workers: int | None = None) -> VolumeBuffer:
        """
        Read frames into one array.

        Parameters
        ----------
        frames : sequence of Frame
            Channel after channel. Each file is opened once, each stored picture decoded once.
        channels : int
            How many channels there are.
        workers : int, optional
            The most threads; as many as there are cores by default.

        Returns
        -------
        VolumeBuffer
            All slices that are as large as the first one.

        Raises
        ------
        ReadError
            If a file can't be read, or its pixels can't be decoded; of several, what the first one in the
            order of the files says.
        """
        filling = VolumeBuffer(len(frames), channels)
        done: set[int] = set()
        misfits: dict[int, npt.NDArray[Any]] = {}

        def read_one(place: int) -> bool:
            values = filling.put(place, self.load(frames[place], filling.slot(place)))
            if values is not None:
                misfits[place] = values
            done.add(place)
            return values is None

        order = _order_by_file(frames)
        # the first one tells what the array is like
        parallel_for(order[:1], read_one, workers=1, within=_ignore_overflow)
        workers = available_cores() if workers is None else workers
        while todo := [place for place in order if place not in done]:
            count = min(workers, 1 + filling.nbytes // _BYTES_PER_WORKER)
            parallel_for(todo, read_one, workers=count, within=_ignore_overflow)
            filling.widen(misfits)
            misfits.clear()
        return filling

    def load(self, frame: Frame, slot: npt.NDArray[Any] | None = None) -> LoadedSlice:
        """
        Decode one of the frames.

        Parameters
        ----------
        frame : Frame
            One of those that this was made with; each once.
        slot : numpy.ndarray, optional
            See :meth:`SingleFrameReader.load`.

        Raises
        ------
        ReadError
            If its file can't be read, or its pixels can't be decoded.
        """
        file = self._files.get(id(frame.instance))
        if file is not None:
            return file.load(frame)
        found = self._siblings.load(frame.instance, slot) if frame.facts.corner is None else None
        if found is not None:
            return found
        return ParsedFile(frame.instance, self._kind, self._first_acquired).load(frame)


def _order_by_file(frames: Sequence[Frame]) -> list[int]:
    """Return the places of frames, those of one file together, in the order of their first ones."""
    places: dict[int, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        places[id(frame.instance)].append(place)
    return [place for of_file in places.values() for place in of_file]


def find_first_acquisition(instances: Sequence[Instance]) -> float | None:
    """
    Return when the first of several files was acquired, in seconds; None where no file says.

    Raises
    ------
    ReadError
        If a file can't be read.
    """
    with quiet_pydicom():
        times = [get_acquisition_time(open_dataset(i.blob, tags=_SUV_TAGS)) for i in instances]
    return min((time for time in times if time is not None), default=None)
