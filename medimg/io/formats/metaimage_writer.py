"""``write_metaimage``: a volume as ``.mha``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from medimg.io.formats._image_facts import FACTS_FIELD, ImageFacts
from medimg.io.formats._value_writer import check_values, iter_values, write_zlib
from medimg.io.formats.metaimage import MODALITIES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from medimg.core.volume import Volume

__all__ = ["write_metaimage"]

_TYPES: Final = {
    "i1": "CHAR", "u1": "UCHAR", "i2": "SHORT", "u2": "USHORT", "i4": "INT", "u4": "UINT", "i8": "LONG_LONG",
    "u8": "ULONG_LONG", "f4": "FLOAT", "f8": "DOUBLE",
}  # fmt: skip
_SIZE_FIELD: Final = "CompressedDataSize = "
_SIZE_DIGITS: Final = 20


def write_metaimage(volume: Volume, path: Path, *, compress: bool) -> None:
    """
    Write a volume as MetaImage, in LPS.

    Channels are the fourth axis; colors are channels of an element. Units, names of channels and any modality
    are in a field of medimg's own, which other readers keep as metadata or ignore.
    """
    check_values(volume, "MetaImage")
    header = ("\n".join(_list_lines(volume, compress=compress)) + "\n").encode()
    with path.open("wb") as file:
        file.write(header)
        if not compress:
            file.writelines(iter_values(volume))
            return
        size = write_zlib(iter_values(volume), file)
        file.seek(header.index(_SIZE_FIELD.encode()) + len(_SIZE_FIELD))
        file.write(f"{size:{_SIZE_DIGITS}}".encode())


def _list_lines(volume: Volume, *, compress: bool) -> Iterator[str]:
    channels, depth, height, width = volume.shape
    in_time = channels > 1 and not volume.is_color
    dimension = 4 if in_time else 3
    facts = ImageFacts.of_volume(volume)
    yield "ObjectType = Image"
    yield f"NDims = {dimension}"
    yield "BinaryData = True"
    yield "BinaryDataByteOrderMSB = False"
    yield f"CompressedData = {compress}"
    if compress:
        yield _SIZE_FIELD + " " * _SIZE_DIGITS
    if volume.space == "patient":
        # each row is the direction of one axis, fastest first
        rows = np.eye(dimension)
        rows[:3, :3] = (volume.affine[:3, :3] / volume.spacing).T[::-1]
        yield f"TransformMatrix = {_format(rows.ravel())}"
        yield f"Offset = {_format([*volume.affine[:3, 3], *[0.0] * in_time])}"
        yield f"CenterOfRotation = {_format([0.0] * dimension)}"
    yield f"ElementSpacing = {_format([*volume.spacing[::-1], *[1.0] * in_time])}"
    yield f"DimSize = {' '.join(map(str, [width, height, depth, *[channels] * in_time]))}"
    if facts.modality in MODALITIES:
        yield f"Modality = MET_MOD_{facts.modality}"
    if text := facts.to_json():
        yield f"{FACTS_FIELD} = {text}"
    if volume.is_color:
        yield "ElementNumberOfChannels = 3"
    yield f"ElementType = MET_{_TYPES[volume.array.dtype.newbyteorder('<').str[1:]]}"
    yield "ElementDataFile = LOCAL"


def _format(numbers: Iterable[float]) -> str:
    return " ".join(repr(float(number)) for number in numbers)
