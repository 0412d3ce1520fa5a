"""PNG, JPEG, BMP, WebP and GIF: no bits lost silently, nothing sound called damaged."""

from __future__ import annotations

import io
import struct
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
from PIL import Image, ImageOps

import medimg
from medimg.errors import DecodeError, MedimgError, NotAnImageError, TruncatedError
from medimg.io.dicom.pixels.codestream import read_codestream
from medimg.testing import damaged

RNG = np.random.default_rng(8)
#: Color types of PNG, with the number of samples and of those that are colors.
COLOR_TYPES = {0: (1, 1), 2: (3, 3), 4: (2, 1), 6: (4, 3)}


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: npt.NDArray[Any], color_type: int, *extra: bytes) -> bytes:
    """A PNG (H, W, C) of 8 or 16 bits."""
    bits = 8 * samples.itemsize
    rows = b"".join(b"\0" + row.astype(samples.dtype.newbyteorder(">")).tobytes() for row in samples)
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, color_type, 0, 0, 0)
    parts = (chunk(b"IHDR", head), *extra, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def saved(array: npt.NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (array if isinstance(array, Image.Image) else Image.fromarray(array)).save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@settings(deadline=None, max_examples=60)
@given(
    color_type=st.sampled_from(list(COLOR_TYPES)),
    dtype=st.sampled_from(["u1", "u2"]),
    gray=st.booleans(),
    transparent=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_bit_of_a_png_is_lost(
    color_type: int, dtype: str, gray: bool, transparent: bool, seed: int
) -> None:
    count, colors = COLOR_TYPES[color_type]
    rng = np.random.default_rng(seed)
    values = rng.integers(0, np.iinfo(dtype).max, (5, 7, count), dtype=dtype, endpoint=True)
    if gray:
        values[..., :colors] = values[..., :1]
    extra = (chunk(b"tRNS", bytes(2 * count)),) if transparent and color_type in (0, 2) else ()
    volume = medimg.read(png(values, color_type, *extra))
    kept = 1 if gray else colors
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array[:, 0], np.moveaxis(values[..., :kept], -1, 0))
    assert volume.is_color == (kept == 3)
    is_dropped = "transparency dropped" in volume.report.transforms
    assert is_dropped == (count > colors or bool(extra))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "deep PNG", "JPEG", "lossless JPEG", "WebP"])
def test_images_are_turned_upright(kind: str, orientation: int) -> None:
    """As Pillow turns them; in the formats that Pillow does not decode the same way."""
    gray = np.zeros((16, 24), np.uint8)
    gray[:8, :8] = 240
    gray[:8, 8:16] = 120
    plain = saved(gray, "JPEG" if "JPEG" in kind else "PNG", exif=exif(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(plain))))
    data = plain
    if kind == "deep PNG":
        tag = plain[plain.index(b"eXIf") - 4 :][
            : 12 + int.from_bytes(plain[plain.index(b"eXIf") - 4 :][:4], "big")
        ]
        data = png(np.stack([257 * gray.astype(np.uint16)] * 3, -1), 2, tag)
    if kind == "lossless JPEG":
        start = plain.index(b"\xff\xe1")
        segment = plain[start : start + 2 + int.from_bytes(plain[start + 2 : start + 4], "big")]
        data = bytes(imagecodecs.jpeg8_encode(gray.astype(np.uint16) * 257, lossless=True, bitspersample=16))
        data = data[:2] + segment + data[2:]
    if kind == "WebP":
        data = saved(np.stack([gray] * 3, -1), "WEBP", lossless=True, exif=exif(orientation))
    (series,) = medimg.scan(data)
    volume = series.read()
    assert series.shape[2:] == volume.shape[2:] == expected.shape
    scale = 257 if volume.array.dtype == np.uint16 else 1
    assert np.allclose(volume.array[0, 0] / scale, expected, atol=3)
    assert ("turned upright by its EXIF tag" in volume.report.transforms) == (orientation > 1)


