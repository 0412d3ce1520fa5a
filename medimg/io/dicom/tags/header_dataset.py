"""The header of a file as a pydicom dataset that gives identifying attributes only by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from medimg.errors import DecodeError, MedimgError, ReadError, also
from medimg.io.dicom.header.attributes import get_identifier, quiet_pydicom
from medimg.io.dicom.header.element_values import InvalidValueError
from medimg.io.dicom.header.open import open_dataset, open_whole_header
from medimg.io.dicom.header.private_tags import is_no_sequence
from medimg.io.dicom.tags.identifying_attributes import is_identifying
from medimg.io.dicom.tags.tag_values import get_tag_value

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from medimg.io.dicom.header.instance import Instance

__all__ = ["HeaderDataset", "check_unchanged", "read_header", "withhold_identifying"]


class HeaderDataset(Dataset):
    """
    Header of one file, or an item of its sequences; pixels are read from the file when they are asked for.

    Attributes that can identify a patient are given by keyword or tag, and left out of all that goes through
    the elements: printing, iterating, JSON, saving.
    """

    def __str__(self) -> str:
        return "\n".join(filter(None, (super().__str__(), self._describe_withheld())))

    __repr__ = __str__

    def __getitem__(self, key: Any) -> Any:
        # a damaged element can raise anything, and texts of pydicom quote values
        try:
            with quiet_pydicom():
                return super().__getitem__(key)
        except (KeyError, MedimgError):
            raise
        except Exception:
            name = keyword_for_tag(Tag(key)) or str(Tag(key))
            raise also(DecodeError, ValueError)(
                f"{name} is present but can't be parsed; the file is damaged"
            ) from None

    def get_item(self, key: Any, *, keep_deferred: bool = False) -> Any:
        """Return an element as it was read, but sequences parsed: their bytes are those of all items."""
        found = super().get_item(key, keep_deferred=keep_deferred)
        return self[key] if isinstance(found, RawDataElement) and _is_sequence(found) else found

    def items(self) -> Any:
        """Return pairs of tags and elements."""
        self._parse_sequences()
        return super().items()

    def values(self) -> Any:
        """Return elements."""
        self._parse_sequences()
        return super().values()

    def _parse_sequences(self) -> None:
        for tag in self.keys():
            self.get_item(tag)

    def _describe_withheld(self) -> str:
        """Return a line with the names of what is left out."""
        withheld = self._dict.withheld if isinstance(self._dict, _Elements) else {}
        tags = sorted(tag for tag, element in withheld.items() if not callable(element))
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


class _Elements(dict[BaseTag, Any]):
    """Elements by tag; those that are withheld, or not read yet, are found by their tag but not listed."""

    def __init__(self, elements: Mapping[BaseTag, Any]) -> None:
        super().__init__()
        self.withheld: dict[BaseTag, Any] = {}
        for tag, element in elements.items():
            self[tag] = element

    def defer(self, tag: BaseTag, read: Callable[[], DataElement]) -> None:
        """Add an element that is read when it is first used."""
        self.withheld[tag] = read

    def withhold(self, tag: BaseTag) -> None:
        """Withhold an element, whatever its tag."""
        self.withheld[tag] = super().pop(tag)

    def __setitem__(self, tag: BaseTag, element: DataElement | RawDataElement) -> None:
        if isinstance(element, DataElement) and element.VR == "SQ":
            for item in element.value:
                withhold_identifying(item)
        if is_identifying(tag):
            self.withheld[tag] = element
        else:
            self.withheld.pop(tag, None)
            super().__setitem__(tag, element)

    def __getitem__(self, tag: BaseTag) -> Any:
        if tag not in self.withheld:
            return super().__getitem__(tag)
        if callable(self.withheld[tag]):
            self[tag] = self.withheld[tag]()
            return super().__getitem__(tag)
        return self.withheld[tag]

    def __contains__(self, tag: object) -> bool:
        return tag in self.withheld or super().__contains__(tag)

    def get(self, tag: BaseTag, default: Any = None) -> Any:
        """Return an element, withheld or not."""
        return self[tag] if tag in self.withheld else super().get(tag, default)

    def __delitem__(self, tag: BaseTag) -> None:
        if self.withheld.pop(tag, None) is None:
            super().__delitem__(tag)

    def pop(self, tag: BaseTag, *default: Any) -> Any:
        """Remove an element, and return it."""
        if tag not in self.withheld:
            return super().pop(tag, *default)
        found = self[tag]
        del self[tag]
        return found

    def clear(self) -> None:
        """Remove all elements."""
        super().clear()
        self.withheld.clear()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let copies and other processes have the withheld elements, too; not those that are not read yet."""
        read = {tag: element for tag, element in self.withheld.items() if not callable(element)}
        return type(self), ({**self, **read},)


def _is_sequence(element: RawDataElement) -> bool:
    """Whether an element that is not parsed yet is a sequence, stated or by the dictionary."""
    if element.VR not in (None, "UN"):
        return element.VR == "SQ"
    try:
        return dictionary_VR(element.tag) == "SQ"
    except KeyError:
        return False


def withhold_identifying(dataset: Dataset) -> None:
    """Make a :class:`HeaderDataset` of a dataset, which may be an item of a sequence."""
    if isinstance(dataset._dict, _Elements):
        return
    dataset.__class__ = HeaderDataset
    elements = dataset._dict = _Elements(dataset._dict)
    for tag, element in list(elements.items()):
        # damaged values, and bytes of unknown meaning, can hold anything
        if not _is_sound(dataset, tag, element):
            elements.withhold(tag)


def _is_sound(dataset: Dataset, tag: BaseTag, element: DataElement | RawDataElement) -> bool:
    """Whether a value has a known representation and is valid; sequences are parsed when they are used."""
    if isinstance(element, RawDataElement) and _is_sequence(element):
        return not is_no_sequence(dataset, tag)
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
    header = Dataset(found._dict)
    implicit, little = found.original_encoding
    header.set_original_encoding(implicit, little, found.original_character_set)
    header.file_meta = found.file_meta
    withhold_identifying(header)
    header.file_meta._dict = _Elements(header.file_meta._dict)
    if pixels is not None and isinstance(header._dict, _Elements):
        header._dict.defer(pixels, lambda: open_dataset(instance.blob)[pixels])
    return header


def check_unchanged(header: Dataset, instance: Instance) -> None:
    """Raise ReadError if a file holds another instance than when it was scanned."""
    if get_identifier(header, "SOPInstanceUID") != instance.sop_instance_uid:
        raise ReadError(f"{instance.path} has changed since it was scanned; scan again")
