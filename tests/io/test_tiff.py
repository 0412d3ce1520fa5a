"""TIFF: any type of values and any stack, as written here, by Pillow and by ITK; damaged and hostile ones."""

from __future__ import annotations

import io
import struct
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813  # the field's habit
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import medimg
from medimg.errors import DecodeError, MedimgError, TruncatedError
from medimg.testing import damaged

RNG = np.random.default_rng(9)
DTYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
CODES = {1: "B", 2: "B", 3: "H", 4: "I", 16: "Q"}
Tags = Mapping[int, tuple[int, Sequence[int]]]


def directory(tags: Tags, at: int, order: str, big: bool, last: bool) -> bytes:
    """A directory that begins at `at`, its longer values behind it; the next one follows at once."""
    width = 8 if big else 4
    word = "Q" if big else "I"
    behind = at + (8 if big else 2) + len(tags) * (4 + 2 * width) + width
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{CODES[kind]}", *numbers)
        entries += struct.pack(f"{order}HH{word}", tag, kind, len(numbers))
        if len(data) <= width:
            entries += data.ljust(width, b"\0")
        else:
            entries += struct.pack(order + word, behind + len(values))
            values += data + b"\0" * (len(data) % 2)
    count = struct.pack(order + ("Q" if big else "H"), len(tags))
    return count + entries + struct.pack(order + word, 0 if last else behind + len(values)) + values


def tiff(
    pages: Sequence[npt.NDArray[Any]],
    *,
    order: Literal["<", ">"] = "<",
    big: bool = False,
    planar: bool = False,
    **tags: Any,
) -> bytes:
    """Uncompressed pages (H, W) or (H, W, C); tags by their number: ``t262=(3, [0])``."""
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
    data = b""
    wanted: list[dict[int, tuple[int, Sequence[int]]]] = []
    for page in pages:
        height, width = page.shape[:2]
        samples = page.shape[2] if page.ndim == 3 else 1
        stored = page.astype(page.dtype.newbyteorder(order))
        planes = [stored[..., n] for n in range(samples)] if planar and samples > 1 else [stored]
        starts = []
        for plane in planes:
            starts.append(len(head) + len(data))
            data += plane.tobytes()
            data += b"\0" * (len(data) % 2)
        found: dict[int, tuple[int, Sequence[int]]] = {
            256: (4, [width]), 257: (4, [height]), 258: (3, [8 * page.itemsize] * samples), 259: (3, [1]),
            262: (3, [2 if samples > 2 else 1]), 273: (4, starts), 277: (3, [samples]), 278: (4, [height]),
            279: (4, [stored.nbytes // len(planes)] * len(planes)), 284: (3, [2 if planar else 1]),
            339: (3, [{"u": 1, "i": 2, "f": 3}[page.dtype.kind]] * samples),
        }  # fmt: skip
        wanted.append(found | {int(tag[1:]): value for tag, value in tags.items()})
    first = struct.pack(order + ("Q" if big else "I"), len(head) + len(data))
    file = head[: -len(first)] + first + data
    for n, page_tags in enumerate(wanted):
        file += directory(page_tags, len(file), order, big, n == len(wanted) - 1)
    return file


def draw_values(dtype: str, shape: tuple[int, ...], seed: int) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    if dtype[0] == "f":
        return (rng.standard_normal(shape) * 1000).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


@settings(deadline=None, max_examples=80)
@given(
    dtype=st.sampled_from(DTYPES),
    order=st.sampled_from("<>"),
    big=st.booleans(),
    pages=st.integers(1, 4),
    samples=st.sampled_from([1, 2, 3, 4]),
    planar=st.booleans(),
    alpha=st.booleans(),
    orientation=st.integers(1, 8),
    seed=st.integers(0, 99),
)
def test_any_tiff_is_read_without_loss(
    *, dtype: str, order: Literal["<", ">"], big: bool, pages: int, samples: int, planar: bool, alpha: bool,
    orientation: int, seed: int,
) -> None:  # fmt: skip
    shape = (3, 5) if samples == 1 else (3, 5, samples)
    values = draw_values(dtype, (pages, *shape), seed)
    colors = 3 if samples > 2 else 1
    tags: dict[str, Any] = {"t274": (3, [orientation])}
    if samples > colors:
        tags["t338"] = (3, [2 if alpha else 0])
    data = tiff(list(values), order=order, big=big, planar=planar, **tags)
    (series,) = medimg.scan(data)
    volume = series.read()
    kept = colors if colors == 3 or alpha else samples
    stored = values.reshape(pages, 3, 5, samples)[..., :kept]
    expected = np.moveaxis(stored, -1, 0)
    expected = np.flip(expected, -1) if orientation in (2, 3, 6, 7) and orientation < 5 else expected
    expected = np.flip(expected, -2) if orientation in (3, 4) else expected
    if orientation >= 5:
        expected = np.rot90(expected, {5: 0, 6: -1, 7: 0, 8: 1}[orientation], (-2, -1))
        expected = expected if orientation in (6, 8) else expected.swapaxes(-1, -2)
        expected = np.flip(expected, (-2, -1)) if orientation == 7 else expected
    assert series.shape == volume.shape == expected.shape
    assert volume.array.dtype == (np.float32 if dtype == "f2" else dtype)
    assert np.array_equal(volume.array, expected)
    assert volume.is_color == (colors == 3 and dtype in ("u1", "u2"))
    dropped = samples > kept
    assert ("transparency dropped" in volume.report.transforms) == dropped


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("L", {"compression": "tiff_lzw"}),
        ("L", {"compression": "tiff_adobe_deflate"}),
        ("RGB", {"compression": "packbits"}),
        ("I;16", {"compression": "tiff_lzw"}),
        ("F", {"compression": "zstd"}),
        ("1", {"compression": "group4"}),
        ("1", {}),
        ("P", {}),
        ("LA", {}),
        ("RGBA", {}),
    ],
)
def test_tiff_of_pillow(mode: str, options: dict[str, Any]) -> None:
    color = RNG.integers(0, 256, (20, 31, 3)).astype(np.uint8)
    if mode == "I;16":
        image = Image.fromarray(RNG.integers(0, 65536, (20, 31)).astype(np.uint16))
    else:
        image = Image.fromarray(color).convert("L" if mode == "F" else "RGB").convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF", **options)
    expected = (
        image.convert("RGB") if mode in ("P", "RGBA") else image.convert("L") if mode in "1LA" else image
    )
    found = medimg.read(file.getvalue())
    values = np.asarray(expected)
    assert np.array_equal(
        np.moveaxis(found.array[:, 0], 0, -1), values if values.ndim == 3 else values[..., None]
    )


