"""A walk that looks elements up comes to what a walk that takes each apart comes to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg.io.dicom.form import FrameFormat
from medimg.io.dicom.frames import interpret_bits
from medimg.io.dicom.outline import UnusualHeaderError, outline_of
from medimg.io.dicom.siblings import read_tags
from medimg.io.dicom.walking import Header, Walker
from tests.dicom_files import make_instance, write


def plainly(head: bytes) -> Header | None:
    """The reference: elements of the outline; None where there are many frames."""
    outline, tags = outline_of(head), read_tags("auto")
    top = [e for e in outline.elements if e.depth == 0]
    if {e.tag for e in top} & {0x52009229, 0x52009230, 0x7FE00001, 0x7FE00002}:
        return None
    ends = [*(e.at for e in top[1:]), outline.pixels.at]
    parts = {e.tag: head[e.at : end] for e, end in zip(top, ends, strict=True)}
    uid = next((head[e.value : e.value + e.length] for e in top if e.tag == 0x00080018), b"")
    wanted = b"".join(part for tag, part in parts.items() if tag in tags)
    return Header(outline.pixels, outline.syntax, uid.rstrip(b"\0 "), wanted)


def walked(walker: Walker, head: bytes) -> Header | None:
    try:
        return walker.header_of(head)
    except UnusualHeaderError:
        return None


def test_real_headers(real_data: Path) -> None:
    walker, usual = Walker(read_tags("auto")), 0
    for path in sorted(p for p in real_data.rglob("*") if p.is_file() and p.stat().st_size < 2**22):
        head = path.read_bytes()
        try:
            expected = plainly(head)
        except UnusualHeaderError:
            expected = None
        assert walked(walker, head) == expected, path
        usual += expected is not None
    assert usual > 300


@settings(deadline=None, max_examples=300)
@given(at=st.integers(132, 900), value=st.integers(0, 255), cut=st.integers(0, 1100))
def test_damaged_headers(tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int) -> None:
    path = tmp_path_factory.mktemp("one") / "a.dcm"
    data = bytearray(write(make_instance(np.zeros((4, 4), np.uint16)), path).read_bytes())
    data[at % len(data)] = value
    walker = Walker(read_tags("auto"))
    for head in (bytes(data), bytes(data[:cut])):
        try:
            expected = plainly(head)
        except UnusualHeaderError:
            expected = None
        assert walked(walker, head) == expected
        # what it has learned changes nothing
        assert walked(walker, head) == expected


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
