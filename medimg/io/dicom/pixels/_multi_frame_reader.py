"""Files parsed once by pydicom: those with many frames, and unusual ones."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from medimg.errors import DecodeError, MedimgError
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.instance import read_instance
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._frame_ranges import open_ranges
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.pixels._single_frame_reader import LoadedSlice
from medimg.io.dicom.values.modality_lut import parse_modality_transform
from medimg.io.dicom.values.real_world import apply_real_world_scale

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.io.dicom.header.instance import Frame, Instance
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = ["MultiFrameReader"]


class MultiFrameReader:
    """A file whose frames are decoded on demand, on any thread; released after `frames` of them."""

    def __init__(
        self, instance: Instance, values: ValueKind, first_acquired: float | None, *, frames: int = 1
    ) -> None:
        self._instance = instance
        self._values = values
        self._first_acquired = first_acquired
        self._remaining = frames
        self._lock = threading.RLock()
        self._opened: tuple[StoredFrames, FrameViews] | None = None
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
        source, views = self._open()
        number, corner = frame.facts.number, frame.facts.corner
        if number >= source.count:
            raise DecodeError(
                f"frame {number + 1} of {source.count} was requested; the file has changed, scan again"
            )
        stored, is_rgb = source.decode(number) if corner is None else self._decode_mosaic(source, number)
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

    def _open(self) -> tuple[StoredFrames, FrameViews]:
        with self._lock:
            if self._opened is None:
                part = open_ranges(self._instance, self._remaining)
                blob = self._instance.blob if part else self._instance.blob.fetched()
                dataset, values = part or (open_dataset(blob), None)
                if get_identifier(dataset, "SOPInstanceUID") != self._instance.sop_instance_uid:
                    raise DecodeError("the file holds another image than when it was scanned; scan again")
                # the header was made of what a server says of the file
                if self._instance.blob.remote_header is not None:
                    _check_geometry(self._instance, read_instance(blob))
                source = StoredFrames(dataset, values)
                self._opened = source, FrameViews(dataset, source.count)
            return self._opened

    def _decode_mosaic(self, source: StoredFrames, number: int) -> tuple[npt.NDArray[Any], bool]:
        """Return a mosaic, decoded once for all its tiles."""
        with self._lock:
            if self._mosaic is None or self._mosaic[0] != number:
                self._mosaic = (number, *source.decode(number))
            return self._mosaic[1:]

    def _get_transform(
        self, source: StoredFrames, views: FrameViews, number: int, dtype: np.dtype[Any], *, is_rgb: bool
    ) -> ModalityTransform:
        """Return the transform of a frame, parsed again only if what it depends on differs from the last."""
        with self._lock:
            return views.evaluate(number)(self._parse_transform, source, dtype, is_rgb)

    def _parse_transform(
        self, view: Dataset, source: StoredFrames, dtype: np.dtype[Any], is_rgb: bool
    ) -> ModalityTransform:
        transform = parse_modality_transform(view, source.format, dtype, is_rgb=is_rgb)
        transform = apply_real_world_scale(view, transform, self._values, first_acquired=self._first_acquired)
        return replace(transform, notes=(*transform.notes, source.note)) if source.note else transform


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