def test_tiff_of_jpeg() -> None:
    smooth = np.indices((32, 40)).sum(0).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.stack([smooth, 2 * smooth, 255 - smooth], -1)).save(file, "TIFF", compression="jpeg")
    found = medimg.read(file.getvalue())
    pillow = np.asarray(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    assert np.abs(np.moveaxis(found.array[:, 0], 0, -1).astype(int) - pillow).max() <= 3


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(("shape", "vector"), [((5, 4), False), ((3, 5, 4), False), ((5, 4, 3), True)])
def test_tiff_of_itk(tmp_path: Path, dtype: str, shape: tuple[int, ...], vector: bool) -> None:
    values = RNG.integers(0, 200, shape).astype(dtype)
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=vector), tmp_path / "a.tif")
    volume = medimg.read(tmp_path / "a.tif")
    found = np.moveaxis(volume.array[:, 0], 0, -1) if vector else volume.array[0]
    assert found.dtype == dtype
    assert np.array_equal(found, values if values.ndim == 3 else values[None])


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("white", [False, True])
def test_gray_of_few_bits_fills_the_range(bits: int, white: bool) -> None:
    packed = RNG.integers(0, 256, (4, bits)).astype(np.uint8)
    places = np.unpackbits(packed, axis=1).reshape(4, 8, bits)
    values = places @ (1 << np.arange(bits)[::-1])
    tags: dict[str, Any] = {"t256": (4, [8]), "t258": (3, [bits]), "t262": (3, [0 if white else 1])}
    volume = medimg.read(tiff([packed], **tags))
    assert np.array_equal(volume.array[0, 0], values * (255 // (2**bits - 1)))
    assert (volume.photometric, volume.inverted) == ("MONOCHROME1" if white else "MONOCHROME2", white)
    assert (f"{bits} bits scaled to 8" in volume.report.transforms) == (bits < 8)


def test_palettes_are_applied() -> None:
    indices = RNG.integers(0, 256, (4, 5)).astype(np.uint8)
    colors = RNG.integers(0, 65536, (3, 256))
    volume = medimg.read(tiff([indices], t262=(3, [3]), t320=(3, colors.ravel().tolist())))
    assert np.array_equal(volume.array[:, 0], colors[:, indices] >> 8)


def text(content: str) -> dict[str, Any]:
    return {"t270": (2, list(content.encode() + b"\0"))}


OME = '<OME><Image><Pixels DimensionOrder="XY{}" SizeX="5" SizeC="{}" SizeZ="{}" SizeT="{}"/></Image></OME>'


@pytest.mark.parametrize(
    ("content", "shape", "first"),
    [
        ("", (1, 6, 3, 5), [[0, 1, 2, 3, 4, 5]]),
        ("anything=7", (1, 6, 3, 5), [[0, 1, 2, 3, 4, 5]]),
        ("ImageJ=1.53\nimages=6\nslices=6\n", (1, 6, 3, 5), [[0, 1, 2, 3, 4, 5]]),
        ("ImageJ=1.53\nimages=6\nframes=6\n", (1, 6, 3, 5), [[0, 1, 2, 3, 4, 5]]),
        ("ImageJ=1.53\nimages=6\nchannels=2\nslices=3\n", (2, 3, 3, 5), [[0, 2, 4], [1, 3, 5]]),
        ("ImageJ=1.53\nimages=6\nframes=2\nslices=3\n", (2, 3, 3, 5), [[0, 1, 2], [3, 4, 5]]),
        (OME.format("CZT", 2, 3, 1), (2, 3, 3, 5), [[0, 2, 4], [1, 3, 5]]),
        (OME.format("ZCT", 2, 3, 1), (2, 3, 3, 5), [[0, 1, 2], [3, 4, 5]]),
        (OME.format("ZTC", 1, 3, 2), (2, 3, 3, 5), [[0, 1, 2], [3, 4, 5]]),
        (OME.format("TZC", 1, 3, 2), (2, 3, 3, 5), [[0, 2, 4], [1, 3, 5]]),
    ],
)
def test_dimensions_of_a_stack(content: str, shape: tuple[int, ...], first: list[list[int]]) -> None:
    pages = [np.full((3, 5), n, np.uint16) for n in range(6)]
    (series,) = medimg.scan(tiff(pages, **(text(content) if content else {})))
    volume = series.read()
    assert series.shape == volume.shape == shape
    assert volume.array[..., 0, 0].tolist() == first
    assert np.array_equal(series.read([1]).array, volume.array[:, 1:2])
    pieces = [piece.array for piece in series.pieces(2)]
    assert np.array_equal(np.concatenate(pieces, axis=1), volume.array)
    for check in medimg.testing.READER_CHECKS:
        check(series)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ImageJ=1.53\nimages=12\nslices=12\n", "12 images"),
        ("ImageJ=1.53\nimages=6\nchannels=4\n", "4 channels"),
        (OME.format("CZT", 2, 1, 3), "one only"),
        (OME.format("CZT", 2, 9, 3), "6 pages"),
    ],
)
def test_stacks_that_are_refused(content: str, message: str) -> None:
    with pytest.raises(DecodeError, match=message):
        medimg.read(tiff([np.zeros((3, 5), np.uint16)] * 6, **text(content)))


