"""
Offsets of the elements of the items of a sequence, found by their lengths and delimiters without parsing.

Only usual sequences are walked, as pydicom reads them; pydicom reads all others. Long ones are walked by the
compiled library, if there is one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias, TypeVar, cast, overload

from pydicom.dataelem import RawDataElement, empty_value_for_VR

from medimg._native.headers import ItemWalk, WalkedItems
from medimg._native.library import load_library
from medimg.io.dicom.header.element_values import intern_tag
from medimg.io.dicom.header.elements import LONG_VRS, SHORT_VRS, UNDEFINED_LENGTH, UnusualHeaderError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pydicom.tag import BaseTag

__all__ = [
    "Item",
    "ItemElement",
    "OnlyItem",
    "RawItem",
    "build_raw_elements",
    "find_sequence_end",
    "locate_items",
    "read_only_item",
]

T = TypeVar("T")

#: Elements of an item, unparsed, in the order of the file.
RawItem: TypeAlias = "dict[BaseTag, RawDataElement]"

_EXPLICIT_ELEMENT: Final = struct.Struct("<HH2sH").unpack_from
_IMPLICIT_ELEMENT: Final = struct.Struct("<HHI").unpack_from
_LENGTH: Final = struct.Struct("<I").unpack_from
#: Makes a named tuple in a third of the time.
_make_tuple: Final = tuple.__new__
#: VR as pydicom names it; None if implicit.
_NAMES: Final = {vr: vr.decode() or None for vr in (*SHORT_VRS, *LONG_VRS, b"")}
#: VR by its letters as a number.
_VRS: Final = {int.from_bytes(vr, "little"): vr for vr in _NAMES}
_CHARACTER_SET: Final = 0x00080005
_ITEM: Final = 0xFFFEE000
_ITEM_GROUP: Final = _ITEM >> 16
_ITEM_DELIMITER: Final = b"\xfe\xff\x0d\xe0\0\0\0\0"
_SEQUENCE_END: Final = 0xFFFEE0DD
_MAX_DEPTH: Final = 16
#: Elements and items of a sequence; one with more needs the bounded parser.
_MAX_LOCATED: Final = 2**21
#: Bytes of a sequence from which on the compiled library is faster.
_LONG: Final = 2**12


class ItemElement(NamedTuple):
    """Offsets of an element of an item, in the bytes of the sequence."""

    tag: int
    vr: bytes  # empty if implicit
    length: int  # UNDEFINED_LENGTH if it has none
    value: int
    end: int  # of its value, without a delimiter


#: Elements of one item.
Item: TypeAlias = tuple[ItemElement, ...]


def locate_items(data: bytes, *, implicit: bool) -> Sequence[Item]:
    """
    Return the elements of each item of a sequence as pydicom finds them; UnusualHeaderError if unusual.

    Sequences of undefined length within an item are walked to their end, and left unparsed, too.
    """
    compiled = _make_compiled_walk(data, implicit=implicit) if len(data) >= _LONG else None
    if compiled is not None:
        return _LocatedItems(_check(compiled.locate()))
    walk = _PlainItemWalk(data, implicit=implicit)
    items: list[Item] = []
    if walk.run(0, len(data), items) != len(data):
        raise UnusualHeaderError
    return items


def find_sequence_end(data: bytes, *, implicit: bool) -> int:
    """
    Return the offset behind the delimiter of a sequence of undefined length, given from its first item on.

    UnusualHeaderError is raised if the sequence is unusual, or has no end in these bytes.
    """
    compiled = _make_compiled_walk(data, implicit=implicit)
    if compiled is not None:
        return _check(compiled.find_end())
    return _PlainItemWalk(data, implicit=implicit).run(0, None, [])


def build_raw_elements(data: bytes, item: Iterable[ItemElement], *, implicit: bool) -> RawItem:
    """Return the elements of an item as pydicom reads them, unparsed."""
    found = {}
    for number, vr, length, value, end in item:
        tag = intern_tag(number)
        stored = data[value:end] if length else _find_empty(vr)
        raw = (tag, _NAMES[vr], length, stored, value, implicit, True, True, False)
        found[tag] = _make_tuple(RawDataElement, raw)
    return found


class OnlyItem(NamedTuple):
    """The only item of a sequence."""

    data: bytes  # of the sequence
    item: Item
    elements: RawItem

    def reread(self, data: bytes) -> OnlyItem | None:
        """Return that of a sequence which differs in values of elements alone; None for any other one."""
        if len(data) != len(self.data) or len(self.item) != len(self.elements):
            return None
        found, at = {}, 0
        for (tag, raw), (_, _, length, value, end) in zip(self.elements.items(), self.item, strict=True):
            if data[at:value] != self.data[at:value]:
                return None
            stored = data[value:end]
            is_same = stored == self.data[value:end]
            found[tag] = raw if is_same else _make_tuple(RawDataElement, (*raw[:3], stored, *raw[4:]))
            # the items of a sequence of undefined length have to be the same
            at = value if length == UNDEFINED_LENGTH else end
        return OnlyItem(data, self.item, found) if data[at:] == self.data[at:] else None


def read_only_item(data: bytes, *, implicit: bool) -> OnlyItem | None:
    """Return the only item of a sequence; None if it is unusual, or one of several."""
    try:
        items = locate_items(data, implicit=implicit)
    except UnusualHeaderError:
        return None
    if len(items) != 1:
        return None
    return OnlyItem(data, items[0], build_raw_elements(data, items[0], implicit=implicit))


@cache
def _find_empty(vr: bytes) -> bytes | None:
    return cast("bytes | None", empty_value_for_VR(_NAMES[vr], raw=True))


def _make_compiled_walk(data: bytes, *, implicit: bool) -> ItemWalk | None:
    library = load_library()
    if library is None:
        return None
    return ItemWalk(library, data, implicit=implicit, most=_MAX_LOCATED, max_depth=_MAX_DEPTH)


def _check(walked: T | Literal["unusual", "ends"]) -> T:
    if isinstance(walked, str):
        raise UnusualHeaderError(ends=walked == "ends")
    return walked


class _LocatedItems(Sequence[Item]):
    """The items that the compiled library has found."""

    def __init__(self, walked: WalkedItems) -> None:
        self._elements = walked.elements
        self._bounds = [0, *walked.ends.tolist()]

    def __len__(self) -> int:
        return len(self._bounds) - 1

    @overload
    def __getitem__(self, number: int) -> Item: ...
    @overload
    def __getitem__(self, number: slice) -> list[Item]: ...
    def __getitem__(self, number: int | slice) -> Item | list[Item]:
        """Return an item, or some of them."""
        if isinstance(number, slice):
            return [self[n] for n in range(len(self))[number]]
        number = range(len(self))[number]
        rows = self._elements[self._bounds[number] : self._bounds[number + 1]].tolist()
        return tuple(
            [
                _make_tuple(ItemElement, (tag, _VRS[vr], length, value, end))
                for tag, vr, length, value, end in rows
            ]
        )


class _PlainItemWalk:
    """A walk without the compiled library."""

    def __init__(self, data: bytes, *, implicit: bool) -> None:
        self._data = data
        self._implicit = implicit
        self._left = _MAX_LOCATED

    def run(self, at: int, end: int | None, items: list[Item]) -> int:
        """Append the items up to an offset, None: up to the delimiter, and return the offset behind them."""
        try:
            return self._locate_items(at, end, items, 0)
        except struct.error:
            raise UnusualHeaderError(ends=True) from None

    def _locate_items(self, at: int, end: int | None, items: list[Item], depth: int) -> int:
        while at != end:
            group, number, length = _IMPLICIT_ELEMENT(self._data, at)
            tag = group << 16 | number
            at += 8
            if tag == _SEQUENCE_END and length == 0 and end is None:
                break
            if tag != _ITEM or depth > _MAX_DEPTH:
                raise UnusualHeaderError
            item: list[ItemElement] = []
            at = self._locate_elements(at, None if length == UNDEFINED_LENGTH else at + length, item, depth)
            items.append(tuple(item))
            self._left -= 1 + len(item)
            if self._left < 0:
                raise UnusualHeaderError
        return at

    def _locate_elements(self, at: int, end: int | None, item: list[ItemElement], depth: int) -> int:
        """Append the elements up to an offset, None: up to the delimiter, and return the offset behind."""
        data, implicit = self._data, self._implicit
        limit = len(data) if end is None else end
        vr = b""
        while at != end:
            value = at + 8
            if implicit:
                group, number, length = _IMPLICIT_ELEMENT(data, at)
            else:
                group, number, vr, length = _EXPLICIT_ELEMENT(data, at)
                if vr in LONG_VRS:
                    length = _LENGTH(data, value)[0]
                    value += 4
            if group == _ITEM_GROUP or (vr not in _NAMES):
                if end is None and data[at:value] == _ITEM_DELIMITER:
                    return value
                raise UnusualHeaderError
            tag = group << 16 | number
            if tag == _CHARACTER_SET:
                raise UnusualHeaderError
            if length == UNDEFINED_LENGTH:
                at = self._skip_items(value, vr, depth + 1)
                stop = at - 8
            else:
                at = stop = value + length
            if at > limit:
                raise UnusualHeaderError(ends=end is None)
            item.append(_make_tuple(ItemElement, (tag, vr, length, value, stop)))
            if len(item) >= self._left:
                raise UnusualHeaderError
        return at

    def _skip_items(self, at: int, vr: bytes, depth: int) -> int:
        """Return the offset behind a sequence of undefined length that is not empty."""
        items: list[Item] = []
        if vr not in (b"SQ", b""):
            raise UnusualHeaderError
        end = self._locate_items(at, None, items, depth)
        if not items:
            raise UnusualHeaderError
        return end
