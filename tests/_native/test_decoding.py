"""The compiled decoders against NumPy and imagecodecs: the same values, and the same errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medimg._native.library import describe_library, load_library
from medimg.errors import MedimgError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.dicom.header.image_pixel import FrameFormat
from medimg.io.dicom.header.open import open_dataset
from medimg.io.dicom.pixels import _codecs
from medimg.io.dicom.pixels._codecs import decode_frame
from medimg.io.dicom.pixels._frames import StoredFrames
from medimg.io.dicom.values import _color_conversion
from medimg.io.dicom.values._color_conversion import Palette
from tests.io.dicom.encodings import BUNDLED, RLE, values_of
from tests.sampling import SLOW, sample

pytestmark = pytest.mark.skipif(load_library() is None, reason=f"compiled library: {describe_library()}")


def both_ways(function: Any, *arguments: Any) -> list[Any]:
    """Return what a function gives, or its error, with the compiled library and without."""
    results: list[Any] = []
    for library in (load_library(), None):
        with pytest.MonkeyPatch.context() as patch:
            for module in (_codecs, _color_conversion):
                patch.setattr(module, "load_library", lambda found=library: found)
            try:
                results.append(function(*arguments))
            except MedimgError as error:
                results.append((type(error), str(error)))
    return results


def decode(data: bytes, fmt: FrameFormat) -> npt.NDArray[Any]:
    return decode_frame(data, RLE, fmt).values


def assert_same(compiled: Any, plain: Any) -> None:
    if isinstance(plain, tuple):
        assert compiled == plain
        return
    assert compiled.dtype == plain.dtype
    assert np.array_equal(compiled, plain)


def pack(data: bytes, rng: np.random.Generator) -> bytes:
    """PackBits of bytes in runs of any lengths, with no-operations between them."""
    packed, at = b"", 0
    while at < len(data):
        count = int(rng.integers(1, 129)) if rng.random() < 0.5 else int(rng.integers(1, 8))
        run = len(data[at : at + count]) - len(data[at : at + count].lstrip(data[at : at + 1]))
        if run > 1:
            packed += bytes([257 - run, data[at]])
            at += run
        else:
            literal = data[at : at + count]
            packed += bytes([len(literal) - 1]) + literal
            at += count
        packed += b"\x80" * int(rng.random() < 0.1)
    return packed


def make_frame(fmt: FrameFormat, rng: np.random.Generator) -> tuple[bytes, list[bytes]]:
    """A frame of random values, in runs, and the bytes of its planes."""
    plane = fmt.rows * fmt.columns
    if fmt.bits_allocated == 1:
        plane = (plane + 7) // 8
    planes, segments = [], []
    for _ in range(fmt.samples * fmt.dtype.itemsize):
        values = rng.integers(0, 256, plane, dtype=np.uint8)
        if rng.random() < 0.7:
            values = np.repeat(values, rng.integers(1, 40, plane))[:plane]
        planes.append(values.tobytes())
        segments.append(pack(planes[-1] + bytes(int(rng.integers(0, 4))), rng))
    offsets = np.cumsum([64, *map(len, segments[:-1])]).tolist()
    header = np.array([len(segments), *offsets, *[0] * (15 - len(segments))], "<u4")
    return header.tobytes() + b"".join(segments), planes


@st.composite
def formats(draw: st.DrawFn) -> FrameFormat:
    """Formats of small RLE frames."""
    bits = draw(st.sampled_from([1, 8, 16, 32]))
    samples = 1 if bits == 1 else draw(st.sampled_from([1, 3]))
    rows, columns = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    photometric = "RGB" if samples == 3 else "MONOCHROME2"
    return FrameFormat(rows, columns, samples, bits, bits, bits - 1, False, photometric, False)


@settings(deadline=None)
@given(fmt=formats(), seed=st.integers(0, 2**31))
def test_rle_frames_are_decoded(fmt: FrameFormat, seed: int) -> None:
    frame, planes = make_frame(fmt, np.random.default_rng(seed))
    compiled, plain = both_ways(decode, frame, fmt)
    assert_same(compiled, plain)
    if fmt.bits_allocated > 1:
        width, shape = fmt.dtype.itemsize, (fmt.samples, fmt.rows, fmt.columns)
        bytes_of = np.moveaxis(compiled, -1, 0) if fmt.samples == 3 else compiled[None]
        split = np.ascontiguousarray(bytes_of).astype(f">u{width}").view(np.uint8).reshape(*shape, width)
        assert [split[n, ..., k].tobytes() for n in range(fmt.samples) for k in range(width)] == planes


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_frames_of_several_pieces(bits: int) -> None:
    """Runs go on from one piece of the decoder to the next."""
    fmt = FrameFormat(123, 71, 1, bits, bits, bits - 1, False, "MONOCHROME2", False)
    frame, planes = make_frame(fmt, np.random.default_rng(bits))
    compiled, plain = both_ways(decode, frame, fmt)
    assert_same(compiled, plain)
    assert compiled.astype(f">u{bits // 8}").tobytes()[:: bits // 8] == planes[0]
    assert_same(*both_ways(decode, frame[:-200], fmt))


@settings(deadline=None, max_examples=2000 if SLOW else 100)
@given(fmt=formats(), seed=st.integers(0, 2**31))
def test_damaged_rle_frames_are_the_same_errors(fmt: FrameFormat, seed: int) -> None:
    rng = np.random.default_rng(seed)
    frame = bytearray(make_frame(fmt, rng)[0])
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(0, 64 if rng.random() < 0.3 else len(frame)))
        kind = rng.integers(0, 4)
        if kind == 0:
            frame[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            del frame[at : at + int(rng.integers(1, 100))]
        elif kind == 2:
            frame[at:at] = rng.choice([b"\x80", b"\x7f", b"\x81\0", b"\xff\xff\xff\xff"])
        else:
            del frame[at:]
        if not frame:
            break
    assert_same(*both_ways(decode, bytes(frame), fmt))


@pytest.mark.parametrize("segment", [b"", b"\x80" * 500, b"\x7f" + b"\x01" * 127, b"\x81", b"\x00"])
def test_segments_that_end_in_a_run_are_short(segment: bytes) -> None:
    fmt = FrameFormat(8, 16, 1, 8, 8, 7, False, "MONOCHROME2", False)
    frame = np.array([1, 64, *[0] * 14], "<u4").tobytes() + segment
    compiled, plain = both_ways(decode, frame, fmt)
    assert compiled == plain
    assert "128 bytes holds 0" in compiled[1]


def test_more_segments_than_a_header_lists() -> None:
    fmt = FrameFormat(2, 3, 3, 64, 64, 63, False, "RGB", False)
    frame, _ = make_frame(FrameFormat(2, 3, 3, 32, 32, 31, False, "RGB", False), np.random.default_rng(0))
    compiled, plain = both_ways(decode, np.uint32(24).tobytes() + frame[4:], fmt)
    assert compiled == plain
    assert "24 would be needed" in plain[1]


@settings(deadline=None)
@given(
    dtype=st.sampled_from(["u1", "i1", "u2", "i2", "u4"]),
    first=st.integers(-32768, 65535),
    entries=st.integers(1, 300),
    seed=st.integers(0, 2**31),
)
def test_palettes_are_applied(dtype: str, first: int, entries: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    palette = Palette(first, rng.integers(0, 256, (3, entries), dtype=np.uint8))
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    near = np.clip(rng.integers(first - 20, first + entries + 20, (14, 9)), low, high)
    anywhere = rng.integers(low, high, (14, 9), endpoint=True)
    stored = np.where(rng.random((14, 9)) < 0.7, near, anywhere).astype(dtype)[::2, ::-1]
    compiled, plain = both_ways(palette.apply, stored)
    assert_same(compiled, plain)
    index = np.clip(stored.astype(np.int64) - first, 0, entries - 1)
    assert np.array_equal(compiled, palette.colors.T[index])


def list_files(folder: Path) -> list[Path]:
    """DICOM files in RLE, with palettes, or of single bits."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in {".pth", ".zip"}):
        with quiet_pydicom():
            try:
                header = pydicom.dcmread(path, stop_before_pixels=True)
            # anything else in the folder is no DICOM file
            except Exception:
                continue
            syntax = getattr(header.file_meta, "TransferSyntaxUID", "")
            facts = header.get("PhotometricInterpretation"), header.get("BitsAllocated")
        if syntax == RLE or facts[0] == "PALETTE COLOR" or facts[1] == 1:
            found.append(path)
    return found


def frames_of(path: Path) -> list[npt.NDArray[Any]]:
    with quiet_pydicom():
        dataset = open_dataset(path)
        source = StoredFrames(dataset)
        stored = [source.decode(number)[0] for number in range(min(source.count, 10))]
        return [*stored, values_of(dataset).array]  # type: ignore[arg-type]  # any dataset does


def compare_files(files: list[Path]) -> int:
    """Compare both ways on files; return how many can be read."""
    readable = 0
    for path in files:
        compiled, plain = both_ways(frames_of, path)
        if isinstance(plain, tuple):
            assert compiled == plain, path.name
            continue
        for one, other in zip(compiled, plain, strict=True):
            assert_same(one, other)
        readable += 1
    return readable


def test_bundled_files() -> None:
    assert compare_files(sample(list_files(BUNDLED)))


def test_real_files(real_data: Path) -> None:
    folders = [
        real_data / "dicom_misc" / name for name in ("pydicom_examples", "pylibjpeg-data", "highdicom")
    ]
    files = [path for folder in (folders if not SLOW else [real_data]) for path in list_files(folder)]
    assert compare_files(sample(files))
