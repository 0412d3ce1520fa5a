"""Codestreams that contradict their header, are damaged, or have no decoder."""

from __future__ import annotations

import io
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.uid import UID

import medimg
from medimg.errors import DecodeError, MissingDependencyError, TruncatedError
from medimg.io.dicom.header.image_pixel import FrameFormat
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.header.transfer_syntax import SYNTAXES, check_syntax
from medimg.io.dicom.pixels import _codecs
from medimg.io.dicom.pixels._codecs import decode_frame
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.pixels._native import NativeFrames
from medimg.io.dicom.pixels.codestream import find_j2k_end, read_codestream
from tests.dicom_files import make_instance
from tests.io.dicom.encodings import (
    DEFLATED_FRAMES,
    EXTENDED,
    FRAMES,
    J2K,
    JPEG_LS,
    JPEG_XL,
    LOSSLESS,
    LOSSY_J2K,
    RLE,
    RNG,
    STREAMS,
    UNCOMPRESSED_FRAMES,
    codestream_size,
    compressed,
    decoded,
    encapsulated,
    gray,
    rgb_of,
    rle_frame,
    smooth_rgb,
    values_of,
    with_data,
)


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


@settings(deadline=None)
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
    assert values_of(ds).transforms == ("rescaled: 1 × stored − 1024",)
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
    assert find_j2k_end(stream) == len(stream) - 2
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


def packed(draw: st.DrawFn, data: bytes) -> bytes:
    """PackBits of bytes, as any encoder may choose the runs."""
    segment, at = b"", 0
    while at < len(data):
        count = draw(st.integers(1, 128))
        run = len(data[at : at + count]) - len(data[at : at + count].lstrip(data[at : at + 1]))
        if run > 1 and draw(st.booleans()):
            segment += bytes([257 - run]) + data[at : at + 1]
            at += run
        else:
            segment += bytes([len(data[at : at + count]) - 1]) + data[at : at + count]
            at += count
        segment += b"\x80" * draw(st.integers(0, 2))
    return segment


@st.composite
def segments(draw: st.DrawFn) -> tuple[bytes, bytes, bytes]:
    """The bytes of a plane, their segment, which may run past them, and what a file has behind it."""
    plane = draw(st.binary(min_size=6, max_size=6)) * 4
    behind = draw(st.binary(max_size=5)) if draw(st.booleans()) else b""
    return plane, packed(draw, plane + behind), draw(st.binary(max_size=200))


@settings(deadline=None)
@given(drawn=segments())
def test_nothing_after_the_last_byte_of_an_rle_segment_matters(drawn: tuple[bytes, bytes, bytes]) -> None:
    plane, segment, tail = drawn
    form = FrameFormat(4, 6, 1, 8, 8, 7, False, "MONOCHROME2", False)
    header = b"".join(n.to_bytes(4, "little") for n in (1, 64, *[0] * 14))
    assert decode_frame(header + segment + tail, RLE, form).values.tobytes() == plane


@settings(deadline=None)
@given(data=st.binary(min_size=24, max_size=24), left=st.integers(0, 24))
def test_an_rle_segment_that_is_too_short_is_an_error(data: bytes, left: int) -> None:
    form = FrameFormat(4, 6, 1, 8, 8, 7, False, "MONOCHROME2", False)
    header = b"".join(n.to_bytes(4, "little") for n in (1, 64, *[0] * 14))
    with pytest.raises(TruncatedError, match="24 bytes holds"):
        decode_frame(header + (bytes([23]) + data)[:left], RLE, form)


@pytest.mark.parametrize(
    ("photometric", "samples", "planar", "bits"),
    [
        ("MONOCHROME2", 1, False, 1),
        ("MONOCHROME2", 1, False, 8),
        ("MONOCHROME2", 1, False, 16),
        ("RGB", 3, False, 8),
        ("RGB", 3, True, 8),
        ("YBR_FULL_422", 3, False, 8),
    ],
)
@pytest.mark.parametrize("syntax", [UNCOMPRESSED_FRAMES, DEFLATED_FRAMES])
def test_encapsulated_frames_are_the_native_ones(
    syntax: str, photometric: str, samples: int, planar: bool, bits: int
) -> None:
    """Frames of an odd number of bytes start at an even one; those of single bits at a byte of their own."""
    form = FrameFormat(3, 6 if samples == 3 else 5, samples, bits, bits, bits - 1, False, photometric, planar)
    per_pixel = 2 if photometric == "YBR_FULL_422" else samples
    size = (form.rows * form.columns * per_pixel * bits + 7) // 8
    frames = [RNG.integers(0, 256, size).astype(np.uint8).tobytes() for _ in range(3)]
    ds = make_instance(np.zeros(form.shape, f"u{max(1, bits // 8)}"), NumberOfFrames=3)
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, bits, bits - 1
    ds.PhotometricInterpretation, ds.PlanarConfiguration = photometric, int(planar)
    deflated = [zlib.compress(f, wbits=-15) for f in frames]
    stored = deflated if syntax == DEFLATED_FRAMES else frames
    with_data(ds, syntax, encapsulated([f + b"\0" * (len(f) % 2) for f in stored]))
    for number, frame in enumerate(frames):
        assert np.array_equal(decoded(ds, number), NativeFrames(frame, form, 1).get_frame(0))
    with_data(ds, UNCOMPRESSED_FRAMES, encapsulated([f[:-1] for f in frames]))
    with pytest.raises(TruncatedError, match="too few"):
        decoded(ds)


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


