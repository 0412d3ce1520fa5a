"""Frames into modality values: each file is opened once, each stored picture decoded once."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from medimg.errors import DecodeError, MedimgError
from medimg.io.dicom.attributes import identifier, quiet_pydicom
from medimg.io.dicom.calibration import calibrated
from medimg.io.dicom.frames import StoredFrames
from medimg.io.dicom.opening import open_dataset, tags_of
from medimg.io.dicom.suv import SUV_TAGS, acquired_at
from medimg.io.dicom.values import SliceValues, slice_values
from medimg.io.dicom.views import FrameViews

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from pydicom.dataset import Dataset

    from medimg.io.dicom.header import Frame, Instance
    from medimg.io.series import ValueKind

__all__ = ["first_acquired_at", "read_frames"]

_SUV_TAGS: Final = tags_of(*SUV_TAGS)
_Calibrate: TypeAlias = "Callable[[Dataset, SliceValues], SliceValues]"


def read_frames(
    frames: Sequence[Frame], values: ValueKind = "rescaled", *, first_acquired: float | None = None
) -> list[SliceValues]:
    """
    Return the values of frames, in the order given.

    Parameters
    ----------
    frames : sequence of Frame
        Each file of them is opened once, each stored picture decoded once.
    values : {"auto", "rescaled", "suv"}
        How values are scaled; see :func:`medimg.read`.
    first_acquired : float, optional
        What :func:`first_acquired_at` says of the series; only "suv" takes it.

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
        calibrate = partial(calibrated, kind=values, first_acquired=first_acquired)
        found = _of_instance(instance, [frames[place] for place in places], calibrate)
        result.update(zip(places, found, strict=True))
    return [result[place] for place in range(len(frames))]


def first_acquired_at(instances: Sequence[Instance]) -> float | None:
    """
    Return when the first of several files was acquired, in seconds; None where no file says.

    Raises
    ------
    ReadError
        If a file can't be read.
    """
    with quiet_pydicom():
        times = [acquired_at(open_dataset(i.blob, tags=_SUV_TAGS)) for i in instances]
    return min((time for time in times if time is not None), default=None)


def _of_instance(instance: Instance, frames: Sequence[Frame], calibrate: _Calibrate) -> list[SliceValues]:
    try:
        with quiet_pydicom():
            return _decoded(instance, frames, calibrate)
    except MedimgError as error:
        if instance.path in str(error):
            raise
        raise type(error)(f"{instance.path}: {error}") from None
    # pydicom raises errors of many kinds when a damaged value is used, and their texts quote it
    except Exception as error:
        raise DecodeError(f"{instance.path} is damaged ({type(error).__name__} while decoding)") from None


def _decoded(instance: Instance, frames: Sequence[Frame], calibrate: _Calibrate) -> list[SliceValues]:
    dataset = open_dataset(instance.blob)
    if identifier(dataset, "SOPInstanceUID") != instance.sop_instance_uid:
        raise DecodeError("another image is there than when it was scanned; scan again")
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
        view = views[number]
        found = slice_values(view, source.form, stored, is_rgb=is_rgb)
        result.append(calibrate(view, found))
    return result
