"""Instances into series that can be stacked."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    from medimg.io.dicom.header import Instance

__all__ = ["group_instances"]

_ORIENTATION_TOLERANCE: Final = 1e-4
#: What tells images at one position apart, in the order in which it is tried.
_DISTINCTIONS: Final[tuple[Callable[[Instance], Any], ...]] = (
    lambda i: i.echo_number,
    lambda i: i.acquisition_number,
)


def group_instances(instances: Iterable[Instance]) -> list[tuple[str, list[Instance]]]:
    """
    Group instances that belong into one stack.

    By Series Instance UID, then size, color, localizer or not, and orientation; by echo and acquisition
    where these tell images at the same positions apart. An image without a place in the patient, such as
    an X-ray or an ultrasound picture, is a group of its own, unless it is a slice of a CT, MR or PET.

    Returns
    -------
    list of (str, list of Instance)
        The identifier of each group, which is the Series Instance UID as long as the series is one group,
        and its instances.
    """
    by_series: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        by_series[instance.series_uid or f"no series UID: {instance.path}"].append(instance)
    result = []
    for uid, members in by_series.items():
        groups = [part for alike in _by_appearance(members) for part in _by_repetition(alike)]
        groups.sort(key=lambda g: (min(i.instance_number or 0 for i in g), min(i.path for i in g)))
        result += [(uid if n == 0 else f"{uid}#{n + 1}", group) for n, group in enumerate(groups)]
    return result


def _by_appearance(members: list[Instance]) -> list[list[Instance]]:
    alike: dict[Hashable, list[list[Instance]]] = defaultdict(list)
    for instance in members:
        key = (
            instance.modality,
            instance.rows,
            instance.columns,
            instance.samples,
            instance.photometric == "PALETTE COLOR",
            instance.is_localizer,
            instance.frames > 1,
            None if instance.has_place or instance.modality in {"CT", "MR", "PT"} else instance.path,
        )
        for group in alike[key]:
            if _same_orientation(group[0], instance):
                group.append(instance)
                break
        else:
            alike[key].append([instance])
    return [group for groups in alike.values() for group in groups]


def _same_orientation(one: Instance, other: Instance) -> bool:
    if one.orientation is None or other.orientation is None:
        return one.orientation is other.orientation
    return bool(np.allclose(one.orientation, other.orientation, rtol=0, atol=_ORIENTATION_TOLERANCE))


def _by_repetition(group: list[Instance]) -> list[list[Instance]]:
    """Split a group in which positions repeat, where an attribute tells the repetitions apart."""
    if not _repeats(group):
        return [group]
    for distinction in _DISTINCTIONS:
        parts: dict[Hashable, list[Instance]] = defaultdict(list)
        for instance in group:
            parts[distinction(instance)].append(instance)
        if len(parts) > 1 and not any(_repeats(part) for part in parts.values()):
            return list(parts.values())
    return [group]


def _repeats(group: Sequence[Instance]) -> bool:
    places = [tuple(np.round(i.position, 2)) for i in group if i.position is not None]
    return len(set(places)) < len(places)
