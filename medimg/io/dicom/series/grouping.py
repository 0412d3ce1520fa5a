"""Frames into groups that can be stacked: one series of the scanner can hold several."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

from medimg.io.dicom.series._dimensions import Repetition, split_repetitions

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Sequence

    from medimg.io.dicom.header.instance import Frame, Instance

__all__ = ["Group", "group_frames"]

# with room for the rounding of binary numbers: writers round to 4 decimals
_ORIENTATION_TOLERANCE: Final = 1e-4 + 1e-9
_SPACING_TOLERANCE: Final = 1e-3
#: Modalities whose images are slices, even where their position is not in the file.
_SLICED: Final = frozenset({"CT", "MR", "PT"})


@dataclass(frozen=True, slots=True)
class Group:
    """
    Frames that make up one volume.

    Attributes
    ----------
    uid : str
        Series Instance UID, with "#2", "#3", … where a series holds several groups.
    content : Repetition
        Its frames, channel by channel.
    notes : tuple of str
        What deserves a second look.
    """

    uid: str
    content: Repetition
    notes: tuple[str, ...]

    @property
    def instances(self) -> list[Instance]:
        """Its files, each once."""
        frames = (frame for channel in self.content.channels for frame in channel)
        return list({id(f.instance): f.instance for f in frames}.values())


def group_frames(instances: Iterable[Instance]) -> list[Group]:
    """
    Group the frames of files into volumes.

    By Series Instance UID, and patient, study and Series Number, which a constant UID of a careless
    anonymizer can't mix up; by size, color, localizer or not, orientation and pixel spacing; and where
    images lie at the same positions, as :func:`medimg.io.dicom.series._dimensions.split_repetitions` says.
    Files without Series Instance UID go by folder, study and Series Number. An image without a place in the
    patient, such as an X-ray or an ultrasound clip, is a group of its own, unless it is a slice of a CT, MR
    or PET.

    Returns
    -------
    list of Group
    """
    by_series: dict[Hashable, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_series[_series_key(instance)].append(instance)
    result: list[Group] = []
    numbers: dict[str, int] = defaultdict(int)
    for members in by_series.values():
        uid, notes = _named(members)
        frames = [frame for instance in members for frame in instance.frames]
        parts = [part for alike in _by_appearance(frames) for part in split_repetitions(alike)]
        parts.sort(key=lambda part: min(frame.sort_key for channel in part.channels for frame in channel))
        for part in parts:
            numbers[uid] += 1
            suffix = f"#{numbers[uid]}" if numbers[uid] > 1 else ""
            found = dict.fromkeys(n for channel in part.channels for f in channel for n in f.instance.notes)
            result.append(Group(uid + suffix, part, (*notes, *part.notes, *found)))
    return result


def _series_key(instance: Instance) -> Hashable:
    where = "" if instance.series_uid else str(PurePath(instance.path).parent)
    return (
        instance.series_uid,
        instance.patient_id,
        instance.study_uid,
        instance.series_number,
        instance.modality,
        where,
    )


def _named(members: Sequence[Instance]) -> tuple[str, tuple[str, ...]]:
    if members[0].series_uid:
        return members[0].series_uid, ()
    uid = f"no series UID: {min(m.path for m in members)}"
    if len(members) == 1:
        return uid, ()
    return uid, ("no Series Instance UID: grouped by folder, study, Series Number and appearance",)


def _by_appearance(frames: Sequence[Frame]) -> list[list[Frame]]:
    alike: dict[Hashable, list[list[Frame]]] = defaultdict(list)
    for frame in frames:
        instance = frame.instance
        key = (
            instance.sop_class_uid,
            instance.rows,
            instance.columns,
            instance.is_color,
            frame.is_localizer,
            None if frame.has_geometry or instance.modality in _SLICED else instance.path,
        )
        for group in alike[key]:
            if _same_geometry(group[0], frame):
                group.append(frame)
                break
        else:
            alike[key].append([frame])
    return [group for groups in alike.values() for group in groups]


def _same_geometry(one: Frame, other: Frame) -> bool:
    """Whether two images have the same orientation and pixel spacing, as far as they say."""
    a, b = one.facts, other.facts
    return _close(a.orientation, b.orientation, atol=_ORIENTATION_TOLERANCE) and _close(
        a.pixel_spacing, b.pixel_spacing, rtol=_SPACING_TOLERANCE
    )


def _close(
    one: Sequence[float] | None, other: Sequence[float] | None, *, rtol: float = 0.0, atol: float = 0.0
) -> bool:
    if one is other:
        return True
    if one is None or other is None:
        return False
    return all(abs(a - b) <= atol + rtol * abs(b) for a, b in zip(one, other, strict=True))
