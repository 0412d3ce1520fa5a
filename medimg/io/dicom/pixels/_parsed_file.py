"""Files that pydicom parses whole, once: those of many frames, and all that are not as usual."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from medimg.errors import DecodeError, MedimgError
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._single_frame_reader import LoadedSlice
from medimg.io.dicom.pixels.frames import StoredFrames
from medimg.io.dicom.values.modality_lut import parse_modality_transform
from medimg.io.dicom.values.real_world import apply_real_world_scale

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from medimg.io.dicom.header.instance import Frame, Instance
    from medimg.io.dicom.values.modality_lut import ModalityTransform
    from medimg.io.series import ValueKind

__all__ = ["ParsedFile"]


class ParsedFile:
    """
    A file whose frames are decoded one by one, on any thread; it is opened when the first one is.

    Parameters
    ----------
    instance : Instance
        The file, as it was scanned.
    kind : {"auto", "rescaled", "suv"}
        How values are scaled; see :func:`medimg.read`.
    first_acquired : float, optional
        See :func:`medimg.io.dicom.values.suv.compute_suv_factor`.
    frames : int
        How many will be loaded; then the file is let go.
    """

    def __init__(
        self, instance: Instance, kind: ValueKind, first_acquired: float | None, *, frames: int = 1
    ) -> None:
        self._instance = instance
        self._kind = kind
        self._first_acquired = first_acquired
        self._left = frames
        self._lock = threading.RLock()
        self._opened: tuple[StoredFrames, FrameViews] | None = None
        self._picture: tuple[int, npt.NDArray[Any], bool] | None = None
        self._meanings: dict[tuple[np.dtype[Any], bool], ModalityTransform] = {}

    def load(self, frame: Frame) -> LoadedSlice:
        """
        Decode a frame.

        Raises
        ------
        ReadError
            If the file can't be read, or its pixels can't be decoded.
        """
        path = self._instance.path
        try:
            with quiet_pydicom():
                return self._loaded(frame)
        except MedimgError as error:
            if path in str(error):
                raise
            raise type(error)(f"{path}: {error}") from None
        except MemoryError:
            raise
        # pydicom raises errors of many kinds when a damaged value is used, and their texts quote it
        except Exception as error:
            raise DecodeError(f"{path} is damaged ({type(error).__name__} while decoding)") from None

    def _loaded(self, frame: Frame) -> LoadedSlice:
        source, views = self._open()
        number, corner = frame.facts.number, frame.facts.corner
        if number >= source.count:
            raise DecodeError(f"frame {number + 1} of {source.count} was asked for; has the file changed?")
        stored, is_rgb = source.stored(number) if corner is None else self._tiled(source, number)
        if corner is not None:
            row, column = corner
            stored = stored[row : row + self._instance.rows, column : column + self._instance.columns]
        meaning = self._meaning(source, views, number, stored.dtype, is_rgb=is_rgb)
        with self._lock:
            self._left -= 1
            if self._left <= 0:
                self._opened = self._picture = None
        return LoadedSlice(meaning, stored)

    def _open(self) -> tuple[StoredFrames, FrameViews]:
        with self._lock:
            if self._opened is None:
                dataset = open_dataset(self._instance.blob)
                if get_identifier(dataset, "SOPInstanceUID") != self._instance.sop_instance_uid:
                    raise DecodeError("another image is there than when it was scanned; scan again")
                source = StoredFrames(dataset)
                self._opened = source, FrameViews(dataset, source.count)
            return self._opened

    def _tiled(self, source: StoredFrames, number: int) -> tuple[npt.NDArray[Any], bool]:
        """Return the picture that holds several images, decoded once."""
        with self._lock:
            if self._picture is None or self._picture[0] != number:
                self._picture = (number, *source.stored(number))
            return self._picture[1:]

    def _meaning(
        self, source: StoredFrames, views: FrameViews, number: int, dtype: np.dtype[Any], *, is_rgb: bool
    ) -> ModalityTransform:
        known = None if views.has_per_frame_groups else self._meanings.get((dtype, is_rgb))
        if known is None:
            view = views[number]
            known = parse_modality_transform(view, source.form, dtype, is_rgb=is_rgb)
            known = apply_real_world_scale(view, known, self._kind, first_acquired=self._first_acquired)
            self._meanings[dtype, is_rgb] = known
        return known