@pytest.mark.parametrize("bits", [-15, 15, 31])
def test_deflated_data_in_a_wrapper(bits: int) -> None:
    """PS3.5 A.5 and A.4.13 mean raw deflate; some writers add the header of zlib, or of gzip."""

    def pack(data: bytes) -> bytes:
        packer = zlib.compressobj(wbits=bits)
        return packer.compress(data) + packer.flush()

    pixels = gray(8)
    ds = make_instance(pixels, RescaleIntercept=0)
    frames = with_data(make_instance(pixels), DEFLATED_FRAMES, encapsulated([pack(pixels.tobytes())]))
    assert np.array_equal(decoded(frames), pixels)
    ds.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    data = file.getvalue()
    start = 144 + int.from_bytes(data[140:144], "little")
    plain = zlib.decompress(data[start:], -15)
    assert np.array_equal(medimg.read(data[:start] + pack(plain)).array[0, 0], pixels)


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


@pytest.mark.parametrize("syntax", [s for s in SYNTAXES if s not in (DEFLATED_FRAMES, UNCOMPRESSED_FRAMES)])
def test_a_missing_codec_is_named_with_the_command(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = gray(8)
    form = FrameFormat(32, 40, 1, 8, 8, 7, False, "MONOCHROME2", False)
    jpeg, j2k = bytes(imagecodecs.jpeg8_encode(pixels)), unsigned_j2k(pixels, 8)
    streams = {"RLE": rle_frame(pixels), "JPEG 2000": j2k, "HTJ2K": j2k}
    streams["JPEG XL"] = bytes(imagecodecs.jpegxl_encode(pixels))
    name = SYNTAXES[syntax].name
    stream = next((s for start, s in streams.items() if name.startswith(start)), jpeg)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    # the compiled library needs no codec for RLE
    monkeypatch.setattr(_codecs, "load_library", lambda: None)
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
        check_syntax(syntax)


def test_jpeg_of_12_bits_and_color_of_lossy_j2k() -> None:
    pixels = gray(12) >> 2 << 2
    stream = bytes(imagecodecs.jpeg8_encode(pixels, level=100, bitspersample=12))
    found = decoded(compressed(pixels, EXTENDED, [stream], BitsStored=12, HighBit=11))
    assert np.abs(found.astype(int) - pixels).max() <= 2
    rgb = smooth_rgb()
    stream = bytes(imagecodecs.jpeg2k_encode(rgb, level=60, codecformat="j2k"))
    values = rgb_of(compressed(rgb, LOSSY_J2K, [stream], PhotometricInterpretation="YBR_ICT"))
    assert np.abs(values - rgb).max() <= 4


def test_damaged_pixel_data_gives_pixels_or_an_error() -> None:
    rng = np.random.default_rng(5)
    outcomes = {"pixels": 0, "errors": 0}
    for syntax, streams in STREAMS.items():
        for _ in range(60):
            data = bytearray(encapsulated(streams))
            for place in rng.integers(0, len(data) if rng.random() < 0.5 else 100, rng.integers(1, 5)):
                data[place] = rng.integers(256)
            ds = make_instance(FRAMES[0], NumberOfFrames=3, BitsStored=12, HighBit=11)
            try:
                source = StoredFrames(with_data(ds, syntax, bytes(data)))
                for number in range(3):
                    assert source.decode(number)[0].shape == FRAMES[0].shape
                outcomes["pixels"] += 1
            except (DecodeError, TruncatedError):
                outcomes["errors"] += 1
    assert min(outcomes.values()) > 20, outcomes
