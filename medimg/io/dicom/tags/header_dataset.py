"""The header of a file as a pydicom dataset that gives identifying attributes only by name."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag

from medimg.errors import DecodeError, MedimgError, ReadError, also
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.element_values import InvalidValueError
from medimg.io.dicom.header.open import open_dataset, open_whole_header
from medimg.io.dicom.tags.identifying_attributes import is_identifying
from medimg.io.dicom.tags.tag_values import get_tag_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from medimg.io.dicom.header.instance import Instance

__all__ = ["HeaderDataset", "check_unchanged", "read_header"]


class _Whole:
    """All elements of a header, and how those that are not read yet are read; shown nowhere."""

    def __init__(self, dataset: Dataset, unread: dict[BaseTag, Callable[[], Any]]) -> None:
        self.dataset = dataset
        self.unread = unread


class HeaderDataset(Dataset):
    """
    Header of one file, or an item of its sequences; pixels are read from the file when they are asked for.

    The elements of the dataset itself are those that identify nobody, so that nothing else is printed,
    iterated or saved; access by keyword or tag goes to the whole header.
    """

    def __init__(self, whole: Dataset) -> None:
        super().__init__()
        self._whole = _Whole(whole, {})
        _copy_encoding(whole, self)
        for tag in list(whole.keys()):
            # damaged values, and bytes of unknown meaning, can hold anything
            if not is_identifying(tag) and _is_sound(whole, tag):
                super().__setitem__(tag, self[tag])

    def defer(self, tag: BaseTag, read: Callable[[], Any]) -> None:
        """Add an element that is read when it is first used."""
        self._whole.unread[tag] = read

    def __str__(self) -> str:
        return "\n".join(filter(None, (super().__str__(), self._describe_withheld())))

    __repr__ = __str__

    def _describe_withheld(self) -> str:
        """Return a line with the names of what is left out."""
        tags = sorted(self._whole.dataset.keys() - self.keys())
        private = sum(tag.is_private for tag in tags)
        names = [
            keyword_for_tag(tag) or f"({tag >> 16:04x},{tag & 0xFFFF:04x})"
            for tag in tags
            if not tag.is_private
        ]
        names += [f"{private} private"] if private else []
        if not names:
            return ""
        return f"withheld, since they can identify a patient, unless named: {', '.join(names)}"

    def __contains__(self, name: Any) -> bool:
        return name in self._whole.dataset or _to_tag(name) in self._whole.unread

    def __getattr__(self, name: str) -> Any:
        tag = tag_for_keyword(name)
        return super().__getattr__(name) if tag is None or tag not in self else self[tag].value

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return super().__getitem__(key)
        tag = _to_tag(key)
        if tag in self._whole.unread:
            self[tag] = self._whole.unread[tag]()
        # a damaged element can raise anything, and texts of pydicom quote values
        try:
            with quiet_pydicom():
                element = self._whole.dataset[key]
                if isinstance(element.value, Sequence):
                    for number, item in enumerate(element.value):
                        if not isinstance(item, HeaderDataset):
                            element.value[number] = HeaderDataset(item)
                return element
        except (KeyError, MedimgError):
            raise
        except Exception:
            name = keyword_for_tag(Tag(key)) or str(Tag(key))
            raise also(DecodeError, ValueError)(
                f"{name} is present but can't be parsed; the file is damaged"
            ) from None

    def get_item(self, key: Any, *, keep_deferred: bool = False) -> Any:
        """Return an element, or None."""
        return self[key] if isinstance(key, slice) or key in self else None

    def __setitem__(self, key: Any, element: Any) -> None:
        self._whole.dataset[key] = element
        self._whole.unread.pop(Tag(key), None)
        if not is_identifying(Tag(key)):
            super().__setitem__(key, self[key])

    def __delitem__(self, key: Any) -> None:
        for tag in list(self[key].keys()) if isinstance(key, slice) else [key]:
            if self._whole.unread.pop(Tag(tag), None) is None:
                del self._whole.dataset[tag]
            if Tag(tag) in self.keys():
                super().__delitem__(tag)

    def __delattr__(self, name: str) -> None:
        tag = tag_for_keyword(name)
        if tag is not None and tag in self:
            del self[tag]
        else:
            super().__delattr__(name)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove an element, and return it."""
        if key not in self and default:
            return default[0]
        found = self[key]
        del self[key]
        return found

    def popitem(self) -> tuple[BaseTag, Any]:
        """Remove the last listed element, and return it with its tag."""
        tag = list(self.keys())[-1]
        return tag, self.pop(tag)

    def clear(self) -> None:
        """Remove all elements."""
        super().clear()
        self._whole.dataset.clear()
        self._whole.unread.clear()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeaderDataset):
            return super().__eq__(other)
        tags = self._whole.dataset.keys()
        return tags == other._whole.dataset.keys() and all(self[tag] == other[tag] for tag in tags)

    __hash__ = None  # type: ignore[assignment]  # as datasets, which can change

    def __copy__(self) -> HeaderDataset:
        return self._copy(lambda value: value)

    def __deepcopy__(self, memo: dict[int, Any]) -> HeaderDataset:
        return self._copy(lambda value: copy.deepcopy(value, memo), memo)

    def _copy(self, copy_value: Callable[[Any], Any], memo: dict[int, Any] | None = None) -> HeaderDataset:
        copied = type(self).__new__(type(self))
        if memo is not None:
            memo[id(self)] = copied
        copied.__dict__.update({name: copy_value(value) for name, value in self.__dict__.items()})
        return copied

    def __reduce__(self) -> Any:
        """Pickle what is listed, as an ordinary dataset."""
        listed = (FileMetaDataset if isinstance(self, FileMetaDataset) else Dataset)(dict(self.items()))
        _copy_encoding(self, listed)
        if hasattr(self, "file_meta"):
            listed.file_meta = self.file_meta
        return _unpickle, (listed,)


class _FileMeta(HeaderDataset, FileMetaDataset):
    """File meta information."""


def _copy_encoding(source: Dataset, target: Dataset) -> None:
    implicit, little = source.original_encoding
    target.set_original_encoding(implicit, little, source.original_character_set)


def _unpickle(dataset: Dataset) -> Dataset:
    return dataset


def _to_tag(key: Any) -> BaseTag | None:
    """Return the tag of a keyword, number or pair; None if it is none, about which pydicom complains."""
    try:
        return Tag(key)
    except (TypeError, ValueError, OverflowError):
        return None


def _is_sound(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether a value has a known representation and is valid."""
    try:
        with quiet_pydicom():
            get_tag_value(dataset, tag)
            return dataset[tag].VR != "UN"
    except (InvalidValueError, MedimgError):
        return False


def read_header(instance: Instance) -> Dataset:
    """Read the header of a file; raise ReadError if it can no longer be read, or has changed."""
    found, pixels = open_whole_header(instance.blob)
    check_unchanged(found, instance)
    # not of the file: that would be read and copied
    whole = Dataset(found)
    _copy_encoding(found, whole)
    header = HeaderDataset(whole)
    header.file_meta = _FileMeta(found.file_meta)
    if pixels is not None:
        header.defer(pixels, lambda: open_dataset(instance.blob)[pixels])
    return header


def check_unchanged(header: Dataset, instance: Instance) -> None:
    """Raise ReadError if a file holds another instance than when it was scanned."""
    if get_identifier(header, "SOPInstanceUID") != instance.sop_instance_uid:
        raise ReadError(f"{instance.path} has changed since it was scanned; scan again")
