"""Encodings of pixel data: bits, byte orders, colors, fragments, codestreams that contradict their header."""

from __future__ import annotations

import sys
import tracemalloc
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import FileDataset
from pydicom.pixels.processing import apply_color_lut, convert_color_space
from pydicom.uid import UID

from medimg.errors import DecodeError, MissingDependencyError, NotAnImageError, TruncatedError
from medimg.io.dicom.attributes import quiet_pydicom
from medimg.io.dicom.codecs import SYNTAXES, decode_frame, refuse_syntax
from medimg.io.dicom.codestream import codestream_size, j2k_end, read_codestream
from medimg.io.dicom.colors import expand_segments
from medimg.io.dicom.frames import FrameFormat, StoredFrames
from medimg.io.dicom.native import NativeFrames
from medimg.io.dicom.opening import open_dataset
from medimg.io.dicom.values import SliceValues, slice_values
from tests.dicom_files import make_instance

RNG = np.random.default_rng(11)
BUNDLED = Path(pydicom.__file__).parent / "data" / "test_files"
RLE, DEFLATED_FRAMES = "1.2.840.10008.1.2.5", "1.2.840.10008.1.2.8.1"
JPEG, EXTENDED, LOSSLESS, JPEG_LS, J2K, JPEG_XL, HTJ2K = (
    f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70, 80, 90, 110, 201)
)
LOSSY_J2K = "1.2.840.10008.1.2.4.91"


