"""Files parsed once by pydicom: those with many frames, and unusual ones."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import DecodeError, MedimgError
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.instance import HEADER_TAGS, read_instance
from medimg.io.dicom.header.open import open_dataset, to_tag_numbers
from medimg.io.dicom.pixels._fetched_frames import FetchedFrames, NotSentError
from medimg.io.dicom.pixels._frame_ranges import open_ranges
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.pixels._single_frame_reader import LoadedSlice, list_value_tags
from medimg.io.dicom.values.modality_lut import parse_modality_transform
from medimg.io.dicom.values.real_world import apply_real_world_scale
from medimg.io.files.blob import Blob

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.instance import Frame, Instance
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = ["MultiFrameReader"]

#: Values in sequences that a header without them must not be taken for whole.
_NESTED_TAGS: Final = to_tag_numbers("LUTData")


class MultiFrameReader:
    """
    A file whose frames are decoded on demand, on any thread; released after those of `numbers`.

    If they are up to half of the frames, and a server sends these apart from the file, only they are fetched.
    """

    def __init__(
        self,
        instance: Instance,
        values: ValueKind,
        first_acquired: float | None,
        *,
        numbers: Sequence[int] = (),
    ) -> None:
        self._instance = instance
        self._values = values
        self._first_acquired = first_acquired
        self._numbers = numbers
        self._remaining = len(numbers)
        self._lock = threading.RLock()
        self._opened: tuple[StoredFrames | FetchedFrames, FrameViews] | None = None
        self._mosaic: tuple[int, npt.NDArray[Any], bool] | None = None

    def load(self, frame: Frame) -> LoadedSlice:
        """Decode a frame; raise ReadError with the name of the file."""
        path = self._instance.path
        try:
            with quiet_pydicom():
                return self._decode(frame)
        except MedimgError as error:
            if path in str(error):
                raise
            raise type(error)(f"{path}: {error}") from None
        except MemoryError:
            raise
        # pydicom raises various errors when a damaged value is used, and their texts quote it
        except Exception as error:
            raise DecodeError(f"{path} is damaged ({type(error).__name__} while decoding)") from None

    def _decode(self, frame: Frame) -> LoadedSlice:
        number, corner = frame.facts.number, frame.facts.corner
        source, views = self._open()
        try:
            stored, is_rgb = self._decode_stored(source, frame)
        except NotSentError:
            source, views = self._open(whole=True)
            stored, is_rgb = self._decode_stored(source, frame)
        if corner is not None:
            row, column = corner
            stored = stored[row : row + self._instance.rows, column : column + self._instance.columns]
        transform = self._get_transform(source, views, number, stored.dtype, is_rgb=is_rgb)
        transform.check_slope(stored)
        with self._lock:
            self._remaining -= 1
            if self._remaining <= 0:
                self._opened = self._mosaic = None
        return LoadedSlice(transform, stored)

    def _decode_stored(
        self, source: StoredFrames | FetchedFrames, frame: Frame
    ) -> tuple[npt.NDArray[Any], bool]:
        number = frame.facts.number
        if number >= source.count:
            raise DecodeError(
                f"frame {number + 1} of {source.count} was requested; the file has changed, scan again"
            )
        return source.decode(number) if frame.facts.corner is None else self._decode_mosaic(source, number)

    def _open(self, *, whole: bool = False) -> tuple[StoredFrames | FetchedFrames, FrameViews]:
        with self._lock:
            if self._opened is None or (whole and isinstance(self._opened[0], FetchedFrames)):
                self._opened = (None if whole else self._open_header()) or self._open_file()
            return self._opened

    def _open_header(self) -> tuple[FetchedFrames, FrameViews] | None:
        """Return the frames by the header alone; None if most of them are needed, or come with the file."""
        blob = self._instance.blob
        frames, header = blob.remote_frames, blob.remote_header
        asked = len({*self._numbers})
        # servers that cut each frame out of the file take longer for most of them than for all
        is_part = 0 < asked <= _count_frames(self._instance) // 2
        if not is_part or frames is None or header is None:
            return None
        head = header.read_header(HEADER_TAGS | _NESTED_TAGS | list_value_tags(self._values))
        if head is None:
            return None
        dataset = open_dataset(Blob(blob.name, data=head))
        source = FetchedFrames(frames, dataset, self._numbers)
        return source, FrameViews(dataset, source.count)

    def _open_file(self) -> tuple[StoredFrames, FrameViews]:
        part = open_ranges(self._instance, len({*self._numbers}))
        blob = self._instance.blob if part else self._instance.blob.fetched()
        dataset, values = part or (open_dataset(blob), None)
        if get_identifier(dataset, "SOPInstanceUID") != self._instance.sop_instance_uid:
            raise DecodeError("the file holds another image than when it was scanned; scan again")
        # the header was made of what a server says of the file
        if self._instance.blob.remote_header is not None:
            _check_geometry(self._instance, read_instance(blob))
        source = StoredFrames(dataset, values)
        return source, FrameViews(dataset, source.count)

    def _decode_mosaic(
        self, source: StoredFrames | FetchedFrames, number: int
    ) -> tuple[npt.NDArray[Any], bool]:
        """Return a mosaic, decoded once for all its tiles."""
        with self._lock:
            if self._mosaic is None or self._mosaic[0] != number:
                self._mosaic = (number, *source.decode(number))
            return self._mosaic[1:]

    def _get_transform(
        self,
        source: StoredFrames | FetchedFrames,
        views: FrameViews,
        number: int,
        dtype: np.dtype[Any],
        *,
        is_rgb: bool,
    ) -> ModalityTransform:
        """Return the transform of a frame, parsed again only if what it depends on differs from the last."""
        with self._lock:
            return views.evaluate(number)(self._parse_transform, source, dtype, is_rgb)

    def _parse_transform(
        self, view: Dataset, source: StoredFrames | FetchedFrames, dtype: np.dtype[Any], is_rgb: bool
    ) -> ModalityTransform:
        transform = parse_modality_transform(view, source.format, dtype, is_rgb=is_rgb)
        transform = apply_real_world_scale(view, transform, self._values, first_acquired=self._first_acquired)
        return replace(transform, notes=(*transform.notes, source.note)) if source.note else transform


def _count_frames(instance: Instance) -> int:
    """Return the number of frames in the pixel data, of which a mosaic has one."""
    return 1 + max(facts.number for facts in instance.facts)


def _check_geometry(scanned: Instance, fetched: Instance) -> None:
    """Raise DecodeError if the metadata of a server, by which slices were ordered, contradict its file."""
    one, other = (
        [(f.position, f.orientation, f.pixel_spacing) for f in instance.facts]
        for instance in (scanned, fetched)
    )
    if one != other or (scanned.rows, scanned.columns) != (fetched.rows, fetched.columns):
        raise DecodeError(
            "the metadata that the server gives contradict the file: position, orientation, spacing or size "
            "of the image differ; download the files and read those"
        )