@pytest.mark.parametrize("color", [False, True])
@pytest.mark.parametrize(
    "kind", ["lossless 8", "lossless 12", "lossless 16", "12 bits", "JPEG-LS 8", "JPEG-LS 12"]
)
def test_jpeg_of_any_depth(kind: str, color: bool) -> None:
    bits = int(kind.rsplit(maxsplit=1)[-1]) if kind != "12 bits" else 12
    smooth = np.add.outer(np.arange(32), np.arange(40)) * (2**bits // 100)
    values = smooth.astype(np.uint8 if bits == 8 else np.uint16)
    if color:
        values = np.stack([values, values // 2, values // 3], -1)
    if kind.startswith("JPEG-LS"):
        data = bytes(imagecodecs.jpegls_encode(values))
    else:
        options = {"lossless": True} if kind.startswith("lossless") else {"level": 100}
        data = bytes(imagecodecs.jpeg8_encode(values, bitspersample=bits, **options))
    (series,) = medimg.scan(data)
    volume = series.read()
    assert (series.format, volume.array.dtype) == ("JPEG", values.dtype)
    assert series.shape == volume.shape
    header = read_codestream(data)
    assert header is not None
    precision = header.precision
    white = 2**precision - 1
    expected = values.astype(np.float64) * (65535 / white if color and 8 < precision < 16 else 1)
    found = np.moveaxis(volume.array[:, 0], 0, -1) if color else volume.array[0, 0]
    assert np.abs(found - expected).max() <= (0.01 * expected.max() if kind == "12 bits" else 1)
    with pytest.raises(MedimgError, match=r"truncated|damaged|is JPEG"):
        medimg.read(data[: len(data) // 2])


def test_a_thumbnail_does_not_hide_a_truncation() -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = bytes(imagecodecs.jpeg8_encode(values, lossless=True, bitspersample=12))
    thumbnail = b"\xff\xe1\x00\x0aExif\0\0\xff\xd9"
    assert np.array_equal(medimg.read(data[:2] + thumbnail + data[2:]).array[0, 0], values)
    with pytest.raises(TruncatedError, match="end marker"):
        medimg.read(data[:2] + thumbnail + data[2:-40])


@pytest.mark.parametrize("kind", ["BMP", "WEBP", "GIF"])
@pytest.mark.parametrize("color", [False, True])
def test_other_stills(tmp_path: Path, kind: str, color: bool) -> None:
    values = RNG.integers(0, 256, (9, 13, 3) if color else (9, 13)).astype(np.uint8)
    if color and kind == "GIF":
        values[..., 1:] = values[..., 1:] // 64 * 64
        values[..., 0] = 0
    path = tmp_path / "no-extension"
    path.write_bytes(saved(values, kind, **({"lossless": True} if kind == "WEBP" else {})))
    (series,) = medimg.scan(tmp_path)
    volume = series.read()
    assert series.format.upper() == volume.report.format.upper() == kind
    assert np.array_equal(np.moveaxis(volume.array[:, 0], 0, -1), values if color else values[..., None])
    for check in medimg.testing.READER_CHECKS:
        check(series)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP"])
def test_animations_are_refused_and_not_cut(kind: str) -> None:
    frames = [Image.fromarray(RNG.integers(0, 256, (9, 13)).astype(np.uint8)) for _ in range(3)]
    with pytest.raises(DecodeError, match="animation"):
        medimg.read(saved(frames[0], kind, save_all=True, append_images=frames[1:]))


def test_a_text_that_begins_like_bmp_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"BMI and age of each patient\n" * 9)
    assert "none of" in medimg.scan(tmp_path).skipped[0].reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF"])
def test_sound_images_of_many_pixels_are_read(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Pillow's own limit, made small here, refuses them as an attack."""
    values = RNG.integers(0, 256, (30, 40)).astype(np.uint8)
    data = saved(values, kind, **({"quality": 100} if kind == "JPEG" else {}))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))
    assert np.abs(medimg.read(data).array[0, 0].astype(int) - values).max() <= 2


@pytest.mark.parametrize("side", [5_000, 60_000])
def test_absurd_sizes_take_no_memory(side: int) -> None:
    size = struct.pack(">II", side, side)
    plain = png(np.zeros((2, 2, 1), np.uint8), 0)
    forged = plain[:8] + chunk(b"IHDR", size + plain[24:29]) + plain[33:]
    webp = bytearray(saved(np.zeros((8, 8, 3), np.uint8), "WEBP", lossless=True))
    webp[21:25] = struct.pack("<I", 0x0FFFFFFF)
    jpeg = bytearray(saved(np.zeros((8, 8), np.uint8), "JPEG"))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = struct.pack(">HH", side, side)
    for data in (forged, bytes(jpeg), bytes(webp)):
        tracemalloc.start()
        with pytest.raises(MedimgError, match=r"unreasonably large|too many|truncated"):
            medimg.read(data)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(("kind", "count"), [(b"zTXt", 1), (b"zTXt", 70), (b"iTXt", 1), (b"tEXt", 1)])
def test_long_texts_do_not_damage_a_png(kind: bytes, count: int, behind: bool) -> None:
    """Pillow refuses texts of more than 1 MB each, and of more than 64 MB in all."""
    values = RNG.integers(0, 256, (5, 7, 1)).astype(np.uint8)
    long = b" " * (2**20 + (1 if count == 1 else -99))
    packed = zlib.compress(long, 1)
    contents = {b"zTXt": b"k\0\0" + packed, b"iTXt": b"k\0\1\0\0\0" + packed, b"tEXt": b"k\0" + long}
    whole = png(values, 0)
    at = len(whole) - 12 if behind else 33
    data = whole[:at] + chunk(kind, contents[kind]) * count + whole[at:]
    assert np.array_equal(medimg.read(data).array[0, 0], values[..., 0])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_gray_of_few_bits_fills_the_range(bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint8)[None]
    image = Image.fromarray(values * 255).convert("1") if bits == 1 else Image.fromarray(values)
    volume = medimg.read(saved(image, "PNG", bits=bits))
    assert np.array_equal(volume.array[0, 0], values * (255 // (2**bits - 1)))
    assert volume.report.transforms == ((f"{bits} bits scaled to 8",) if bits < 8 else ())


def test_color_spaces_are_named() -> None:
    cmyk = Image.fromarray(RNG.integers(0, 256, (9, 13, 4)).astype(np.uint8), "CMYK")
    assert "CMYK to RGB" in medimg.read(saved(cmyk, "JPEG")).report.transforms


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF"])
def test_any_damage_gives_a_volume_or_a_medimg_error(kind: str) -> None:
    whole = saved(RNG.integers(0, 256, (9, 13, 3)).astype(np.uint8), kind)
    for data in damaged(whole, count=60, seed=1):
        try:
            medimg.read(data)
        except MedimgError as error:
            assert str(error)  # noqa: PT017  # either outcome is right


def test_other_files_are_no_still_images() -> None:
    from medimg.io.files.blob import Blob
    from medimg.io.formats.still_image import open_image

    with pytest.raises(NotAnImageError):
        open_image(Blob("<bytes>", data=b"nothing"))


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(["jp2", "j2k"]),
    dtype=st.sampled_from(["u1", "u2", "i2"]),
    bits=st.integers(9, 16),
    color=st.booleans(),
    seed=st.integers(0, 99),
)
def test_no_bit_of_jpeg_2000_is_lost(kind: str, dtype: str, bits: int, color: bool, seed: int) -> None:
    rng, color = np.random.default_rng(seed), color and dtype != "i2"
    bits = 8 if dtype == "u1" else bits
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if dtype == "i2" else (0, 2**bits)
    values = rng.integers(low, high, (33, 40, 3) if color else (33, 40)).astype(dtype)
    data = imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat=kind, bitspersample=bits)
    (series,) = medimg.scan(data)
    volume = series.read()
    assert (series.format, series.shape) == ("JPEG 2000", volume.shape)
    expected = np.moveaxis(values, -1, 0) if color else values[None]
    if color and 8 < bits < 16:
        expected = (expected.astype(np.uint32) * 65535 // (2**bits - 1)).astype(np.uint16)
        assert f"{bits} bits scaled to 16" in volume.report.transforms
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array[:, 0], expected)
    with pytest.raises(MedimgError):
        medimg.read(data[: len(data) // 2])


def test_transparency_of_jpeg_2000_is_dropped_and_few_bits_scaled() -> None:
    values = RNG.integers(0, 256, (20, 21, 4), dtype=np.uint8)
    volume = medimg.read(saved(values, "JPEG2000", irreversible=False))
    assert np.array_equal(volume.array[:, 0], np.moveaxis(values[..., :3], -1, 0))
    assert volume.report.transforms == ("transparency dropped",)
    few = RNG.integers(0, 16, (20, 21), dtype=np.uint8)
    volume = medimg.read(imagecodecs.jpeg2k_encode(few, level=0, reversible=True, bitspersample=4))
    assert np.array_equal(volume.array[0, 0], few * 17)
    assert volume.report.transforms == ("4 bits scaled to 8",)


def test_jpeg_2000_that_the_decoder_would_misread_is_refused() -> None:
    data = bytearray(imagecodecs.jpeg2k_encode(RNG.integers(0, 256, (20, 21, 3), dtype=np.uint8), level=0))
    at = data.index(b"colr") + 7
    assert data[at : at + 4] == (16).to_bytes(4, "big")
    data[at + 3] = 18
    with pytest.raises(DecodeError, match="YCbCr"):
        medimg.read(bytes(data))
    with pytest.raises(MedimgError):
        medimg.read(bytes(data[:60]))