def gray(bits: int = 12, shape: tuple[int, ...] = (32, 40)) -> npt.NDArray[Any]:
    smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * (2**bits // 100)
    noisy = (smooth + RNG.integers(0, 2 ** (bits - 3), shape)) % 2**bits
    return np.asarray(noisy.astype(np.uint8 if bits <= 8 else np.uint16))


def item(data: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(data).to_bytes(4, "little") + data


def encapsulated(fragments: list[bytes], table: list[int] | None = None, *, end: bool = True) -> bytes:
    offsets = b"".join(n.to_bytes(4, "little") for n in table or [])
    return item(offsets) + b"".join(map(item, fragments)) + b"\xfe\xff\xdd\xe0\0\0\0\0" * end


def with_data(ds: FileDataset, syntax: str, data: bytes) -> FileDataset:
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    ds.PixelData = data
    ds["PixelData"].VR = "OB"
    ds["PixelData"].is_undefined_length = True
    return ds


def compressed(pixels: npt.NDArray[Any], syntax: str, streams: list[bytes], **attributes: Any) -> FileDataset:
    ds = make_instance(pixels, NumberOfFrames=len(streams), **attributes)
    return with_data(ds, syntax, encapsulated(streams))


def decoded(ds: FileDataset, number: int = 0) -> npt.NDArray[Any]:
    return StoredFrames(ds).stored(number)[0]


def values_of(ds: FileDataset) -> SliceValues:
    with quiet_pydicom():
        source = StoredFrames(ds)
        stored, is_rgb = source.stored(0)
        return slice_values(ds, source.form, stored, is_rgb=is_rgb)


def rgb_of(ds: FileDataset) -> npt.NDArray[np.int64]:
    return np.moveaxis(values_of(ds).array, 0, -1).astype(np.int64)


# --- bits and bytes


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
        assert np.array_equal(frames.frame(number), bits[number])


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
            assert np.array_equal(one.stored(number)[0], other.stored(number)[0]), names


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
        StoredFrames(make_instance(gray())).stored(number)


def test_no_pixels_and_pixels_twice() -> None:
    ds = make_instance(gray())
    ds.FloatPixelData = b"\0" * 4
    with pytest.raises(DecodeError, match="more than once"):
        StoredFrames(ds)
    del ds.FloatPixelData, ds.PixelData
    with pytest.raises(NotAnImageError, match="no pixel data"):
        StoredFrames(ds)


# --- colors


def subsampled(ycc: npt.NDArray[np.uint8], *, filled: bool) -> bytes:
    """Y1 Y2 Cb Cr; pairs within rows filled up to an even number, or running on across their ends."""
    if filled and ycc.shape[1] % 2:
        ycc = np.concatenate([ycc, ycc[:, -1:]], axis=1)
    flat = ycc.reshape(-1, 3)
    if len(flat) % 2:
        flat = np.concatenate([flat, flat[-1:]])
    pairs = flat.reshape(-1, 2, 3)
    return np.concatenate([pairs[:, :, 0], pairs[:, 0, 1:]], axis=1).tobytes()


@pytest.mark.parametrize("shape", [(4, 6), (4, 5), (3, 5), (1, 1)])
@pytest.mark.parametrize("filled", [True, False])
@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "YBR_PARTIAL_422"])
def test_halved_color_differences(shape: tuple[int, int], filled: bool, photometric: str) -> None:
    ycc = RNG.integers(16, 236, (2, *shape, 3)).astype(np.uint8)
    parts = [subsampled(frame, filled=filled) for frame in ycc]
    data = b"".join(parts)
    ds = make_instance(ycc[0], PhotometricInterpretation=photometric, NumberOfFrames=2)
    ds.PixelData = data + b"\0" * (len(data) % 2)
    if len(parts[0]) >= ycc[0].size:
        return
    for number in (1, 0):
        found = decoded(ds, number)
        assert np.array_equal(found[..., 0], ycc[number, ..., 0])
        assert np.array_equal(found.reshape(-1, 3)[0], ycc[number].reshape(-1, 3)[0])
        if shape[1] % 2 == 0 or filled:
            assert np.array_equal(found[:, ::2], ycc[number, :, ::2])
            left, right = found[:, : shape[1] // 2 * 2 : 2, 1:], found[:, 1::2, 1:]
            assert np.array_equal(left, right)
        else:
            pairs = found.reshape(-1, 3)[: found.size // 6 * 2].reshape(-1, 2, 3)
            assert np.array_equal(pairs[:, 0, 1:], pairs[:, 1, 1:])


def test_whole_color_differences_in_spite_of_the_header() -> None:
    ycc = RNG.integers(0, 256, (4, 6, 3)).astype(np.uint8)
    assert np.array_equal(decoded(make_instance(ycc, PhotometricInterpretation="YBR_FULL_422")), ycc)


def test_colors_of_full_range_equal_pydicoms() -> None:
    ycc = RNG.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    expected = convert_color_space(ycc, "YBR_FULL", "RGB").astype(int)
    found = rgb_of(make_instance(ycc, PhotometricInterpretation="YBR_FULL"))
    assert np.abs(found - expected).max() <= 1


def test_colors_of_partial_range_go_back_to_what_they_were() -> None:
    """Forward by the equations of PS3.3 C.7.6.3.1.2."""
    rgb = RNG.integers(0, 256, (20, 30, 3))
    rgb[:, 1::2] = rgb[:, ::2]
    matrix = [[0.2568, 0.5041, 0.0979], [-0.1482, -0.2910, 0.4392], [0.4392, -0.3678, -0.0714]]
    ycc = np.rint(rgb @ np.transpose(matrix) + [16, 128, 128]).astype(np.uint8)
    ds = make_instance(ycc, PhotometricInterpretation="YBR_PARTIAL_422")
    ds.PixelData = subsampled(ycc, filled=True)
    assert np.abs(rgb_of(ds) - rgb).max() <= 2


@pytest.mark.parametrize("photometric", ["YBR_PARTIAL_420", "YBR_RCT", "YBR_ICT", "XYB"])
def test_colors_that_only_codestreams_have(photometric: str) -> None:
    with pytest.raises(DecodeError, match="compressed"):
        StoredFrames(make_instance(np.zeros((2, 2, 3), np.uint8), PhotometricInterpretation=photometric))


def smooth_rgb() -> npt.NDArray[np.uint8]:
    rows, columns = np.indices((48, 64))
    return np.stack([4 * rows, 3 * columns, 255 - 2 * rows - columns], axis=-1).astype(np.uint8)


def without_markers(stream: bytes) -> bytes:
    """A JPEG without what it says of its colors."""
    out, at = stream[:2], 2
    while stream[at + 1] != 0xDA:
        length = 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        out += b"" if stream[at + 1] in {0xE0, 0xEE} else stream[at : at + length]
        at += length
    return out + stream[at:]


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_420", "YBR_ICT"])
@pytest.mark.parametrize("coded", ["RGB", "YCBCR", "YCBCR unmarked", "halved unmarked"])
def test_a_jpeg_knows_its_colors_better_than_the_header(photometric: str, coded: str) -> None:
    """Adobe's segment says RGB, JFIF's says YCbCr; without both, halved components are YCbCr."""
    rgb = smooth_rgb()
    sampling = "422" if "halved" in coded else "444"
    space = "RGB" if coded == "RGB" else "YCBCR"
    stream = bytes(imagecodecs.jpeg8_encode(rgb, level=98, outcolorspace=space, subsampling=sampling))
    if "unmarked" in coded:
        stream = without_markers(stream)
    ds = compressed(rgb, JPEG, [stream], PhotometricInterpretation=photometric)
    source = StoredFrames(ds)
    stored, is_rgb = source.stored(0)
    assert is_rgb
    wrong = coded == "YCBCR unmarked" and photometric == "RGB"
    assert (np.abs(stored.astype(int) - rgb).max() <= 12) != wrong


@pytest.mark.parametrize("syntax", [LOSSLESS, JPEG_LS, RLE, J2K])
def test_lossless_syntaxes_of_color_differences(syntax: str) -> None:
    ycc = RNG.integers(0, 256, (16, 24, 3)).astype(np.uint8)
    encoders = {
        LOSSLESS: lambda: imagecodecs.jpeg8_encode(
            ycc, lossless=True, predictor=1, colorspace="RGB", outcolorspace="RGB"
        ),
        JPEG_LS: lambda: imagecodecs.jpegls_encode(ycc),
        J2K: lambda: imagecodecs.jpeg2k_encode(ycc, level=0, reversible=True, codecformat="j2k", mct=False),
        RLE: lambda: rle_frame(ycc),
    }
    stream = bytes(encoders[syntax]())
    ds = compressed(ycc, syntax, [stream], PhotometricInterpretation="YBR_FULL")
    stored, is_rgb = StoredFrames(ds).stored(0)
    assert not is_rgb
    assert np.array_equal(stored, ycc)
    expected = convert_color_space(ycc, "YBR_FULL", "RGB").astype(int)
    assert np.abs(rgb_of(ds) - expected).max() <= 1
    ds.PhotometricInterpretation = "RGB"
    stored, is_rgb = StoredFrames(ds).stored(0)
    assert is_rgb
    assert np.array_equal(stored, ycc)


@pytest.mark.parametrize("name", ["gdcm-US-ALOKA-16.dcm", "OBXXXX1A.dcm", "OT-PAL-8-face.dcm"])
def test_palettes_of_real_files_equal_pydicoms(real_data: Path, name: str) -> None:
    ds = open_dataset(next(iter((real_data / "dicom_misc" / "pydicom-data").rglob(name))))
    found = rgb_of(ds)  # type: ignore[arg-type]
    expected = apply_color_lut(decoded(ds), ds)[..., :3] >> 8  # type: ignore[arg-type]
    assert np.ptp(expected) > 100
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("signed", [False, True])
def test_palettes_start_at_any_value_and_end_entries_go_on(signed: bool) -> None:
    dtype, first = (np.int16, -3) if signed else (np.uint16, 5)
    ds = make_instance(np.arange(first - 2, first + 6, dtype=dtype)[None])
    ds.PhotometricInterpretation = "PALETTE COLOR"
    for color, shift in (("Red", 0), ("Green", 64), ("Blue", 128)):
        entries = (np.array([10, 20, 30, 40]) + shift) << 8
        ds.add_new(f"{color}PaletteColorLookupTableDescriptor", "SS" if signed else "US", [4, first, 16])
        setattr(ds, f"{color}PaletteColorLookupTableData", entries.astype("<u2").tobytes())
    assert rgb_of(ds)[0, :, 0].tolist() == [10, 10, 10, 20, 30, 40, 40, 40]
    assert rgb_of(ds)[0, :, 2].tolist() == [138, 138, 138, 148, 158, 168, 168, 168]


def test_segmented_palettes() -> None:
    words = [0, 2, 7, 100, 1, 4, 500, 0, 1, 3, 2, 2, 8, 0]
    assert expand_segments(words, 12, bytes_each=2) == [7, 100, 200, 300, 400, 500, 3, 127, 252, 376, 500, 3]
    in_bytes = [0, 1, 10, 1, 2, 20, 2, 1, 3, 0, 0, 0]
    assert expand_segments(in_bytes, 5, bytes_each=1) == [10, 15, 20, 20, 20]


@pytest.mark.parametrize(
    "words", [[], [0, 5, 1], [1, 4, 500], [3, 1, 1], [0, 1, 5, 2, 1, 99, 0], [0, 1, 1, 1, 0, 9]]
)
def test_damaged_segments_are_errors(words: list[int]) -> None:
    with pytest.raises(DecodeError):
        expand_segments(words, 8, bytes_each=2)


# --- fragments


def rle_frame(pixels: npt.NDArray[Any]) -> bytes:
    """Planes of bytes, the highest first, by PackBits (PS3.5 annex G)."""
    planes = [pixels] if pixels.ndim == 2 else [pixels[..., n] for n in range(3)]
    segments = []
    for plane in planes:
        size = plane.dtype.itemsize
        split = np.ascontiguousarray(plane).astype(f"<u{size}").view(np.uint8).reshape(-1, size)
        segments += [bytes(imagecodecs.packbits_encode(split[:, k].tobytes())) for k in reversed(range(size))]
    segments = [s + b"\0" * (len(s) % 2) for s in segments]
    offsets = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    header = [len(segments), *offsets, *[0] * (15 - len(segments))]
    return b"".join(n.to_bytes(4, "little") for n in header) + b"".join(segments)


FRAMES = [gray() for _ in range(3)]
STREAMS = {
    RLE: [rle_frame(f) for f in FRAMES],
    LOSSLESS: [bytes(imagecodecs.jpeg8_encode(f, lossless=True, bitspersample=12)) for f in FRAMES],
    JPEG_LS: [bytes(imagecodecs.jpegls_encode(f)) for f in FRAMES],
    J2K: [bytes(imagecodecs.jpeg2k_encode(f, level=0, reversible=True, codecformat="j2k")) for f in FRAMES],
    HTJ2K: [bytes(imagecodecs.htj2k_encode(f)) for f in FRAMES],
}


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({0, len(stream), *(p % len(stream) for p in places)})
    return [stream[a:b] for a, b in pairwise(ends)]


@pytest.mark.parametrize("syntax", list(STREAMS))
@given(
    places=st.lists(st.lists(st.integers(0, 10**6), max_size=4), min_size=3, max_size=3),
    table=st.sampled_from(["none", "right", "zeros", "without headers", "short", "forgotten"]),
    empty=st.booleans(),
    rest=st.sampled_from([b"", b"\xfe\xff\xdd\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0junk", b"\0" * 9]),
)
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


def test_more_codestreams_than_frames_are_ignored() -> None:
    for count in (1, 2):
        ds = make_instance(FRAMES[0], NumberOfFrames=count, BitsStored=12, HighBit=11)
        with_data(ds, LOSSLESS, encapsulated(STREAMS[LOSSLESS]))
        assert np.array_equal(decoded(ds, count - 1), FRAMES[count - 1])


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
    with pytest.raises(TruncatedError, match="behind the end"):
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


# --- codestreams


@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_all_predictors_of_lossless_jpeg(predictor: int, bits: int) -> None:
    pixels = gray(bits)
    stream = bytes(imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=bits, predictor=predictor))
    ds = compressed(pixels, "1.2.840.10008.1.2.4.57", [stream], BitsStored=bits, HighBit=bits - 1)
    assert np.array_equal(decoded(ds), pixels)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("box", [False, True])
def test_jpeg_xl_of_any_depth(bits: int, box: bool) -> None:
    pixels = gray(bits)
    stream = imagecodecs.jpegxl_encode(pixels, lossless=True, bitspersample=bits, usecontainer=box)
    ds = compressed(pixels, JPEG_XL, [bytes(stream)], BitsStored=bits, HighBit=bits - 1)
    assert np.array_equal(decoded(ds), pixels)


@given(rows=st.integers(1, 600), columns=st.integers(1, 600))
def test_jpeg_xl_tells_its_size(rows: int, columns: int) -> None:
    stream = bytes(imagecodecs.jpegxl_encode(np.zeros((rows, columns), np.uint8), lossless=True, effort=1))
    assert codestream_size(stream) == (rows, columns, 0)


def test_jpeg_xl_of_another_size_is_refused_before_it_is_decoded() -> None:
    stream = bytes(imagecodecs.jpegxl_encode(np.zeros((64, 64), np.uint8), lossless=True))
    with pytest.raises(DecodeError, match=r"\(64, 64, 0\)"):
        decoded(compressed(np.zeros((16, 16), np.uint8), JPEG_XL, [stream]))


def signed_j2k(values: npt.NDArray[np.int16]) -> bytes:
    stream = bytes(imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k"))
    found = read_codestream(stream)
    assert found is not None
    assert found.signed
    return stream


def unsigned_j2k(values: npt.NDArray[Any], bits: int) -> bytes:
    options: dict[str, Any] = {"level": 0, "reversible": True, "codecformat": "j2k"}
    stream = bytes(imagecodecs.jpeg2k_encode(values, bitspersample=bits, **options))
    found = read_codestream(stream)
    assert found is not None
    assert (found.signed, found.precision) == (False, bits)
    return stream


SIGNED = (gray(13).astype(np.int64) - 4096).astype(np.int16)


@pytest.mark.parametrize("stored", [13, 16])
@pytest.mark.parametrize("syntax", [J2K, JPEG_LS])
def test_unsigned_codestreams_of_signed_pixels(syntax: str, stored: int) -> None:
    """The sign is the highest bit of the codestream's precision, where that is less than Bits Stored."""
    bits = (SIGNED & 0x1FFF).astype(np.uint16)
    encode = {J2K: lambda: unsigned_j2k(bits, 13), JPEG_LS: lambda: bytes(imagecodecs.jpegls_encode(bits))}
    ds = compressed(SIGNED, syntax, [encode[syntax]()], BitsStored=stored, HighBit=stored - 1)
    found = read_codestream(encode[syntax]())
    assert found is not None
    if found.precision == 13 or stored == 13:
        assert np.array_equal(decoded(ds), SIGNED)


def test_unsigned_codestreams_of_whole_words() -> None:
    words = SIGNED.view(np.uint16)
    ds = compressed(SIGNED, J2K, [unsigned_j2k(words, 16)], BitsStored=13, HighBit=12)
    assert np.array_equal(decoded(ds), SIGNED)


def test_signed_codestreams_keep_their_sign_whatever_the_header_says() -> None:
    ds = compressed(SIGNED, J2K, [signed_j2k(SIGNED)])
    assert np.array_equal(decoded(ds), SIGNED)
    assert values_of(ds).transforms == ("rescaled: 1 × stored + -1024",)
    ds.PixelRepresentation = 0
    assert np.array_equal(decoded(ds), SIGNED)
    assert any("codestream is signed" in step for step in values_of(ds).transforms)


def test_codestreams_that_disagree_in_sign_on_real_files(real_data: Path) -> None:
    root = real_data / "dicom_misc" / "pylibjpeg-data"
    expected = {
        "TOSHIBA_J2K_SIZ1_PixRep0.dcm": (-2048, 1717),
        "TOSHIBA_J2K_SIZ0_PixRep1.dcm": (-2048, 1717),
        "J2K_pixelrep_mismatch.dcm": (-2000, 1896),
    }
    for name, ends in expected.items():
        values = decoded(open_dataset(next(iter(root.rglob(name)))))  # type: ignore[arg-type]
        assert (int(values.min()), int(values.max())) == ends, name
    one, other = (next(iter(root.rglob(f"TOSHIBA_J2K_SIZ{n}_PixRep{1 - n}.dcm"))) for n in (1, 0))
    assert decoded(open_dataset(one)).dtype == decoded(open_dataset(other)).dtype  # type: ignore[arg-type]


def test_lossless_words_with_dirty_high_bits_are_masked() -> None:
    clean = gray(12)
    dirty = clean | np.uint16(0x3000)
    stream = bytes(imagecodecs.jpeg8_encode(dirty, lossless=True, bitspersample=16))
    assert np.array_equal(decoded(compressed(dirty, LOSSLESS, [stream], BitsStored=12, HighBit=11)), clean)


def test_lossy_overshoot_stays_white() -> None:
    edges = (np.indices((32, 40)).sum(axis=0) // 5 % 2 * 1023).astype(np.uint16)
    stream = bytes(imagecodecs.jpeg8_encode(edges, level=60, bitspersample=12))
    found = decoded(compressed(edges, EXTENDED, [stream], BitsStored=10, HighBit=9))
    assert found.max() > 1023
    assert np.abs(found.astype(int) - edges).max() < 300


def test_values_that_do_not_fit_into_what_is_allocated() -> None:
    pixels = gray(12)
    small = compressed(np.zeros(pixels.shape, np.uint8), J2K, [unsigned_j2k(pixels, 12)])
    with pytest.raises(DecodeError, match="8 bits"):
        decoded(small)
    fitting = compressed(np.zeros(pixels.shape, np.uint8), J2K, [unsigned_j2k(pixels >> 4, 12)])
    assert np.array_equal(decoded(fitting), pixels >> 4)
    assert decoded(fitting).dtype == np.uint8


def test_a_codestream_without_its_end_marker_is_whole() -> None:
    stream = STREAMS[J2K][0]
    assert j2k_end(stream) == len(stream) - 2
    ds = make_instance(FRAMES[0], BitsStored=12, HighBit=11)
    assert np.array_equal(decoded(with_data(ds, J2K, encapsulated([stream[:-2]]))), FRAMES[0])
    with pytest.raises(TruncatedError, match="lacks 1 bytes"):
        decoded(with_data(ds, J2K, encapsulated([stream[:-3]])))


@pytest.mark.parametrize("syntax", [LOSSLESS, JPEG_LS])
def test_bytes_behind_the_end_of_a_codestream(syntax: str) -> None:
    ds = make_instance(FRAMES[0], BitsStored=12, HighBit=11)
    data = encapsulated([STREAMS[syntax][0] + b"\0" * 500])
    assert np.array_equal(decoded(with_data(ds, syntax, data)), FRAMES[0])


@pytest.mark.parametrize("zeros", [1, 2, 100])
def test_bytes_behind_the_end_of_an_rle_segment(zeros: int) -> None:
    ds = make_instance(FRAMES[0], BitsStored=12, HighBit=11)
    data = encapsulated([STREAMS[RLE][0] + b"\0" * zeros])
    assert np.array_equal(decoded(with_data(ds, RLE, data)), FRAMES[0])


@pytest.mark.parametrize("damage", ["segments", "offset", "short"])
def test_damaged_rle(damage: str) -> None:
    stream = bytearray(STREAMS[RLE][0])
    if damage == "segments":
        stream[0] = 3
    if damage == "offset":
        stream[8:12] = (70).to_bytes(4, "little")
    if damage == "short":
        stream = stream[:-30]
    ds = make_instance(FRAMES[0])
    with pytest.raises((DecodeError, TruncatedError)):
        decoded(with_data(ds, RLE, encapsulated([bytes(stream)])))


def test_a_deflated_bomb_takes_no_memory() -> None:
    bomb = zlib.compress(b"\0" * 2**26, wbits=-15)
    form = FrameFormat(16, 16, 1, 8, 8, 7, False, "MONOCHROME2", False)
    tracemalloc.start()
    decode_frame(bomb, DEFLATED_FRAMES, form)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("uid", "said"),
    [
        ("4.100", "MPEG2"),
        ("4.102", "H.264"),
        ("4.106.1", "H.264"),
        ("4.107", "H.265"),
        ("4.94", "JPIP"),
        ("4.205", "JPIP"),
        ("4.92", "Part 2"),
        ("4.53", "retired"),
        ("4.66", "retired"),
        ("7.1", "2110"),
        ("9.99", "no decoder"),
    ],
)
def test_syntaxes_that_are_refused_are_named(uid: str, said: str) -> None:
    ds = make_instance(gray())
    ds.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.{uid}")
    del ds.PixelData
    with pytest.raises(DecodeError, match=said):
        StoredFrames(ds)


@pytest.mark.parametrize("syntax", [s for s in SYNTAXES if s != DEFLATED_FRAMES])
def test_a_missing_codec_is_named_with_the_command(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = gray(8)
    form = FrameFormat(32, 40, 1, 8, 8, 7, False, "MONOCHROME2", False)
    jpeg, j2k = bytes(imagecodecs.jpeg8_encode(pixels)), unsigned_j2k(pixels, 8)
    streams = {"RLE": rle_frame(pixels), "JPEG 2000": j2k, "HTJ2K": j2k}
    streams["JPEG XL"] = bytes(imagecodecs.jpegxl_encode(pixels))
    name = SYNTAXES[syntax].name
    stream = next((s for start, s in streams.items() if name.startswith(start)), jpeg)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    with pytest.raises(MissingDependencyError) as caught:
        decode_frame(stream, syntax, form, number=4)
    for text in ("frame 5", name, "pip install", "imagecodecs"):
        assert text in str(caught.value)


def test_a_codec_that_imagecodecs_was_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise imagecodecs.DelayedImportError("jpegls_decode")

    monkeypatch.setattr(imagecodecs, "jpegls_decode", missing)
    ds = compressed(FRAMES[0], JPEG_LS, STREAMS[JPEG_LS][:1], BitsStored=12, HighBit=11)
    with pytest.raises(MissingDependencyError, match="JPEG-LS Lossless"):
        decoded(ds)


def test_known_syntaxes_are_not_refused() -> None:
    for syntax in SYNTAXES:
        refuse_syntax(syntax)


def test_jpeg_of_12_bits_and_color_of_lossy_j2k() -> None:
    pixels = gray(12) >> 2 << 2
    stream = bytes(imagecodecs.jpeg8_encode(pixels, level=100, bitspersample=12))
    found = decoded(compressed(pixels, EXTENDED, [stream], BitsStored=12, HighBit=11))
    assert np.abs(found.astype(int) - pixels).max() <= 2
    rgb = smooth_rgb()
    stream = bytes(imagecodecs.jpeg2k_encode(rgb, level=60, codecformat="j2k"))
    values = rgb_of(compressed(rgb, LOSSY_J2K, [stream], PhotometricInterpretation="YBR_ICT"))
    assert np.abs(values - rgb).max() <= 4
