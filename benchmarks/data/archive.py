"""An archive: series of several modalities and many makers."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final, TypeAlias

from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_data_element

from benchmarks.data.headers import uid
from benchmarks.data.makers import CLASSES, MAKERS, Maker, shared_header

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydicom.dataelem import DataElement

    from benchmarks.data.scale import Scale

__all__ = ["series_sizes", "write_archive"]

#: Tag, value representation, value.
_Own: TypeAlias = "tuple[int, str, str]"

_SIZES: Final = (120, 60, 24, 200, 1, 350, 40, 2, 96, 160, 31)
_RADIOGRAPHS: Final = 2
_EXPLICIT, _IMPLICIT = struct.Struct("<HH2sH"), struct.Struct("<HHI")


def series_sizes(scale: Scale) -> list[tuple[Maker, int]]:
    """Return the maker of each series of the archive, and of how many files it is."""
    sizes: list[tuple[Maker, int]] = []
    left, cap = scale.archive, max(1, scale.archive // len(MAKERS))
    while left:
        number = len(sizes)
        maker = MAKERS[number % len(MAKERS)]
        most = _RADIOGRAPHS if maker.modality == "CR" else _SIZES[number % len(_SIZES)]
        sizes.append((maker, min(most, cap, left)))
        left -= sizes[-1][1]
    return sizes


def write_archive(folder: Path, scale: Scale) -> None:
    """Write the archive: a folder for each series below one of its patient, whose scans are of two makers."""
    for number, (maker, size) in enumerate(series_sizes(scale)):
        below = folder / f"P{number // 2:05d}" / f"{maker.modality}{number:05d}"
        below.mkdir(parents=True)
        for index, content in enumerate(_files(maker, number, size)):
            (below / f"I{(index * 7919 + 13) % 100_003:06d}{maker.suffix}").write_bytes(content)


def _files(maker: Maker, series: int, size: int) -> Iterator[bytes]:
    """Yield the files of a series; pydicom encodes what they share, once."""
    implicit = maker.syntax.is_implicit_VR
    shared = {int(e.tag): _by_pydicom(e, implicit=implicit) for e in shared_header(maker, series)}
    for index in range(size):
        instance = uid(8, series, 3**index % 10**6, index)
        own = [(0x00080018, "UI", instance), *_own(maker, index)]
        elements = shared | {tag: _element(tag, vr, value, implicit=implicit) for tag, vr, value in own}
        yield _meta(maker, instance) + b"".join(part for _, part in sorted(elements.items()))


def _own(maker: Maker, index: int) -> Iterator[_Own]:
    """Yield what differs from file to file; not every file has all of it."""
    yield 0x00080033, "TM", f"{93000 + index % 60:06d}" + f".{index * 41:06d}"[: 1 + index % 7].rstrip(".")
    yield 0x00200013, "IS", str(index + 1)
    if maker.modality != "CR":
        z = f"{-412.5 + 1.25 * index:g}"
        yield 0x00200032, "DS", f"-178.85\\-331.35\\{z}"
        yield 0x00201041, "DS", z
    if maker.modality == "CT":
        yield 0x00181151, "IS", str(60 + index * 37 % 400)
    for bit, tag in enumerate((0x00080032, 0x00081030, 0x00204000)):
        if index >> bit & 1:
            yield tag, ("TM", "LO", "LT")[bit], ("093100", "Synthetic study", "made by a program")[bit]


def _by_pydicom(element: DataElement, *, implicit: bool) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, implicit
    write_data_element(file, element, ["iso8859"])
    return bytes(file.getvalue())


def _element(tag: int, vr: str, value: str, *, implicit: bool) -> bytes:
    """One element of up to 65,534 characters (PS3.5 7.1)."""
    data = value.encode()
    data += (b"\0" if vr == "UI" else b" ") * (len(data) % 2)
    group, number = tag >> 16, tag & 0xFFFF
    if implicit:
        return _IMPLICIT.pack(group, number, len(data)) + data
    return _EXPLICIT.pack(group, number, vr.encode(), len(data)) + data


def _meta(maker: Maker, instance: str) -> bytes:
    """Preamble and file meta information (PS3.10 7.1)."""
    texts = {0x00020002: CLASSES[maker.modality], 0x00020003: instance, 0x00020010: str(maker.syntax)}
    body = b"\x02\0\x01\0OB\0\0\x02\0\0\0\0\x01"
    body += b"".join(_element(tag, "UI", value, implicit=False) for tag, value in texts.items())
    return bytes(128) + b"DICM" + _EXPLICIT.pack(2, 0, b"UL", 4) + struct.pack("<I", len(body)) + body