def test_pages_that_are_no_stack() -> None:
    with pytest.raises(DecodeError, match="different sizes"):
        medimg.read(tiff([np.zeros((3, 5), np.uint8), np.zeros((3, 6), np.uint8)]))
    with pytest.raises(DecodeError, match="different sizes"):
        medimg.read(tiff([np.zeros((3, 5), np.uint8), np.zeros((3, 5), np.uint16)]))


def test_reduced_copies_are_left_out() -> None:
    whole = tiff([np.full((3, 5), 7, np.uint8)])
    both = tiff([np.full((3, 5), 7, np.uint8), np.zeros((2, 2), np.uint8)], t254=(4, [0]))
    at = both.rindex(struct.pack("<HHI", 254, 4, 1)) + 8
    volume = medimg.read(both[:at] + struct.pack("<I", 1) + both[at + 4 :])
    assert np.array_equal(volume.array, medimg.read(whole).array)
    assert "1 reduced pages or masks left out" in volume.report.transforms


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"t262": (3, [8])}, "photometric"),
        ({"t262": (3, [32803])}, "photometric"),
        ({"t262": (3, [6])}, "samples"),
        ({"t258": (3, [24])}, "24 bits"),
        ({"t339": (3, [6])}, "sample format 6"),
        ({"t262": (3, [3])}, "colors"),
        ({"t33629": (4, [3])}, "MetaMorph"),
        ({"t256": (4, [0])}, "empty"),
        ({"t256": (4, [2**31])}, "unreasonably large"),
        ({"t256": (4, [10**6])}, "too many"),
        ({"t259": (3, [34712])}, "compression 34712"),
        ({"t270": (2, [])}, None),
    ],
)
def test_tiff_that_is_refused(tags: dict[str, Any], message: str | None) -> None:
    data = tiff([np.zeros((3, 5), np.uint16)], **tags)
    tracemalloc.start()
    if message is None:
        medimg.read(data)
    else:
        with pytest.raises(MedimgError, match=message):
            medimg.read(data)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_directories_in_a_circle_and_cut() -> None:
    data = tiff([np.zeros((3, 5), np.uint16)] * 2)
    start = struct.unpack("<I", data[4:8])[0]
    end = start + 2 + 12 * struct.unpack("<H", data[start : start + 2])[0]
    with pytest.raises(DecodeError, match="circle"):
        medimg.read(data[:end] + struct.pack("<I", start) + data[end + 4 :])
    with pytest.raises(TruncatedError, match="directories"):
        medimg.read(data[: end + 2])


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_any_damage_gives_a_volume_or_a_medimg_error(compression: str | None) -> None:
    file = io.BytesIO()
    pages = [Image.fromarray(RNG.integers(0, 256, (9, 13)).astype(np.uint8)) for _ in range(2)]
    pages[0].save(file, "TIFF", compression=compression, save_all=True, append_images=pages[1:])
    for data in damaged(file.getvalue(), count=100, seed=1):
        try:
            medimg.read(data)
        except MedimgError as error:
            assert str(error)  # noqa: PT017  # either outcome is right
