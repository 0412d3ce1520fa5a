"""
The plain way of evaluating functional groups, which the fast one must equal: pydicom parses each item, and
each frame is described by itself. Which groups and attributes count is stated once, by the library.

It was the way of the library until many frames became fast, and is kept as it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.tag import BaseTag

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import parse_items
from medimg.io.dicom.header.functional_groups import (
    _EXCLUDED,
    _KEPT_WHOLE,
    _LAST_CREATOR,
    _MACROS,
    _PRIVATE_GROUPS,
    _UNASSIGNED,
    Evaluation,
    _parse_first_item,
)
from medimg.io.dicom.header.image_pixel import describe_frame_count

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["PlainFrameViews"]

#: Elements of a dataset, parsed or raw.
_Elements: TypeAlias = "dict[BaseTag, Any]"


class PlainFrameViews:
    """Sequence of the views of all frames; raises DecodeError if functional groups are missing."""

    def __init__(self, dataset: Dataset, count: int) -> None:
        self._per_frame = parse_items(dataset, "PerFrameFunctionalGroupsSequence")
        if self._per_frame and len(self._per_frame) < count:
            raise DecodeError(
                f"functional groups describe {len(self._per_frame)} of {count} frames; the file is damaged"
            )
        if len(self._per_frame) > count:
            raise DecodeError(
                f"functional groups are those of {len(self._per_frame)} frames, but "
                f"{describe_frame_count(count)}; "
                "correct it, or export the file again"
            )
        self._count = count
        self._file_meta = getattr(dataset, "file_meta", FileMetaDataset())
        self._common: _Elements = {
            tag: dataset.get_item(tag, keep_deferred=True)
            for tag in _list_tags(dataset)
            if tag not in _EXCLUDED
        }
        shared = parse_items(dataset, "SharedFunctionalGroupsSequence")
        if shared:
            _overlay_group(self._common, shared[0])
        self._base = self._build_view(self._common)

    @property
    def common(self) -> Dataset:
        """View of the attributes that all frames share."""
        return self._base

    @property
    def has_per_frame_groups(self) -> bool:
        """Whether frames have attributes of their own."""
        return bool(self._per_frame)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Dataset]:
        return (self[number] for number in range(self._count))

    def __getitem__(self, number: int) -> Dataset:
        """Return the view of frame `number`, counted from 0."""
        if not 0 <= number < self._count:
            raise IndexError(number)
        if not self._per_frame:
            return self._base
        elements = dict(self._common)
        _overlay_group(elements, self._per_frame[number])
        return self._build_view(elements)

    def evaluate_each(self) -> Iterator[Evaluation]:
        """Yield the evaluation of each view."""
        return map(Evaluation, self)

    def evaluate(self, number: int) -> Evaluation:
        """Return the evaluation of a view."""
        return Evaluation(self[number])

    def _build_view(self, elements: _Elements) -> Dataset:
        # elements that are assigned one by one would be parsed if private, damaged or not
        view = Dataset(elements)
        view.file_meta = self._file_meta
        return view


def _list_tags(dataset: Dataset) -> list[BaseTag]:
    """Return the tags of a dataset; iterating over the dataset itself would parse every element."""
    return list(dataset.keys())


def _overlay_group(elements: _Elements, group: Dataset) -> None:
    for tag in _UNASSIGNED:
        if tag in group:
            _copy_elements(elements, _parse_first_item(group, tag), private_only=False)
    for tag in _list_tags(group):
        if tag in _KEPT_WHOLE:
            elements[tag] = group.get_item(tag)
        private = tag.group in _PRIVATE_GROUPS and tag.elem > _LAST_CREATOR
        if private or tag in _MACROS:
            _copy_elements(elements, _parse_first_item(group, tag), private_only=private)


def _copy_elements(elements: _Elements, source: Dataset, *, private_only: bool) -> None:
    for tag in _list_tags(source):
        if tag.is_private or not private_only:
            elements[tag] = source.get_item(tag)
