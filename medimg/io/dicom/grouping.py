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
_SPACING_TOLERANCE: Final = 1e-3
#: What tells images at one position apart, in the order in which it is tried.
_DISTINCTIONS: Final[tuple[Callable[[Instance], Any], ...]] = (
    lambda i: i.echo_number,
    lambda i: i.acquisition_number,
    lambda i: i.image_type[2:],
)


def group_instances(instances: Iterable[Instance]) -> list[tuple[str, list[Instance]]]:
    """
    Group instances that belong into one stack.

    By Series Instance UID, then size, color, localizer or not, orientation and pixel spacing; by echo,
    acquisition or Image Type where these tell images at the same positions apart. An image without a place
    in the patient, such as an X-ray or an ultrasound picture, is a group of its own, unless it is a slice
    of a CT, MR or PET.

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
            instance.is_multiframe,
            None if instance.has_place or instance.modality in {"CT", "MR", "PT"} else instance.path,
        )
        for group in alike[key]:
            if _same_geometry(group[0], instance):
                group.append(instance)
                break
        else:
            alike[key].append([instance])
    return [group for groups in alike.values() for group in groups]


def _same_geometry(one: Instance, other: Instance) -> bool:
    """Whether two images have the same orientation and pixel spacing, as far as they say."""
    return _close(one.orientation, other.orientation, atol=_ORIENTATION_TOLERANCE) and _close(
        one.pixel_spacing, other.pixel_spacing, rtol=_SPACING_TOLERANCE
    )


def _close(
    one: Sequence[float] | None, other: Sequence[float] | None, *, rtol: float = 0.0, atol: float = 0.0
) -> bool:
    if one is None or other is None:
        return one is other
    return bool(np.allclose(one, other, rtol=rtol, atol=atol))


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
    """Whether different instances lie at one position; a copy of a file is no repetition."""
    distinct = {i.sop_instance_uid or i.path: i.position for i in group}
    places = [tuple(np.round(position, 2)) for position in distinct.values() if position is not None]
    return len(set(places)) < len(places)
