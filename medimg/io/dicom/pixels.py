"""Frames into modality values: each file is opened once, each stored picture decoded once."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from medimg.errors import DecodeError, ReadError
from medimg.io.dicom.attributes import quiet_pydicom
from medimg.io.dicom.frames import StoredFrames
from medimg.io.dicom.opening import open_dataset
from medimg.io.dicom.values import SliceValues, slice_values
from medimg.io.dicom.views import FrameViews

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from medimg.io.dicom.header import Frame, Instance

__all__ = ["read_frames"]


def read_frames(frames: Sequence[Frame]) -> list[SliceValues]:
    """
    Return the modality values of frames, in the order given.

    Raises
    ------
    ReadError
        If a file can't be read, or its pixels can't be decoded.
    """
    wanted: dict[int, list[int]] = defaultdict(list)
    for place, frame in enumerate(frames):
        wanted[id(frame.instance)].append(place)
    result: dict[int, SliceValues] = {}
    for places in wanted.values():
        instance = frames[places[0]].instance
        values = _of_instance(instance, [frames[place] for place in places])
        result.update(zip(places, values, strict=True))
    return [result[place] for place in range(len(frames))]


def _of_instance(instance: Instance, frames: Sequence[Frame]) -> list[SliceValues]:
    try:
        with quiet_pydicom():
            return _decoded(instance, frames)
    except ReadError as error:
        if instance.path in str(error):
            raise
        raise type(error)(f"{instance.path}: {error}") from None
    # pydicom raises errors of many kinds when a damaged value is used, and their texts quote it
    except Exception as error:
        raise DecodeError(f"{instance.path} is damaged ({type(error).__name__} while decoding)") from None


def _decoded(instance: Instance, frames: Sequence[Frame]) -> list[SliceValues]:
    dataset = open_dataset(instance.blob)
    source = StoredFrames(dataset)
    views = FrameViews(dataset, source.count)
    picture: tuple[int, npt.NDArray[Any], bool] | None = None
    result = []
    for frame in frames:
        number = frame.facts.number
        if number >= source.count:
            raise DecodeError(f"frame {number + 1} of {source.count} was asked for; has the file changed?")
        if picture is None or picture[0] != number:
            picture = (number, *source.stored(number))
        _, stored, is_rgb = picture
        if frame.facts.corner is not None:
            row, column = frame.facts.corner
            stored = stored[row : row + instance.rows, column : column + instance.columns]
        result.append(slice_values(views[number], source.form, stored, is_rgb=is_rgb))
    return result
