"""Pixel data that is not compressed: bits, byte orders, floats, padding, what is missing."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID

import medimg
from medimg.errors import DecodeError, NotAnImageError, TruncatedError
from medimg.io.dicom.header.image_pixel import FrameFormat
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.pixels._native import NativeFrames
from tests.dicom_files import make_instance, write
from tests.io.dicom.encodings import (
    BUNDLED,
    RLE,
    RNG,
    decoded,
    encapsulated,
    gray,
    rle_frame,
    values_of,
    with_data,
)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9)),
    extra=st.integers(0, 3),
    words=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_single_bits_follow_each_other_without_gaps(
    shape: tuple[int, int, int], extra: int, words: bool, seed: int
) -> None:
    count, rows, columns = shape
    bits = np.random.default_rng(seed).integers(0, 2, shape).astype(np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little").tobytes() + b"\xaa" * extra
    packed += b"\0" * (len(packed) % 2)
    if words:
        packed = np.frombuffer(packed, "<u2").byteswap().tobytes()
    form = FrameFormat(rows, columns, 1, 1, 1, 0, False, "MONOCHROME2", False)
    frames = NativeFrames(packed, form, count, big_endian=words, words=words)
    for number in reversed(range(count)):
        assert np.array_equal(frames.get_frame(number), bits[number])


@settings(deadline=None)
@given(
    allocated=st.sampled_from([8, 16, 32]),
    data=st.data(),
    signed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_bits_around_the_value_are_dropped(allocated: int, data: Any, signed: bool, seed: int) -> None:
    stored = data.draw(st.integers(1, allocated))
    high = data.draw(st.integers(stored - 1, allocated - 1))
    rng = np.random.default_rng(seed)
    words = rng.integers(0, 2**allocated, (3, 5), dtype=np.uint64).astype(f"u{allocated // 8}")
    ds = make_instance(words, BitsStored=stored, HighBit=high, PixelRepresentation=int(signed))
    expected = (words.astype(np.int64) >> (high + 1 - stored)) & (2**stored - 1)
    if signed:
        expected = np.where(expected >= 2 ** (stored - 1), expected - 2**stored, expected)
    assert np.array_equal(decoded(ds), expected)


def test_big_endian_files_equal_their_twins_in_little_endian(real_data: Path) -> None:
    misc = real_data / "dicom_misc" / "pydicom-data"
    pairs = [
        (BUNDLED, "rtdose_expb.dcm", "rtdose.dcm"),
        (BUNDLED, "SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd.dcm"),
        (BUNDLED, "MR_small_bigendian.dcm", "MR_small.dcm"),
        (misc, "SC_rgb_expb_16bit_2frame.dcm", "SC_rgb_16bit_2frame.dcm"),
        (misc, "SC_rgb_expb_32bit_2frame.dcm", "SC_rgb_32bit_2frame.dcm"),
        (misc, "OBXXXX1A_expb_2frame.dcm", "OBXXXX1A_2frame.dcm"),
        (misc, "emri_small_big_endian.dcm", "emri_small.dcm"),
        (misc, "liver_expb.dcm", "liver.dcm"),
        (misc, "gdcm-US-ALOKA-16_big.dcm", "gdcm-US-ALOKA-16.dcm"),
    ]
    for root, *names in pairs:
        one, other = (StoredFrames(open_dataset(next(iter(root.rglob(name))))) for name in names)
        assert one.count == other.count
        for number in range(one.count):
            assert np.array_equal(one.decode(number)[0], other.decode(number)[0]), names


@pytest.mark.parametrize("columns", [5, 6])
def test_8_bit_words_of_odd_frames_in_big_endian(columns: int) -> None:
    frames = RNG.integers(0, 256, (3, 3, columns)).astype(np.uint8)
    data = frames.tobytes() + b"\0" * (frames.size % 2)
    ds = make_instance(frames[0], NumberOfFrames=3)
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.2")
    ds.PixelData = np.frombuffer(data, "<u2").byteswap().tobytes()
    ds["PixelData"].VR = "OW"
    for number in (2, 0, 1):
        assert np.array_equal(decoded(ds, number), frames[number])


@pytest.mark.parametrize(("name", "dtype"), [("FloatPixelData", "f4"), ("DoubleFloatPixelData", "f8")])
@pytest.mark.parametrize("padding", [-1e30, float("nan")])
def test_floats_and_their_padding(name: str, dtype: str, padding: float) -> None:
    pixels = np.array([[0.5, -2.25], [padding, 3e20]], dtype)
    ds = make_instance(np.zeros((2, 2), np.uint16), RescaleSlope=2, RescaleIntercept=-1)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, keyword)
    setattr(ds, name, pixels.tobytes())
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    setattr(ds, name.replace("Data", "PaddingValue"), padding)
    values = values_of(ds)
    assert values.array.dtype == pixels.dtype
    assert values.padding is not None
    assert values.padding[0].tolist() == [[False, False], [True, False]]
    assert np.array_equal(values.array[0], (pixels.astype("f8") * 2 - 1).astype(dtype), equal_nan=True)


def test_padding_ranges_of_floats() -> None:
    ds = make_instance(np.zeros((1, 4), np.uint16))
    del ds.PixelData
    ds.FloatPixelData = np.array([-2, -1, 0, 1], "f4").tobytes()
    ds.BitsAllocated = 32
    ds.FloatPixelPaddingValue, ds.FloatPixelPaddingRangeLimit = 0.0, -1.5
    padding = values_of(ds).padding
    assert padding is not None
    assert padding.ravel().tolist() == [False, True, True, False]


@pytest.mark.parametrize(("value", "limit"), [(0x830, None), (-2000, None), (63536, 63537)])
def test_padding_of_12_signed_bits(value: int, limit: int | None) -> None:
    ds = make_instance(
        np.array([[0x830, 0x7FF]], np.uint16), BitsStored=12, HighBit=11, PixelRepresentation=1
    )
    ds.add_new(0x00280120, "SS" if value < 0 else "US", value)
    if limit is not None:
        ds.add_new(0x00280121, "US", limit)
    padding = values_of(ds).padding
    assert padding is not None
    assert padding.ravel().tolist() == [True, False]


@pytest.mark.parametrize(
    "attributes",
    [
        {"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63},
        {"BitsAllocated": 12, "BitsStored": 12, "HighBit": 11},
        {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "PixelRepresentation": 1},
        {"PhotometricInterpretation": "ARGB", "SamplesPerPixel": 4},
        {"PhotometricInterpretation": "CMYK", "SamplesPerPixel": 4},
        {"PhotometricInterpretation": "HSV", "SamplesPerPixel": 3},
        {"PhotometricInterpretation": "RGB"},
        {"SamplesPerPixel": 3},
        {"NumberOfFrames": -3},
    ],
)
def test_formats_that_are_refused(attributes: dict[str, Any]) -> None:
    with pytest.raises(DecodeError):
        StoredFrames(make_instance(gray(), **attributes))


@pytest.mark.parametrize("frames", [2, 1000, 2**31 - 1])
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", RLE])
def test_frames_that_are_not_there_take_no_memory(frames: int, syntax: str) -> None:
    pixels = gray()
    ds = make_instance(pixels, NumberOfFrames=frames)
    if syntax == RLE:
        with_data(ds, RLE, encapsulated([rle_frame(pixels)]))
    tracemalloc.start()
    with pytest.raises(TruncatedError, match=str(frames)):
        StoredFrames(ds)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_more_bytes_than_needed_are_fine() -> None:
    pixels = gray()
    ds = make_instance(pixels)
    ds.PixelData = ds.PixelData + b"\1" * 1000
    assert np.array_equal(decoded(ds), pixels)


@pytest.mark.parametrize("number", [-1, 1])
def test_there_is_no_other_frame(number: int) -> None:
    with pytest.raises(IndexError):
        StoredFrames(make_instance(gray())).decode(number)


def test_no_pixels_and_pixels_twice() -> None:
    ds = make_instance(gray())
    ds.FloatPixelData = b"\0" * 4
    with pytest.raises(DecodeError, match="more than once"):
        StoredFrames(ds)
    del ds.FloatPixelData, ds.PixelData
    with pytest.raises(NotAnImageError, match="no pixel data"):
        StoredFrames(ds)


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize(
    ("excess", "is_noted"), [(0, False), (2, False), (10, False), (12, True), (40, True)]
)
def test_rows_behind_the_pixels_are_noted(tmp_path: Path, frames: int, excess: int, is_noted: bool) -> None:
    """A flipped bit of Rows would cut an image silently; a few bytes of padding are usual."""
    pixels = np.arange(24 * frames, dtype=np.uint16).reshape(frames, 4, 6)
    ds = make_instance(pixels[0], NumberOfFrames=frames)
    ds.PixelData = pixels.tobytes() + bytes(excess)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        volume = medimg.read(write(ds, tmp_path / "one.dcm"), values="rescaled")
    assert np.array_equal(volume.array[0] + 1024, pixels)
    assert any("Rows or Columns may be wrong" in str(w.message) for w in caught) is is_noted
    assert any("Rows or Columns may be wrong" in w for w in volume.report.warnings) is is_noted
