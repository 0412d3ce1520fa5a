"""Walks of headers that remember elements of other headers, against walks that remember nothing."""

from __future__ import annotations

import random
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, ImplicitVRLittleEndian

from medimg.io.dicom.header import elements
from medimg.io.dicom.header.elements import (
    ElementLocator,
    ElementOffsets,
    UnusualHeaderError,
    locate_elements,
)
from tests._native.fuzzing.compare_walkers import mutate
from tests.dicom_files import make_instance, write
from tests.io.dicom.kinds import of_each_folder
from tests.io.dicom.plain_walk import plain_walk
from tests.sampling import SLOW

#: Tags of elements that are listed, and of those whose bytes are joined.
LISTED = frozenset({0x00020003, 0x00080018, 0x00081140, 0x00200013, 0x00280030})
JOINED = frozenset({0x00020010, 0x00080005, 0x00081140, 0x00110010, 0x00280010, 0x00280011, 0x00280100})


def expect(head: bytes) -> ElementOffsets | bool:
    """Return the elements of a header; if it is unusual, whether the bytes end before it."""
    try:
        return plain_walk(head)
    except UnusualHeaderError as error:
        return error.ends


def walk(head: bytes) -> ElementOffsets | bool:
    try:
        return locate_elements(head)
    except UnusualHeaderError as error:
        return error.ends


def expect_selected(head: bytes) -> ElementOffsets | bool:
    found = expect(head)
    if isinstance(found, bool):
        return found
    listed = [e for e in found.elements if e.tag in LISTED]
    joined = b"".join(head[e.at : e.end] for e in found.elements if e.tag in JOINED)
    return ElementOffsets(found.syntax, listed, joined, found.pixels)


def locate(locator: ElementLocator, head: bytes) -> ElementOffsets | bool:
    try:
        return locator.locate(head)
    except UnusualHeaderError as error:
        return error.ends


@pytest.fixture
def locator(monkeypatch: pytest.MonkeyPatch) -> ElementLocator:
    """A locator that collects runs as often as it can."""
    monkeypatch.setattr(elements, "_RUN_HEADERS", 0)
    return ElementLocator(LISTED, joined=JOINED)


def make_header(folder: Path, *, syntax: str | None, endless: bool) -> bytes:
    """A header with a sequence in a sequence and a private element."""
    inner, item = Dataset(), Dataset()
    inner.CodeValue = "1234"
    item.ReferencedSOPInstanceUID = "1.2.3"
    item.PurposeOfReferenceCodeSequence = DicomSequence([inner, inner])
    item["PurposeOfReferenceCodeSequence"].is_undefined_length = endless
    ds = make_instance(np.zeros((2, 2), np.uint16), SpecificCharacterSet="ISO_IR 100")
    ds.ReferencedImageSequence = DicomSequence([item])
    for nested in (ds["ReferencedImageSequence"], inner, item):
        if isinstance(nested, Dataset):
            nested.is_undefined_length_sequence_item = endless
        else:
            nested.is_undefined_length = endless
    ds.private_block(0x0011, "TEST", create=True).add_new(1, "UN", b"abcd")
    if syntax:
        ds.file_meta.TransferSyntaxUID = UID(syntax)
    return write(ds, folder / "one.dcm").read_bytes()


@pytest.mark.parametrize("endless", [False, True], ids=["with_length", "without_length"])
@pytest.mark.parametrize("syntax", [None, ImplicitVRLittleEndian], ids=["explicit", "implicit"])
def test_every_byte_may_differ(
    tmp_path: Path, locator: ElementLocator, syntax: str | None, *, endless: bool
) -> None:
    head = make_header(tmp_path, syntax=syntax, endless=endless)
    for _ in range(2):
        assert locate(locator, head) == expect_selected(head)
    assert len(locator._runs[syntax is not None]) > 1
    found = walk(head)
    assert isinstance(found, ElementOffsets)
    assert found == expect(head)
    changed = 0
    for at in range(128, len(head)):
        for value in {0, 2, 0xFF, head[at] ^ 1, head[at] ^ 2, head[at] ^ 0x80} - {head[at]}:
            damaged = head[:at] + bytes([value]) + head[at + 1 :]
            expected = expect(damaged)
            assert walk(damaged) == expected, at
            assert locate(locator, damaged) == expect_selected(damaged), at
            changed += expected != found
        assert walk(head[:at]) == expect(head[:at])
        assert locate(locator, head[:at]) == expect_selected(head[:at])
    assert walk(head) == found
    assert changed > 1000


