"""
TIFF and BigTIFF, single images and stacks.

Directories are read here, so that sizes are known and checked; pages are decoded by libtiff (imagecodecs).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Literal

import numpy as np

from medimg.core import geometry
from medimg.core.read_report import ReadReport
from medimg.core.upright import describe_turn, is_turned_sideways, turn_upright
from medimg.core.volume import Volume
from medimg.errors import DecodeError, NotAnImageError, ReadError, TruncatedError
from medimg.io.dicom.header.attributes import quiet_pydicom
from medimg.io.files.blob import Blob, as_blob
from medimg.io.series import Policies, Series

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

__all__ = ["is_tiff", "open_tiff"]

#: First four bytes: byte order, then 42, or 43 for BigTIFF.
_ORDERS: Final[dict[bytes, tuple[Literal["little", "big"], bool]]] = {
    b"II*\0": ("little", False), b"MM\0*": ("big", False), b"II+\0": ("little", True),
    b"MM\0+": ("big", True),
}  # fmt: skip
_MAX_PAGES: Final = 2**16
_MAX_BYTES: Final = 2**35
_MAX_PAGE_BYTES: Final = 2**31
#: Bytes of a value that is read, such as a description.
_MAX_VALUE: Final = 2**22
#: Bytes of an integer type of a value (TIFF 6.0, section 2; BigTIFF).
_INTEGER_SIZES: Final = {1: 1, 3: 2, 4: 4, 13: 4, 16: 8}
_ASCII: Final = 2
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_DESCRIPTION, _ORIENTATION, _SAMPLES, _COLORS, _EXTRA, _SAMPLE_FORMAT = 270, 274, 277, 320, 338, 339
#: MetaMorph's stacks have one directory for all their planes.
_METAMORPH: Final = 33629
_TAGS: Final = frozenset(
    {
        _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _DESCRIPTION, _ORIENTATION, _SAMPLES,
        _COLORS, _EXTRA, _SAMPLE_FORMAT, _METAMORPH,
    }
)  # fmt: skip
#: NewSubfileType: a reduced copy, or a mask, of another page.
_COPY_OR_MASK: Final = 5
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCC = 0, 1, 2, 3, 5, 6
_COLOR_SAMPLES: Final = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCC: 3}
_JPEG: Final = 7
#: Bytes per byte of the file that a compression allows: none, LZW, JPEG, deflate, PackBits; others.
_MAX_EXPANSION: Final = {1: 1, 5: 2**13, 7: 2**13, 8: 2**13, 32946: 2**13, 32773: 2**13}
_MAX_OTHER_EXPANSION: Final = 2**17
#: Types of values by SampleFormat and bits; those of less than 8 bits are scaled to 8.
_TYPES: Final = {
    (1, 1): "u1", (1, 2): "u1", (1, 4): "u1", (1, 8): "u1", (1, 12): "u2", (1, 16): "u2", (1, 32): "u4",
    (1, 64): "u8", (2, 8): "i1", (2, 16): "i2", (2, 32): "i4", (2, 64): "i8", (3, 16): "f4", (3, 32): "f4",
    (3, 64): "f8",
}  # fmt: skip
_COUNT: Final = re.compile(r"(images|channels|slices|frames)=(\d{1,9})\s*$", re.MULTILINE)
_OME_PIXELS: Final = re.compile(r"<(?:\w+:)?Pixels\b[^>]{1,5000}>")
_OME_SIZE: Final = re.compile(r'\bSize([CZT])\s*=\s*"(\d{1,9})"')
_OME_ORDER: Final = re.compile(r'\bDimensionOrder\s*=\s*"XY([CZT]{3})"')


def is_tiff(start: bytes) -> bool:
    """Whether a file begins like TIFF or BigTIFF."""
    return start[:4] in _ORDERS


@dataclass(frozen=True, slots=True)
class _Page:
    """What the directory of a page says; `index` is its position among all directories."""

    index: int
    size: tuple[int, int]  # (height, width) as stored
    bits: int
    sample_format: int
    samples: int
    extra: tuple[int, ...]
    photometric: int
    compression: int
    orientation: int
    colors: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(_TYPES[self.sample_format, self.bits])

    @property
    def channels(self) -> int:
        """Channels read: colors, or gray values with all components that are not transparency."""
        if self.photometric in (_RGB, _PALETTE, _CMYK, _YCC):
            return 3
        return self.samples - sum(kind in (1, 2) for kind in self.extra)

    @property
    def layout(self) -> tuple[object, ...]:
        """What has to be the same on all pages of a stack."""
        return (
            self.size, self.bits, self.sample_format, self.samples, self.channels, self.photometric,
            self.orientation,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Stack:
    """Pages of a stack: for each channel of the volume, the page of each slice."""

    pages: tuple[tuple[_Page, ...], ...]
    steps: tuple[str, ...]

    @property
    def first(self) -> _Page:
        return self.pages[0][0]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (C, D, H, W) as stored."""
        return (len(self.pages) * self.first.channels, len(self.pages[0]), *self.first.size)


