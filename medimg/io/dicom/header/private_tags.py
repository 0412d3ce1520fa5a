"""
Checked access to private elements of a DICOM dataset.

Private elements are in a block of a group that the file itself assigns: (gggg,00bb) holds the creator, and
its elements are (gggg,bbee) (PS3.5 7.8.1). They are therefore looked up by group, creator and the last two
digits. If the value representation was lost (UN), a value is decoded by the one that its manufacturer
documents.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pydicom.dataelem import RawDataElement
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence as DicomSequence
from pydicom.valuerep import IS, DSdecimal, DSfloat
from pydicom.values import convert_SQ

from medimg.io.dicom.header.element_values import is_padding, note_finding, parse_decimal

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

__all__ = [
    "PrivateTag",
    "find_private_number",
    "get_private_bytes",
    "get_private_codes",
    "get_private_floats",
    "get_private_integer",
    "get_private_items",
    "get_private_text",
    "has_private",
    "is_no_sequence",
    "is_private_empty",
    "list_private_tags",
    "to_items",
]

_FIRST_BLOCK: Final = 0x10
_LAST_BLOCK: Final = 0xFF
#: Blocks that a header-only read includes: writers assign them upwards from the first.
_USUAL_BLOCKS: Final = range(_FIRST_BLOCK, 0x20)
_BINARY: Final = {"FL": "f", "FD": "d", "US": "H", "SS": "h", "UL": "I", "SL": "i"}
_MAX_VALUES: Final = 4096
_MAX_SEQUENCE_BYTES: Final = 2**26
#: Tag of an item (PS3.5 7.5), little and big endian.
_ITEM_TAGS: Final = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")


class PrivateTag(NamedTuple):
    """Group, last two digits, creator (case-insensitive) and value representation of a private element."""

    group: int
    element: int
    creator: str
    vr: str


def list_private_tags(*elements: PrivateTag) -> list[int]:
    """
    Return all tags that private elements and their creators can have in the first 16 blocks.

    No file with more blocks has been seen.
    """
    creators = {tag.group << 16 | block for tag in elements for block in _USUAL_BLOCKS}
    wanted = {tag.group << 16 | block << 8 | tag.element for tag in elements for block in _USUAL_BLOCKS}
    return sorted(creators | wanted)


def _normalize_creator(creator: object) -> str:
    words = creator.decode("latin-1") if isinstance(creator, bytes) else str(creator)
    return " ".join(words.strip(" \0").upper().split())


def find_private_number(dataset: Dataset, tag: PrivateTag) -> int | None:
    """Return the tag of a private element; None if it or its creator is absent."""
    first, last = tag.group << 16 | _FIRST_BLOCK, tag.group << 16 | _LAST_BLOCK
    # pydicom's tags are compared much more slowly than numbers
    there = list(map(int, dataset.keys()))
    owners = [number for number in there if first <= number <= last]
    if not owners:
        return None
    wanted = _normalize_creator(tag.creator)
    for owner in sorted(owners):
        number = owner & 0xFFFF0000 | (owner & 0xFF) << 8 | tag.element
        if number in there and _normalize_creator(_get_value(dataset, owner)) == wanted:
            return number
    return None


def _get_value(dataset: Dataset, number: int) -> Any:
    try:
        return dataset[number].value
    # a value is parsed when it is first used, and a damaged one can raise anything
    except Exception:
        return None


def _get_private_value(dataset: Dataset, tag: PrivateTag) -> Any:
    number = find_private_number(dataset, tag)
    return None if number is None else _get_value(dataset, number)


def has_private(dataset: Dataset, tag: PrivateTag) -> bool:
    """Whether a private element is present, readable or not, empty or not."""
    return find_private_number(dataset, tag) is not None


def is_private_empty(dataset: Dataset, tag: PrivateTag) -> bool:
    """Whether a private element is absent or empty."""
    number = find_private_number(dataset, tag)
    element = None if number is None else dataset.get_item(number)
    return element is None or element.value in (None, b"", "")


def get_private_bytes(dataset: Dataset, tag: PrivateTag) -> bytes | None:
    """Return the bytes of a private element; None if it is absent, empty or of another type."""
    found = _get_private_value(dataset, tag)
    return found if isinstance(found, bytes) and found else None


def _get_texts(dataset: Dataset, tag: PrivateTag) -> list[str]:
    found = _get_private_value(dataset, tag)
    if isinstance(found, bytes):
        found = found.decode("latin-1").split("\\")
    # items are no text, and a sequence is a list, too
    if isinstance(found, DicomSequence):
        return []
    several = isinstance(found, MultiValue | list | tuple)
    return [] if found is None else [str(v).strip(" \0") for v in (found if several else [found])]


def get_private_text(dataset: Dataset, tag: PrivateTag) -> str:
    """Return the first value as text, unchecked and so not for messages; "" if there is none."""
    found = _get_texts(dataset, tag)
    return found[0] if found else ""


def get_private_codes(dataset: Dataset, tag: PrivateTag) -> tuple[str, ...]:
    """Return all values in upper case, unchecked and so not for messages."""
    return tuple(v.upper() for v in _get_texts(dataset, tag))


def _describe_tag(tag: PrivateTag) -> str:
    return f"the private attribute ({tag.group:04x},xx{tag.element:02x}) of {tag.creator}"


def get_private_floats(
    dataset: Dataset, tag: PrivateTag, count: int | None = None
) -> tuple[float, ...] | None:
    """Return finite numbers; None if absent or, noted, malformed or not `count` of them."""
    found = _get_private_value(dataset, tag)
    if found is None or (is_padding(found) and tag.vr not in _BINARY):
        return None
    try:
        numbers = _parse_value(found, tag.vr)
        usable = bool(numbers) and count in {None, len(numbers)} and all(map(math.isfinite, numbers))
    except (TypeError, ValueError, OverflowError, struct.error):
        usable = False
    if usable:
        return numbers
    if found not in ("", b""):
        note_finding(
            f"{_describe_tag(tag)} is present but is not {'' if count is None else f'{count} '}finite "
            "number(s); it is not used"
        )
    return None


def _parse_value(found: Any, vr: str) -> tuple[float, ...]:
    if isinstance(found, bytes):
        return _parse_bytes(found, vr)
    several = isinstance(found, MultiValue | list | tuple)
    return tuple(_parse_single(v) for v in (found if several else [found]))


def _parse_single(value: Any) -> float:
    """Return a number, of text only if it is a decimal string; raise ValueError otherwise."""
    if not isinstance(value, str | IS | DSfloat | DSdecimal):
        return float(value)
    number = parse_decimal(str(value))
    if number is None:
        raise ValueError
    return number


def _parse_bytes(found: bytes, vr: str) -> tuple[float, ...]:
    """Return numbers from a value of unknown representation, which is little endian (PS3.5 6.2.2)."""
    if vr not in _BINARY:
        return tuple(_parse_single(v) for v in found.decode("ascii").strip(" \0").split("\\"))
    letter = _BINARY[vr]
    count = min(len(found) // struct.calcsize("<" + letter), _MAX_VALUES)
    return tuple(float(v) for v in struct.unpack_from(f"<{count}{letter}", found))


def get_private_integer(dataset: Dataset, tag: PrivateTag) -> int | None:
    """Return an integer; None if it is absent or, noted, malformed."""
    numbers = get_private_floats(dataset, tag)
    if numbers is None or numbers[0].is_integer():
        return None if numbers is None else int(numbers[0])
    note_finding(f"{_describe_tag(tag)} is present but is not a whole number; it is not used")
    return None


def get_private_items(dataset: Dataset, tag: PrivateTag) -> list[Dataset]:
    """Return the items of a private sequence, also of one stored as bytes; an empty list if it is damaged."""
    return to_items(_get_private_value(dataset, tag))


def is_no_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element has bytes that don't start with an item; pydicom makes an empty one of them."""
    element: Any = dataset.get_item(tag)
    value = element.value if isinstance(element, RawDataElement) else None
    return isinstance(value, bytes) and bool(value) and not value.startswith(_ITEM_TAGS)


def to_items(found: Any) -> list[Dataset]:
    """Return the items of a value that is a sequence, or was one before its representation was lost."""
    if isinstance(found, bytes) and len(found) <= _MAX_SEQUENCE_BYTES and found.startswith(_ITEM_TAGS):
        try:
            found = convert_SQ(found, is_implicit_VR=True, is_little_endian=True)
        # bytes that are no sequence raise anything
        except Exception:
            return []
    return list(found) if isinstance(found, DicomSequence) else []
