"""Walks of headers in memory, compiled and plain, against the elements one by one."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg._native.library import load_library
from medimg.io.dicom.header.elements import UnusualHeaderError
from medimg.io.dicom.header.image_pixel import FrameFormat
from medimg.io.dicom.pixels._frames import interpret_bits
from medimg.io.dicom.pixels._header_walk import (
    CompiledHeaderWalker,
    Header,
    HeaderWalker,
    PlainHeaderWalker,
)
from medimg.io.dicom.pixels._single_frame_reader import list_value_tags
from tests.dicom_files import make_instance, write
from tests.io.dicom.kinds import of_each_folder
from tests.io.dicom.plain_walk import plain_walk
from tests.sampling import SLOW


def plainly(head: bytes) -> Header | None:
    """The reference: elements one by one; None where there are many frames."""
    outline, tags = plain_walk(head), list_value_tags("auto")
    top = outline.elements
    if {e.tag for e in top} & {0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002}:
        return None
    ends = [*(e.at for e in top[1:]), outline.pixels.at]
    parts = {e.tag: head[e.at : end] for e, end in zip(top, ends, strict=True)}
    uid = next((head[e.value : e.value + e.length] for e in top if e.tag == 0x00080018), b"")
    wanted = b"".join(part for tag, part in parts.items() if tag in tags)
    return Header(outline.pixels, outline.syntax, uid.rstrip(b"\0 "), wanted)


def walked(walker: HeaderWalker, head: bytes) -> Header | None:
    try:
        return walker.read_header(head)
    except UnusualHeaderError:
        return None


def make_walkers() -> list[HeaderWalker]:
    tags, library = list_value_tags("auto"), load_library()
    plain = PlainHeaderWalker(tags)
    return [plain] if library is None else [plain, CompiledHeaderWalker(library, tags)]


def test_real_headers(real_data: Path) -> None:
    walkers, usual = make_walkers(), 0
    for path in (p for p in of_each_folder(real_data) if p.stat().st_size < 2**22):
        head = path.read_bytes()
        try:
            expected = plainly(head)
        except UnusualHeaderError:
            expected = None
        assert [walked(walker, head) for walker in walkers] == [expected] * len(walkers), path
        usual += expected is not None
    assert usual > (1000 if SLOW else 300)


EXPLICIT: Final = b"1.2.840.10008.1.2.1\0"
RLE: Final = b"1.2.840.10008.1.2.5\0"
IMPLICIT: Final = b"1.2.840.10008.1.2\0"
#: Tag, representation, and values: those of wanted elements, of the UID, and of others, usual ones first.
ELEMENTS: Final[list[tuple[int, bytes, list[bytes]]]] = [
    (0x00020000, b"UL", [b"\x40\0\0\0", b"\x42\0\0\0"]),
    (0x00020003, b"UI", [b"1.2.3\0", b"1.2.45", b"1.2.4567"]),
    (0x00020010, b"UI", [EXPLICIT, RLE]),
    (0x00080005, b"CS", [b"ISO_IR 100", b"ISO_IR 192", b""]),
    (0x00080008, b"CS", [b"ORIGINAL\\PRIMARY", b"DERIVED\\PRIMARY\\X "]),
    (0x00080018, b"UI", [b"1.2.3\0", b"1.2.45", b"1.2.4567"]),
    (0x00081140, b"SQ", [b"", b"\xfe\xff\x00\xe0\x00\x00\x00\x00"]),
    (0x00091001, b"UN", [b"abcd", b"x" * 300, b""]),
    (0x00100010, b"PN", [b"DOE^JO", b"DOE^JOAN"]),
    (0x00180050, b"DS", [b"5 ", b"2.5 "]),
    (0x00200032, b"DS", [b"0\\0\\1 ", b"0\\0\\2 ", b"0\\0\\2.25"]),
    (0x00280010, b"US", [b"\4\0"]),
    (0x00280100, b"US", [b"\x10\0", b"\x08\0"]),
    (0x00281052, b"DS", [b"-1024 ", b"0 "]),
    (0x00281053, b"DS", [b"1 ", b"0.25", b""]),
    (0x00282000, b"OB", [b"profile ", b"no"]),
    (0x00400275, b"SQ", [b""]),
    (0x7FE00010, b"OW", [b"\0" * 8]),
]
#: An item with an element, without lengths.
ITEM: Final = bytes.fromhex("feff00e0ffffffff 08005011 55490200 3100 feff0de000000000 feffdde000000000")
PLAIN_ITEM: Final = bytes.fromhex("feff00e0ffffffff 08005011 02000000 3100 feff0de000000000 feffdde000000000")


def element(tag: int, vr: bytes, value: bytes, *, is_implicit: bool) -> bytes:
    """An element; sequences that end in numbers are of no given length."""
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    length = 0xFFFFFFFF if value in (ITEM, PLAIN_ITEM) else len(value)
    if is_implicit and tag >> 16 != 2:
        return start + struct.pack("<I", length) + value
    if vr in (b"OB", b"OW", b"SQ", b"UN"):
        return start + vr + b"\0\0" + struct.pack("<I", length) + value
    return start + vr + struct.pack("<H", length) + value


@st.composite
def headers(draw: st.DrawFn) -> list[bytes]:
    """Headers of which many repeat the one before, but for some values, some elements, or damage."""
    is_implicit, has_items = draw(st.booleans()), draw(st.booleans())
    items = PLAIN_ITEM if is_implicit else ITEM
    vary = draw(st.sets(st.sampled_from([tag for tag, _, values in ELEMENTS if len(values) > 1])))
    made = []
    for number in range(draw(st.integers(3, 12))):
        dropped = draw(st.sampled_from([0] * 6 + [tag for tag, _, _ in ELEMENTS]))
        parts = []
        for tag, vr, values in ELEMENTS:
            value = draw(st.sampled_from(values)) if tag in vary else values[0]
            if tag == 0x00020010 and is_implicit:
                value = IMPLICIT
            if tag == 0x00400275 and has_items:
                value = items if number % 5 else items.replace(b"\x31\0", b"\x32\0")
            if tag != dropped:
                parts.append(element(tag, vr, value, is_implicit=is_implicit))
        head = bytearray(bytes([number]) * 128 + b"DICM" + b"".join(parts))
        if draw(st.integers(0, 4)) == 0:
            head[draw(st.integers(128, len(head) - 1))] = draw(st.integers(0, 255))
        made.append(bytes(head if draw(st.integers(0, 4)) else head[: draw(st.integers(0, len(head)))]))
    return made


@settings(deadline=None, max_examples=400 if SLOW else 100)
@given(heads=headers())
def test_generated_headers(heads: list[bytes]) -> None:
    walkers = make_walkers()
    for head in heads:
        try:
            expected = plainly(head)
        except UnusualHeaderError:
            expected = None
        assert [walked(walker, head) for walker in walkers] == [expected] * len(walkers)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "a.dcm"
    return write(make_instance(np.zeros((4, 4), np.uint16)), path).read_bytes()


@settings(deadline=None, max_examples=300 if SLOW else 200)
@given(at=st.integers(132, 900), value=st.integers(0, 255), cut=st.integers(0, 1100))
def test_damaged_headers(sound: bytes, at: int, value: int, cut: int) -> None:
    data = bytearray(sound)
    data[at % len(data)] = value
    walkers = make_walkers()
    for head in (bytes(data), bytes(data[:cut])):
        try:
            expected = plainly(head)
        except UnusualHeaderError:
            expected = None
        assert [walked(walker, head) for walker in walkers] == [expected] * len(walkers)


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_bits_of_values_in_their_cells(data: st.DataObject) -> None:
    allocated = data.draw(st.sampled_from([8, 16, 32]))
    stored = data.draw(st.integers(1, allocated))
    high = data.draw(st.integers(stored - 1, allocated - 1))
    signed = data.draw(st.booleans())
    form = FrameFormat(3, 5, 1, allocated, stored, high, signed, "MONOCHROME2", planar=False)
    cells = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 2**allocated, (3, 5))
    expected = (cells >> (high + 1 - stored)) & (2**stored - 1)
    if signed:
        expected = np.where(expected >> (stored - 1), expected - 2**stored, expected)
    here = cells.astype(f"u{allocated // 8}")
    found = interpret_bits(here, form)
    assert found.dtype == form.dtype
    assert np.shares_memory(found, here)
    assert np.array_equal(found, expected)