def open_tiff(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of a TIFF file, from its directories: an image, or a stack of equal pages.

    Raises NotAnImageError for other files, and ReadError if the file is damaged or has unsupported content:
    pages of different types or sizes, other color spaces.
    """
    blob = as_blob(source)
    stack = _read_stack(blob)
    channels, depth, height, width = stack.shape
    if is_turned_sideways(stack.first.orientation):
        height, width = width, height
    return Series(
        uid=blob.name,
        modality="",
        description="",
        shape=(channels, depth, height, width),
        affine=geometry.image_affine(),
        space="image",
        files=(blob.name,),
        format="TIFF",
        reader=_TiffReader(blob),
    )


def _read_stack(blob: Blob) -> _Stack:
    start = blob.start(16)
    if not is_tiff(start):
        raise NotAnImageError(f"{blob.name} is not a TIFF file")
    try:
        with blob.open() as file:
            directories = _Directories(file, start, blob.name).read_all()
    except ReadError:
        raise
    except OSError as error:
        raise ReadError(f"{blob.name} can't be read: {error.strerror}") from None
    pages = [_parse_page(n, values, blob.name) for n, values in enumerate(directories)]
    whole = [
        p for p, d in zip(pages, directories, strict=True) if not _get_number(d, _SUBFILE, 0) & _COPY_OR_MASK
    ]
    steps = (f"{len(pages) - len(whole)} reduced pages or masks left out",) if whole != pages else ()
    if not whole:
        raise DecodeError(f"{blob.name} has reduced images and masks only")
    if len({page.layout for page in whole}) > 1:
        raise DecodeError(
            f"{blob.name} has pages of different sizes or types, which are no stack; save each as a file of "
            "its own"
        )
    _check_size(whole, blob)
    text = directories[whole[0].index].get(_DESCRIPTION, "")
    return _Stack(_arrange(whole, text if isinstance(text, str) else "", blob.name), steps)


class _Directories:
    """Image file directories of an open file, with the values of the tags that matter."""

    def __init__(self, file: BinaryIO, start: bytes, name: str) -> None:
        self._file = file
        self._name = name
        self._order, big = _ORDERS[start[:4]]
        self._offset_size = 8 if big else 4
        self._count_size = 8 if big else 2
        self._first = self._parse(start[8:16] if big else start[4:8])

    def _parse(self, data: bytes) -> int:
        return int.from_bytes(data, self._order)

    def _read(self, offset: int, count: int) -> bytes:
        self._file.seek(offset)
        data = self._file.read(count)
        if len(data) < count:
            raise TruncatedError(f"{self._name} ends within its directories; copy or export it again")
        return data

    def read_all(self) -> list[dict[int, str | tuple[int, ...]]]:
        """Return the values of each directory by tag, in file order."""
        found: list[dict[int, str | tuple[int, ...]]] = []
        visited: set[int] = set()
        at = self._first
        while at and at not in visited:
            visited.add(at)
            if len(found) == _MAX_PAGES:
                raise DecodeError(f"{self._name} has more than {_MAX_PAGES} pages; it is damaged")
            count = self._parse(self._read(at, self._count_size))
            size = 4 + 2 * self._offset_size
            if not 0 < count < 2**16:
                raise DecodeError(f"{self._name} has a directory of {count} entries; it is damaged")
            table = self._read(at + self._count_size, count * size + self._offset_size)
            entries = [table[n * size : (n + 1) * size] for n in range(count)]
            found.append({self._parse(e[:2]): self._read_value(e) for e in entries if self._is_wanted(e)})
            at = self._parse(table[count * size :])
        if at:
            raise DecodeError(f"{self._name} has directories in a circle; it is damaged")
        if not found:
            raise DecodeError(f"{self._name} has no pages")
        return found

    def _is_wanted(self, entry: bytes) -> bool:
        return self._parse(entry[:2]) in _TAGS

    def _read_value(self, entry: bytes) -> str | tuple[int, ...]:
        """Return whole numbers, or text; () for other types."""
        kind, count = self._parse(entry[2:4]), self._parse(entry[4 : 4 + self._offset_size])
        width = 1 if kind == _ASCII else _INTEGER_SIZES.get(kind, 0)
        size, inline = count * width, entry[4 + self._offset_size :]
        if not size:
            return ()
        if size > _MAX_VALUE:
            raise DecodeError(f"{self._name} has a value of {size} bytes in a directory; it is damaged")
        data = inline[:size] if size <= len(inline) else self._read(self._parse(inline), size)
        if kind == _ASCII:
            return data.decode("latin-1")
        return tuple(self._parse(data[n : n + width]) for n in range(0, size, width))


def _get_number(values: Mapping[int, str | tuple[int, ...]], tag: int, default: int) -> int:
    """Return the first number of a tag; the default if it is absent, -1 if it is no number."""
    found = values.get(tag, (default,))
    return found[0] if found and isinstance(found, tuple) else -1


def _parse_page(index: int, values: Mapping[int, str | tuple[int, ...]], name: str) -> _Page:
    where = f"{name}, page {index + 1}"
    if _METAMORPH in values:
        raise DecodeError(f"{name} is a MetaMorph stack, which is not supported; save it as plain TIFF")
    bits = values.get(_BITS, (1,))
    formats = values.get(_SAMPLE_FORMAT, (1,))
    extra, colors = values.get(_EXTRA, ()), values.get(_COLORS, ())
    page = _Page(
        index=index,
        size=(_get_number(values, _HEIGHT, 0), _get_number(values, _WIDTH, 0)),
        bits=_get_number(values, _BITS, 1),
        # 4 is "undefined": bits without a stated meaning
        sample_format=1
        if _get_number(values, _SAMPLE_FORMAT, 1) == 4
        else _get_number(values, _SAMPLE_FORMAT, 1),
        samples=_get_number(values, _SAMPLES, 1),
        extra=extra if isinstance(extra, tuple) else (),
        photometric=_get_number(values, _PHOTOMETRIC, -1),
        compression=_get_number(values, _COMPRESSION, 1),
        orientation=_get_number(values, _ORIENTATION, 1),
        colors=colors if isinstance(colors, tuple) else (),
    )
    if page.photometric not in _COLOR_SAMPLES:
        raise DecodeError(
            f"{where} has the photometric interpretation {page.photometric}, which is not supported; save it "
            "as grayscale or RGB"
        )
    if len(set(bits)) > 1 or len(set(formats)) > 1 or (page.sample_format, page.bits) not in _TYPES:
        raise DecodeError(
            f"{where} has values of {page.bits} bits and sample format {page.sample_format}, which is not "
            "supported"
        )
    _check_colors(page, where)
    return page


def _check_colors(page: _Page, where: str) -> None:
    needed = _COLOR_SAMPLES[page.photometric]
    if not needed <= page.samples <= 2**10 or len(page.extra) > page.samples - needed:
        raise DecodeError(
            f"{where} has {page.samples} samples per pixel, {len(page.extra)} of them extra; the photometric "
            f"interpretation {page.photometric} has {needed}"
        )
    is_bytes = (page.sample_format, page.bits) == (1, 8)
    if page.photometric == _PALETTE and (page.bits > 8 or len(page.colors) != 3 * 2**page.bits):
        raise DecodeError(f"{where} has indices of {page.bits} bits into {len(page.colors) // 3} colors")
    if page.photometric == _CMYK and not (is_bytes and page.samples == needed):
        raise DecodeError(f"{where} is CMYK of other than four bytes, which is not supported; save it as RGB")
    if page.photometric == _YCC and page.compression != _JPEG:
        raise DecodeError(f"{where} is YCbCr without JPEG, which is not supported; save it as RGB")
    if page.compression == _JPEG and not is_bytes:
        raise DecodeError(
            f"{where} has JPEG of {page.bits} bits, of which the decoder would keep 8; save it with another "
            "compression"
        )


def _check_size(pages: Sequence[_Page], blob: Blob) -> None:
    """Compare the declared size with the file, before anything is allocated."""
    first = pages[0]
    height, width = first.size
    pixels = height * width * max(first.samples, first.channels)
    size = pixels * first.dtype.itemsize
    if height < 1 or width < 1 or size > _MAX_PAGE_BYTES or size * len(pages) > _MAX_BYTES:
        raise DecodeError(
            f"{blob.name} declares {len(pages)} pages of {width}×{height} pixels, which is empty or "
            "unreasonably large"
        )
    stored = len(pages) * (height * width * first.samples * first.bits // 8)
    expansion = max(_MAX_EXPANSION.get(p.compression, _MAX_OTHER_EXPANSION) for p in pages)
    if first.photometric != _YCC and stored > expansion * blob.bound():
        raise TruncatedError(
            f"{blob.name} declares {len(pages)} pages of {width}×{height} pixels, too many for its "
            f"{blob.bound()} bytes; copy or export it again"
        )


def _arrange(pages: Sequence[_Page], text: str, name: str) -> tuple[tuple[_Page, ...], ...]:
    """Return pages by channel and slice, as the description of ImageJ or OME says; else all are slices."""
    order, counts = _parse_dimensions(text, pages, name)
    channels, slices, times = (counts[letter] for letter in "CZT")
    if channels * slices * times != len(pages):
        if channels > 1 or times > 1:
            raise DecodeError(
                f"{name} describes {channels} channels, {slices} slices and {times} time points, but has "
                f"{len(pages)} pages; save it as a complete file"
            )
        return (tuple(pages),)
    if slices == 1 and channels == 1:
        # a cine
        return (tuple(pages),)
    groups = channels * times
    if groups > 1 and (channels > 1 < times or pages[0].channels > 1):
        raise DecodeError(
            f"{name} has {channels} channels and {times} time points of {pages[0].channels} components, of "
            "which one only can be more than 1; save each channel as a file of its own"
        )
    steps = {letter: math.prod(counts[faster] for faster in order[: order.index(letter)]) for letter in order}
    step = steps["C"] if channels > 1 else steps["T"]
    return tuple(tuple(pages[g * step + z * steps["Z"]] for z in range(slices)) for g in range(groups))


def _parse_dimensions(text: str, pages: Sequence[_Page], name: str) -> tuple[str, dict[str, int]]:
    """Return the dimensions of a stack, fastest first, and the number of channels, slices and time points."""
    if text.startswith("ImageJ="):
        found = {key: int(count) for key, count in _COUNT.findall(text)}
        if found.get("images", 1) > len(pages):
            raise DecodeError(
                f"{name} has {found['images']} images of ImageJ but {len(pages)} directories, which is not "
                "supported; save it with a directory for each"
            )
        channels, times = found.get("channels", 1), found.get("frames", 1)
        slices = found.get("slices", len(pages) // max(1, channels * times))
        return "CZT", {"C": channels, "Z": slices, "T": times}
    pixels = _OME_PIXELS.search(text)
    order = None if pixels is None else _OME_ORDER.search(pixels.group())
    if pixels is None or order is None or len(set(order.group(1))) < 3:
        return "CZT", {"C": 1, "Z": len(pages), "T": 1}
    sizes = {letter: int(count) for letter, count in _OME_SIZE.findall(pixels.group())}
    # components of a pixel are channels of OME
    channels = max(1, sizes.get("C", 1) // pages[0].samples)
    return order.group(1), {"C": channels, "Z": sizes.get("Z", 1), "T": sizes.get("T", 1)}


@dataclass(frozen=True, slots=True)
class _TiffReader:
    """Reads the pages of a file, whose directories are read again first."""

    blob: Blob

    def __call__(self, slices: Sequence[int] | None, policies: Policies) -> Volume:
        stack, data, chosen = self._open(slices)
        return _build_volume(self.blob.name, stack, data, chosen)

    def pieces(self, size: int, slices: Sequence[int] | None, policies: Policies) -> Iterator[Volume]:
        """Yield a few slices at a time; the file is read once."""
        stack, data, chosen = self._open(slices)
        for start in range(0, len(chosen), size):
            yield _build_volume(self.blob.name, stack, data, chosen[start : start + size])

    def _open(self, slices: Sequence[int] | None) -> tuple[_Stack, bytes, list[int]]:
        stack = _read_stack(self.blob)
        depth = stack.shape[1]
        chosen = geometry.ascending_slices(range(depth) if slices is None else slices, depth)
        with self.blob.stream() as file:
            return stack, file.read(), chosen


def _build_volume(name: str, stack: _Stack, data: bytes, chosen: Sequence[int]) -> Volume:
    first = stack.first
    array = _read_pages(data, stack, chosen, name)
    steps = (*stack.steps, *_describe_steps(first), *describe_turn(first.orientation, "orientation"))
    if len(chosen) < stack.shape[1]:
        steps = (*steps, f"{len(chosen)} of {stack.shape[1]} slices read")
    is_color = first.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and array.dtype in (
        np.uint8,
        np.uint16,
    )
    if is_color and stack.shape[1] == 1 and (array == array[:1]).all():
        array, is_color = array[:1], False
        steps = (*steps, "gray in three equal channels: one kept")
    is_inverted = first.photometric == _WHITE_IS_ZERO
    return Volume(
        array=array,
        affine=geometry.subset_affine(geometry.image_affine(), chosen),
        photometric="RGB" if is_color else "MONOCHROME1" if is_inverted else "MONOCHROME2",
        inverted=is_inverted,
        space="image",
        display_range=(0.0, 255.0) if array.dtype == np.uint8 else None,
        report=ReadReport(format="TIFF", files=(name,), transforms=steps),
    )


def _describe_steps(page: _Page) -> tuple[str, ...]:
    dropped = page.samples - (page.channels if page.photometric != _PALETTE else 1)
    steps = {
        f"{page.bits} bits scaled to 8": page.bits < 8 and page.photometric != _PALETTE,
        "palette applied": page.photometric == _PALETTE,
        "CMYK to RGB": page.photometric == _CMYK,
        "YCbCr to RGB": page.photometric == _YCC,
        "transparency dropped": page.photometric != _CMYK and dropped > 0,
    }
    return tuple(step for step, is_made in steps.items() if is_made)


def _read_pages(data: bytes, stack: _Stack, chosen: Sequence[int], name: str) -> npt.NDArray[Any]:
    """Return (C, slices, H, W), upright."""
    first = stack.first
    height, width = first.size[::-1] if is_turned_sideways(first.orientation) else first.size
    array = np.empty((stack.shape[0], len(chosen), height, width), first.dtype)
    for group, pages in enumerate(stack.pages):
        for position, number in enumerate(chosen):
            rows = slice(group * first.channels, (group + 1) * first.channels)
            array[rows, position] = turn_upright(_decode_page(data, pages[number], name), first.orientation)
    return array


def _decode_page(data: bytes, page: _Page, name: str) -> npt.NDArray[Any]:
    """Return (C, H, W) of a page as stored."""
    import imagecodecs

    try:
        with quiet_pydicom():
            values = np.asarray(imagecodecs.tiff_decode(data, index=page.index))
    except MemoryError:
        raise
    # codecs raise errors of many types on damaged data
    except Exception as error:
        raise DecodeError(
            f"{name}, page {page.index + 1}: decoding failed ({type(error).__name__}); it is damaged, "
            f"truncated, or its compression {page.compression} is not supported"
        ) from None
    if values.ndim == 2:
        values = values[None]
    elif values.shape[:2] == page.size:
        values = np.moveaxis(values, -1, 0)
    stored = 3 if page.photometric == _CMYK else page.samples
    if values.shape != (stored, *page.size):
        raise DecodeError(
            f"{name}, page {page.index + 1} has decoded shape {values.shape}, its directory says "
            f"{(stored, *page.size)}"
        )
    if page.photometric == _PALETTE:
        table = np.array(page.colors).reshape(3, -1)
        # 8-bit colors are written as they are by some, and as the upper half of 16 bits by most
        table = (table >> 8 if table.max() > 255 else table).astype(np.uint8)
        return table[:, values[0]]
    values = values[: page.channels]
    if page.bits < 8:
        return values.astype(np.uint8) * np.uint8(255 // (2**page.bits - 1))
    return values
