"""Compressed frames however they are cut into fragments."""

from __future__ import annotations

import zlib
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from medimg.errors import DecodeError, TruncatedError
from medimg.io.dicom.pixels._frames import StoredFrames
from tests.dicom_files import make_instance
from tests.io.dicom.encodings import (
    DEFLATED_FRAMES,
    FRAMES,
    J2K,
    LOSSLESS,
    STREAMS,
    decoded,
    encapsulated,
    item,
    with_data,
)
from tests.sampling import SLOW


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(stream), *(p % len(stream) for p in places)})
    return [stream[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize("syntax", list(STREAMS))
@settings(deadline=None, max_examples=100 if SLOW else 40)
@given(
    places=st.lists(st.lists(st.integers(0, 10**6), max_size=4), min_size=3, max_size=3),
    table=st.sampled_from(["none", "right", "zeros", "without headers", "short", "forgotten"]),
    empty=st.booleans(),
    rest=st.sampled_from([b"", b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0junk", b"\0" * 9]),
)
@example(
    places=[[], [44], []], table="right", empty=False, rest=b""
)  # SPIFF of JPEG-LS ends with a start of image
def test_frames_are_the_same_however_they_are_cut(
    syntax: str, places: list[list[int]], table: str, empty: bool, rest: bytes
) -> None:
    groups = [cut(stream, at) for stream, at in zip(STREAMS[syntax], places, strict=True)]
    lengths = [sum(8 + len(f) for f in group) for group in groups]
    offsets = {
        "none": [],
        "right": [0, lengths[0], lengths[0] + lengths[1]],
        "zeros": [0, 0, 0],
        "without headers": [0, len(STREAMS[syntax][0]), sum(map(len, STREAMS[syntax][:2]))],
        "short": [0],
        "forgotten": [],
    }[table]
    fragments = [f for group in groups for f in group] + [b""] * empty
    data = encapsulated(fragments, offsets, end=False) + rest
    if table == "forgotten" and len(groups[0][0]) > 64:
        data = data[8:]
    ds = with_data(make_instance(FRAMES[0], NumberOfFrames=3, BitsStored=12, HighBit=11), syntax, data)
    if any(len(group) > 1 and len(group[0]) < 64 for group in groups) and table != "right":
        # no start of a codestream can be recognized
        return
    for number in (2, 0, 1):
        assert np.array_equal(decoded(ds, number), FRAMES[number])


@pytest.mark.parametrize("syntax", list(STREAMS))
def test_a_single_frame_in_many_fragments(syntax: str) -> None:
    stream = STREAMS[syntax][0]
    pieces = [stream[n : n + 7] for n in range(0, len(stream), 7)]
    ds = make_instance(FRAMES[0], BitsStored=12, HighBit=11)
    assert np.array_equal(decoded(with_data(ds, syntax, encapsulated(pieces))), FRAMES[0])


def test_odd_fragments_with_a_byte_that_is_not_counted() -> None:
    stream = STREAMS[LOSSLESS][0]
    stream += b"\0" * (1 - len(stream) % 2)
    data = item(b"") + (item(stream) + b"\0") * 2 + b"\xfe\xff\xdd\xe0\0\0\0\0"
    ds = with_data(make_instance(FRAMES[0], NumberOfFrames=2, BitsStored=12, HighBit=11), LOSSLESS, data)
    assert np.array_equal(decoded(ds, 1), FRAMES[0])


@pytest.mark.parametrize("lengths", [True, False])
def test_extended_offset_tables(lengths: bool) -> None:
    streams = [s + b"\0" * (len(s) % 2) for s in STREAMS[J2K]]
    ds = make_instance(FRAMES[0], NumberOfFrames=3, BitsStored=12, HighBit=11)
    with_data(ds, J2K, encapsulated(streams))
    offsets = np.cumsum([0, *(8 + len(s) for s in streams[:-1])])
    ds.ExtendedOffsetTable = offsets.astype("<u8").tobytes()
    if lengths:
        ds.ExtendedOffsetTableLengths = np.asarray(list(map(len, STREAMS[J2K])), "<u8").tobytes()
    for number in (1, 2, 0):
        assert np.array_equal(decoded(ds, number), FRAMES[number])
    ds.ExtendedOffsetTable = (offsets + 2**40).astype("<u8").tobytes()
    assert np.array_equal(decoded(ds, 2), FRAMES[2])


@pytest.mark.parametrize("count", [None, 1, 2])
@pytest.mark.parametrize("table", ["none", "basic", "extended"])
def test_more_codestreams_than_frames_are_an_error(count: int | None, table: str) -> None:
    streams = [s + b"\0" * (len(s) % 2) for s in STREAMS[LOSSLESS]]
    starts = [sum(8 + len(s) for s in streams[:n]) for n in range(len(streams))]
    ds = make_instance(FRAMES[0], NumberOfFrames=count or "", BitsStored=12, HighBit=11)
    with_data(ds, LOSSLESS, encapsulated(streams, starts if table == "basic" else None))
    if table == "extended":
        ds.ExtendedOffsetTable = np.array(starts, "<u8").tobytes()
        ds.ExtendedOffsetTableLengths = np.array([len(s) for s in streams], "<u8").tobytes()
    with pytest.raises(DecodeError, match=f"{len(streams)} frames, but Number of Frames is {count or 1}"):
        StoredFrames(ds)


def test_offset_tables_that_do_not_start_with_the_first_frame_are_not_believed() -> None:
    streams = [s + b"\0" * (len(s) % 2) for s in STREAMS[LOSSLESS][:2]]
    first, second = (8 + len(s) for s in streams)
    ds = make_instance(FRAMES[0], NumberOfFrames=2, BitsStored=12, HighBit=11)
    with_data(ds, LOSSLESS, encapsulated(streams, [first, first + second]))
    assert np.array_equal(decoded(ds, 0), FRAMES[0])
    assert np.array_equal(decoded(ds, 1), FRAMES[1])


def test_fragments_that_nothing_tells_apart_are_an_error() -> None:
    first, second = (zlib.compress(f.tobytes(), wbits=-15) for f in FRAMES[:2])
    pieces = [first[:100], first[100:], second[:90], second[90:]]
    ds = make_instance(FRAMES[0], NumberOfFrames=2)
    with pytest.raises(DecodeError, match="no offset table"):
        StoredFrames(with_data(ds, DEFLATED_FRAMES, encapsulated(pieces)))
    with_data(ds, DEFLATED_FRAMES, encapsulated([first, second]))
    assert np.array_equal(decoded(ds, 1), FRAMES[1])


@pytest.mark.parametrize("syntax", list(STREAMS))
def test_cut_short(syntax: str) -> None:
    ds = make_instance(FRAMES[0], BitsStored=12, HighBit=11)
    whole = encapsulated(STREAMS[syntax][:1])
    with pytest.raises(TruncatedError, match="after the end"):
        StoredFrames(with_data(ds, syntax, whole[:-40]))
    for part in (0.1, 0.5, 0.98):
        stream = STREAMS[syntax][0]
        with_data(ds, syntax, encapsulated([stream[: int(part * len(stream))]]))
        with pytest.raises((TruncatedError, DecodeError)):
            decoded(ds)


def test_pixel_data_and_transfer_syntax_contradict_each_other() -> None:
    ds = make_instance(FRAMES[0], BitsStored=12, HighBit=11)
    with pytest.raises(DecodeError, match="no items"):
        StoredFrames(with_data(ds, J2K, FRAMES[0].tobytes()))
    with_data(ds, "1.2.840.10008.1.2.1", encapsulated([FRAMES[0].tobytes()]))
    with pytest.raises(DecodeError, match="encapsulated"):
        StoredFrames(ds)
