"""Named attributes of one frame, from its file and its functional groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.element_values import InvalidValueError
from medimg.io.dicom.header.functional_groups import FrameViews
from medimg.io.dicom.header.open import open_header, to_tag_numbers
from medimg.io.dicom.header.private_tags import PrivateTag, find_private_number, list_private_tags
from medimg.io.dicom.tags.header_dataset import HeaderDataset, check_unchanged
from medimg.io.dicom.tags.tag_values import get_tag_value
from medimg.io.tag_names import TagValues

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medimg.io.dicom.header.instance import Frame
    from medimg.io.tag_names import TagName, TagValue

__all__ = ["read_tags"]

#: What the values of others depend on, and what is checked.
_ALWAYS: Final = to_tag_numbers(
    "PerFrameFunctionalGroupsSequence",
    "PixelRepresentation",
    "SOPInstanceUID",
    "SharedFunctionalGroupsSequence",
)
_META: Final = 0x0002


def read_tags(frame: Frame, names: Sequence[TagName]) -> TagValues:
    """Read attributes of a frame; raise ReadError if the file can no longer be read, or has changed."""
    instance = frame.instance
    header = open_header(instance.blob, _ALWAYS.union(*map(_list_tags, names)))
    check_unchanged(header, instance)
    is_mosaic = frame.facts.corner is not None
    with quiet_pydicom():
        views = FrameViews(header, 1 if is_mosaic else len(instance.facts))
        view = views[0 if is_mosaic else frame.facts.number]
        values: dict[str, TagValue] = {}
        invalid: list[str] = []
        for name in names:
            try:
                values[name.label] = _find_value(name, view, header)
            except InvalidValueError:
                values[name.label] = None
                invalid.append(name.label)
    return TagValues(values, tuple(dict.fromkeys(invalid)))


def _list_tags(name: TagName) -> Iterator[int]:
    """Yield the tags to read: a private attribute is decoded by its creator."""
    if name.creator:
        yield from list_private_tags(_to_private(name))
        return
    yield name.number
    if BaseTag(name.number).is_private and name.number & 0xFFFF > 0xFF:
        yield name.number & 0xFFFF0000 | name.number >> 8 & 0xFF


def _to_private(name: TagName) -> PrivateTag:
    return PrivateTag(name.number >> 16, name.number & 0xFF, name.creator, "UN")


def _find_value(name: TagName, view: Dataset, header: Dataset) -> TagValue:
    """Return the value for a frame, or else for its file."""
    for dataset in (header.file_meta,) if name.number >> 16 == _META else (view, header):
        number = find_private_number(dataset, _to_private(name)) if name.creator else name.number
        if number is not None and number in dataset:
            value = get_tag_value(dataset, BaseTag(number))
            if isinstance(value, tuple):
                return tuple(HeaderDataset(item) if isinstance(item, Dataset) else item for item in value)
            return value
    return None
