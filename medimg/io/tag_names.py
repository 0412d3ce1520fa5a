"""Names of DICOM attributes: keywords, numbers, and private ones with their creator."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple, TypeAlias

from pydicom.datadict import keyword_dict, keyword_for_tag

from medimg._validation import did_you_mean
from medimg.errors import MedimgError, also

__all__ = ["KEYWORDS", "MODALITY", "AttributeName", "TagName", "TagValue", "TagValues", "parse_tag_names"]

#: All ways to name an attribute; see :meth:`medimg.Series.tags`.
AttributeName: TypeAlias = "str | int | tuple[int, int] | tuple[int, int, str]"
#: Value of an attribute; items of a sequence are pydicom datasets, and None is an absent or blank value.
TagValue: TypeAlias = "str | int | float | bytes | tuple[object, ...] | None"

#: Number of each keyword (PS3.6); retired attributes have none.
KEYWORDS: Final = {keyword: number for keyword, number in keyword_dict.items() if keyword}
MODALITY: Final = 0x00080060
_NUMBER: Final = re.compile(r"\(?(?:0x)?([0-9a-f]{4})(?:, ?(?:0x)?)?([0-9a-f]{4})\)?", re.IGNORECASE)
_PRIVATE: Final = re.compile(r"\(?([0-9a-f]{4}),? ?xx([0-9a-f]{2}), ?(.*[^\s)])\)?", re.IGNORECASE)
_FORMS: Final = (
    'a DICOM keyword such as "RepetitionTime", a number such as "0018,0080", 0x00180080 or (0x0018, 0x0080), '
    'or of a private attribute "0019,xx0c,CREATOR" or (0x0019, 0x0c, "CREATOR")'
)
#: Pixel data and what follows them are no part of a header.
_FIRST_AFTER_HEADER: Final = 0x7FE00001


class TagName(NamedTuple):
    """
    An attribute, named in a call.

    `label` is what it is called in tables; `number` its tag. If a private one is given with its `creator`,
    the last two digits of `number` are those of any block of this creator.
    """

    label: str
    number: int
    creator: str = ""


class TagValues(NamedTuple):
    """Values by label, and the labels of attributes that are present but invalid, whose value is None."""

    values: dict[str, TagValue]
    invalid: tuple[str, ...] = ()


def parse_tag_names(names: Iterable[object]) -> tuple[TagName, ...]:
    """
    Return the attributes of names in any form; raise a MedimgError for one that does not exist.

    >>> [f"{tag.label}: {tag.number:08x}" for tag in parse_tag_names(["KVP", "0018,0080", 0x00180060])]
    ['KVP: 00180060', '0018,0080: 00180080', 'KVP: 00180060']
    """
    if not isinstance(names, Iterable):
        raise also(MedimgError, TypeError)(
            f"tags must be a list of attributes; found a {type(names).__name__}; expected {_FORMS}"
        )
    return tuple(map(_parse_name, names))


def _parse_name(name: object) -> TagName:
    if isinstance(name, str):
        found = _parse_text(name)
    elif isinstance(name, int) and not isinstance(name, bool):
        found = _name_number(name)
    elif isinstance(name, tuple) and list(map(type, name)) in ([int, int], [int, int, str]):
        found = _parse_tuple(*name)
    else:
        raise also(MedimgError, TypeError)(
            f"an attribute can't be named by an object of type {type(name).__name__}; expected {_FORMS}"
        )
    if found.number >= _FIRST_AFTER_HEADER:
        raise also(MedimgError, ValueError)(
            f"{found.label} is not an attribute of the header; series.read() reads pixels, and "
            "pydicom.dcmread(series.path) the whole file"
        )
    return found


def _parse_text(name: str) -> TagName:
    if name in KEYWORDS:
        return TagName(name, KEYWORDS[name])
    match = _NUMBER.fullmatch(name)
    if match:
        return TagName(name, int(match[1] + match[2], 16))
    match = _PRIVATE.fullmatch(name)
    if match:
        return TagName(name, *_parse_private(int(match[1], 16), int(match[2], 16), match[3].strip("\"'")))
    raise also(MedimgError, KeyError)(
        f"there is no DICOM attribute {name!r}; expected {_FORMS}{did_you_mean(name, KEYWORDS)}"
    )


def _parse_tuple(group: int, element: int, creator: str = "") -> TagName:
    if not creator:
        return _name_number(group << 16 | element if 0 <= element <= 0xFFFF else -1)
    private = _parse_private(group, element, creator)
    return TagName(f"{group:04x},xx{element:02x},{creator}", *private)


def _parse_private(group: int, element: int, creator: str) -> tuple[int, str]:
    if not (0 < group <= 0xFFFF and group % 2) or not 0 <= element <= 0xFF:
        raise also(MedimgError, ValueError)(
            f"({group:04x},xx{element:02x}) can't be a private attribute, whose group is odd and which has "
            f"two digits within its block; expected {_FORMS}"
        )
    return group << 16 | element, creator


def _name_number(number: int) -> TagName:
    # group 0000 is of messages; in files it would be half of a tag
    if not 0xFFFF < number <= 0xFFFFFFFF:
        raise also(MedimgError, ValueError)(
            f"there is no DICOM attribute {number} in files; expected {_FORMS}"
        )
    return TagName(keyword_for_tag(number) or f"{number >> 16:04x},{number & 0xFFFF:04x}", int(number))
