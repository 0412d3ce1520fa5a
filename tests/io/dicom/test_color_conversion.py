"""Color differences, what a JPEG knows of its colors, and palettes."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
from pydicom.pixels.processing import apply_color_lut, convert_color_space

from medimg.errors import DecodeError
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.values._color_conversion import expand_segments
from tests.dicom_files import make_instance
from tests.io.dicom.encodings import (
    J2K,
    JPEG,
    JPEG_LS,
    LOSSLESS,
    RLE,
    RNG,
    compressed,
    decoded,
    rgb_of,
    rle_frame,
    smooth_rgb,
)


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
    stored, is_rgb = source.decode(0)
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
    stored, is_rgb = StoredFrames(ds).decode(0)
    assert not is_rgb
    assert np.array_equal(stored, ycc)
    expected = convert_color_space(ycc, "YBR_FULL", "RGB").astype(int)
    assert np.abs(rgb_of(ds) - expected).max() <= 1
    ds.PhotometricInterpretation = "RGB"
    stored, is_rgb = StoredFrames(ds).decode(0)
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
