"""``write_nrrd``: a volume as ``.nrrd``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from medimg.io.formats._image_facts import FACTS_FIELD, ImageFacts
from medimg.io.formats._value_writer import check_values, iter_values, open_gzip

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from medimg.core.volume import Volume

__all__ = ["write_nrrd"]

_TYPES: Final = {"f4": "float", "f8": "double"}


def write_nrrd(volume: Volume, path: Path, *, compress: bool) -> None:
    """
    Write a volume as NRRD, with directions in the space left-posterior-superior.

    Channels are the last axis, of kind list; colors the first one. Units are in the field ``sample units``;
    modality and names of channels in a key/value pair, as the format has no field for them.
    """
    check_values(volume, "NRRD")
    header = ("\n".join(_list_lines(volume, compress=compress)) + "\n\n").encode()
    with path.open("wb") as file:
        file.write(header)
        if not compress:
            file.writelines(iter_values(volume))
    if compress:
        with open_gzip(path, append=True) as packed:
            for piece in iter_values(volume):
                packed.write(piece)


def _list_lines(volume: Volume, *, compress: bool) -> Iterable[str]:
    channels, depth, height, width = volume.shape
    code = volume.array.dtype.newbyteorder("<").str[1:]
    facts = ImageFacts.of_volume(volume)
    before = ["3"] if volume.is_color else []
    after = [str(channels)] if channels > 1 and not volume.is_color else []

    def for_axes(values: Iterable[object], other: str, last: str = "") -> str:
        return " ".join([*[other for _ in before], *map(str, values), *[last or other for _ in after]])

    yield "NRRD0005"
    yield f"type: {_TYPES.get(code, volume.array.dtype.name)}"
    yield f"dimension: {3 + len(before) + len(after)}"
    if volume.space == "patient":
        yield "space: left-posterior-superior"
    yield f"sizes: {' '.join([*before, str(width), str(height), str(depth), *after])}"
    if volume.space == "patient":
        columns = volume.affine[:3, [2, 1, 0]].T
        yield f"space directions: {for_axes(map(_format_vector, columns), 'none')}"
    else:
        yield f"spacings: {for_axes(map(repr, volume.spacing[::-1]), 'nan')}"
    yield f"kinds: {for_axes(['domain'] * 3, 'RGB-color', 'list')}"
    yield "endian: little"
    yield f"encoding: {'gzip' if compress else 'raw'}"
    if volume.space == "patient":
        yield f"space origin: {_format_vector(volume.affine[:3, 3])}"
    if volume.units != "raw":
        yield f"sample units: {volume.units}"
    if text := facts.to_json():
        escaped = text.replace("\\", "\\\\")
        yield f"{FACTS_FIELD}:={escaped}"


def _format_vector(vector: npt.NDArray[np.float64]) -> str:
    return f"({','.join(map(repr, vector.tolist()))})"
