"""Grouping of DICOM frames into series that can be stacked; a Series Instance UID can have several."""

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

# writers round to 4 decimals; plus the rounding of binary numbers
_ORIENTATION_TOLERANCE: Final = 1e-4 + 1e-9
_SPACING_TOLERANCE: Final = 1e-3
#: Modalities whose images are slices even without a position.
_SLICE_MODALITIES: Final = frozenset({"CT", "MR", "PT"})


@dataclass(frozen=True, slots=True)
class Group:
    """Frames of one volume; the UID has a suffix "#2", "#3", … if a series has several groups."""

    uid: str
    content: Repetition
    notes: tuple[str, ...]

    @property
    def instances(self) -> list[Instance]:
        """Files of the group, each once."""
        frames = (frame for channel in self.content.channels for frame in channel)
        return list({id(f.instance): f.instance for f in frames}.values())


def group_frames(instances: Iterable[Instance]) -> list[Group]:
    """
    Group the frames of files into volumes.

    By Series Instance UID, patient, study and Series Number (for anonymizers that write a constant UID), or
    by folder if there is no UID; by size, color, localizer, orientation and pixel spacing; then by
    repetition. A frame without a position, such as an X-ray or an ultrasound clip, is its own group, except
    in CT, MR and PET.
    """
    by_series: dict[Hashable, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_series[_make_series_key(instance)].append(instance)
    result: list[Group] = []
    numbers: dict[str, int] = defaultdict(int)
    for members in by_series.values():
        uid, notes = _name_series(members)
        frames = [frame for instance in members for frame in instance.frames]
        parts = [part for alike in _group_by_appearance(frames) for part in split_repetitions(alike)]
        parts.sort(key=lambda part: min(frame.sort_key for channel in part.channels for frame in channel))
        for part in parts:
            numbers[uid] += 1
            suffix = f"#{numbers[uid]}" if numbers[uid] > 1 else ""
            found = dict.fromkeys(n for channel in part.channels for f in channel for n in f.instance.notes)
            result.append(Group(uid + suffix, part, (*notes, *part.notes, *found)))
    return result


def _make_series_key(instance: Instance) -> Hashable:
    where = "" if instance.series_uid else str(PurePath(instance.path).parent)
    return (
        instance.series_uid,
        instance.patient_id,
        instance.study_uid,
        instance.series_number,
        instance.modality,
        where,
    )


def _name_series(members: Sequence[Instance]) -> tuple[str, tuple[str, ...]]:
    if members[0].series_uid:
        return members[0].series_uid, ()
    uid = f"no series UID: {min(m.path for m in members)}"
    if len(members) == 1:
        return uid, ()
    return uid, ("no Series Instance UID: grouped by folder, study, Series Number and appearance",)


def _group_by_appearance(frames: Sequence[Frame]) -> list[list[Frame]]:
    alike: dict[Hashable, list[list[Frame]]] = defaultdict(list)
    for frame in frames:
        instance = frame.instance
        key = (
            instance.sop_class_uid,
            instance.rows,
            instance.columns,
            instance.is_color,
            frame.is_localizer,
            None if frame.has_geometry or instance.modality in _SLICE_MODALITIES else instance.path,
        )
        for group in alike[key]:
            if _has_same_geometry(group[0], frame):
                group.append(frame)
                break
        else:
            alike[key].append([frame])
    return [group for groups in alike.values() for group in groups]


def _has_same_geometry(one: Frame, other: Frame) -> bool:
    """Whether two images have equal orientation and pixel spacing, as far as stated."""
    a, b = one.facts, other.facts
    return _is_close(a.orientation, b.orientation, atol=_ORIENTATION_TOLERANCE) and _is_close(
        a.pixel_spacing, b.pixel_spacing, rtol=_SPACING_TOLERANCE
    )


def _is_close(
    one: Sequence[float] | None, other: Sequence[float] | None, *, rtol: float = 0.0, atol: float = 0.0
) -> bool:
    if one is other:
        return True
    if one is None or other is None:
        return False
    return all(abs(a - b) <= atol + rtol * abs(b) for a, b in zip(one, other, strict=True))