@cache
def list_heads(folder: Path) -> list[bytes]:
    found = (path.read_bytes()[:16384] for path in of_each_folder(folder))
    return [head for head in found if isinstance(expect(head), ElementOffsets)]


def test_mutated_real_headers(real_data: Path, locator: ElementLocator) -> None:
    """Each header and mutations of it in turn, so that most are in runs but for what changed."""
    rng, walked = random.Random(0), 0
    for head in list_heads(real_data):
        for _ in range(40 if SLOW else 2):
            changed = mutate(head, rng)
            expected = expect(changed)
            assert walk(changed) == expected
            for each in (head, changed, head, changed):
                assert locate(locator, each) == expect_selected(each)
            walked += isinstance(expected, ElementOffsets)
    assert walked > (3_000 if SLOW else 100)


def test_headers_without_mutations(real_data: Path) -> None:
    """In the order of the folders, as in a scan: of series, most elements are in runs."""
    locator, in_runs = ElementLocator(LISTED, joined=JOINED), 0
    for head in list_heads(real_data) * 2:
        found = locator.locate(head)
        assert found == expect_selected(head)
        in_runs += found.in_runs
    assert in_runs > 100


def test_threads_that_forget_change_nothing(
    real_data: Path, locator: ElementLocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    elements._EXPLICIT_STARTS.clear()
    monkeypatch.setattr(elements, "_MAX_STARTS", 20)
    heads = list_heads(real_data)[:100]
    monkeypatch.setattr(elements, "_MAX_RUNS", 4)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(walk, heads * 4))
        located = list(pool.map(partial(locate, locator), [head for head in heads for _ in range(4)]))
    assert found == [expect(head) for head in heads] * 4
    assert located == [expect_selected(head) for head in heads for _ in range(4)]
    assert len(elements._EXPLICIT_STARTS) <= 20 + 8


def test_what_is_remembered_is_bounded() -> None:
    """Elements of ever other tags and lengths, as in hostile files."""
    meta = b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
    pixels = b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0\0\0"
    for group in range(9, 15, 2):
        many = b"".join(struct.pack("<HH2sH", group, n, b"LO", 0) for n in range(15_000))
        head = bytes(128) + b"DICM" + meta + many + pixels
        assert walk(head) == expect(head)
        assert len(elements._EXPLICIT_STARTS) <= elements._MAX_STARTS


@pytest.mark.parametrize("count", [19_998, 19_999, 20_000, 20_001])
@pytest.mark.parametrize("is_nested", [False, True], ids=["top", "nested"])
def test_countless_elements(count: int, *, is_nested: bool) -> None:
    meta = b"\x02\x00\x10\x00UI\x14\x00" + b"1.2.840.10008.1.2.1\0"
    pixels = b"\xe0\x7f\x10\x00OW\0\0\x02\0\0\0\0\0"
    if is_nested:
        items = b"\xfe\xff\x00\xe0\0\0\0\0" * (count - 3) + b"\xfe\xff\xdd\xe0\0\0\0\0"
        many = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + items
    else:
        many = b"".join(struct.pack("<HH2sH", 9, n, b"LO", 0) for n in range(count - 1))
    head = bytes(128) + b"DICM" + meta + many + pixels
    assert isinstance(walk(head), ElementOffsets) == (count <= 20_000)
    assert walk(head) == expect(head)
