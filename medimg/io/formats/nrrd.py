"""
NRRD files, attached (``.nrrd``) and detached (``.nhdr``): https://teem.sourceforge.net/nrrd/format.html.

The header is read here rather than by native code, which does not check it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from medimg.core import geometry
from medimg.errors import DecodeError, GeometryError, NotAnImageError, ReadError
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats._text_header import (
    find_data_file,
    parse_numbers,
    parse_whole_numbers,
    quote_text,
    read_text_lines,
)
from medimg.io.formats.raster import Encoding, Raster, check_affine
from medimg.io.formats.raster_reader import raster_series

if TYPE_CHECKING:
    import os

    from medimg.io.series import Series

__all__ = ["is_nrrd", "open_nrrd"]

#: Maximum number of time points listed; the header is not checked against the file yet.
_MAX_TIMES: Final = 2**20
_TYPES: Final = {
    name: kind
    for kind, names in {
        "i1": ("signed char", "int8", "int8_t"),
        "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
        "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
        "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
        "i4": ("int", "signed int", "int32", "int32_t"),
        "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
        "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int",
               "int64", "int64_t"),
        "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
        "f4": ("float",),
        "f8": ("double",),
    }.items()
    for name in names
}  # fmt: skip
_ENCODINGS: Final[dict[str, Encoding]] = {
    "raw": "raw", "gz": "deflated", "gzip": "deflated", "txt": "text", "text": "text", "ascii": "text",
    "hex": "hex",
}  # fmt: skip
_SPACES: Final = {
    "right-anterior-superior": "RAS", "ras": "RAS", "left-anterior-superior": "LAS", "las": "LAS",
    "left-posterior-superior": "LPS", "lps": "LPS",
}  # fmt: skip
_SPACES_WITH_TIME: Final = ("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last",
                 "left-posterior-superior-time", "lpst", "scanner-xyz-time", "3d-right-handed-time",
                 "3d-left-handed-time")  # fmt: skip
_SPATIAL: Final = frozenset({"domain", "space"})
_UNKNOWN: Final = frozenset({"???", "none"})
#: Kinds of non-spatial axes, and the meaning of their values.
_CHANNELS: Final[dict[str, Literal["", "vector", "RGB", "RGBA"]]] = {
    "list": "", "time": "", "point": "vector", "vector": "vector", "covariant-vector": "vector",
    "normal": "vector", "2-vector": "vector", "3-vector": "vector", "4-vector": "vector",
    "3-normal": "vector", "3-gradient": "vector", "3-color": "RGB", "rgb-color": "RGB", "4-color": "RGBA",
    "rgba-color": "RGBA", "scalar": "", "stub": "",
}  # fmt: skip
_MILLIMETERS: Final = {"": 1.0, "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0,
                       "um": 1e-3, "µm": 1e-3, "micron": 1e-3, "microns": 1e-3}  # fmt: skip
_SECONDS: Final = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6}
_VECTOR: Final = re.compile(r"\([^()]*\)|none", re.IGNORECASE)


def is_nrrd(start: bytes) -> bool:
    """Whether a file begins like NRRD."""
    return start[:7] == b"NRRD000"


def open_nrrd(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of an NRRD file, from its header.

    Raises NotAnImageError for other files, GeometryError if the directions span no volume, and ReadError if
    the file is damaged or has unsupported content: other types of values, bzip2, values in several files,
    more than one non-spatial axis.
    """
    blob = as_blob(source)
    lines, end = read_text_lines(blob, blank_ends=True)
    if not is_nrrd(lines[0].encode("latin-1")) or lines[0][7:8] not in set("12345"):
        raise NotAnImageError(f"{blob.name} is not an NRRD file of versions 1 to 5")
    return raster_series(_build_raster(_parse_fields(lines[1:], blob.name), blob, end))


def _parse_fields(lines: list[str], name: str) -> dict[str, str]:
    """Return the fields, without comments and key/value pairs."""
    fields: dict[str, str] = {}
    for line in lines:
        separator = re.search(r":=|: ?", line)
        if line.startswith("#") or separator is None or separator.group() == ":=":
            continue
        key = line[: separator.start()].strip().lower()
        key = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(key, key)
        if key in fields:
            raise DecodeError(f"{name}: the field {quote_text(key)} appears twice in the header")
        fields[key] = line[separator.end() :].strip()
    return fields


@dataclass(frozen=True, slots=True)
class _Axes:
    """Axes of an array, fastest first: the spatial ones, and the other one."""

    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    other: int | None
    kinds: tuple[str, ...]

    @property
    def channels(self) -> int:
        return 1 if self.other is None else self.sizes[self.other]

    @property
    def is_interleaved(self) -> bool:
        return self.other == 0 and self.channels > 1


def _build_raster(fields: dict[str, str], blob: Blob, end: int) -> Raster:
    name = blob.name
    axes = _find_axes(fields, name)
    affine, patient, notes = _build_affine(fields, axes, name)
    color = "" if axes.other is None else _CHANNELS.get(axes.kinds[axes.other], "")
    values, start = blob, end
    if "data file" in fields:
        values, start = find_data_file(blob, fields["data file"]), 0
    encoding = _find_encoding(fields, name)
    dtype = _find_dtype(fields, encoding, name)
    start += _measure_skipped_lines(fields, values, start, name)
    skip = _count_skipped_bytes(fields, name)
    if skip < 0:
        if encoding != "raw":
            raise DecodeError(f"{name}: byte skip -1 requires raw values")
        skip = max(0, values.size() - start - math.prod(axes.sizes) * dtype.itemsize)
    w, h, d = (*(axes.sizes[a] for a in axes.spatial), 1)[:3]
    return Raster(
        name=name,
        format="NRRD",
        files=(name,) if values is blob else (name, values.name),
        blob=values,
        dtype=dtype,
        grid=(d, h, w),
        affine=affine,
        space="patient" if patient else "image",
        start=start,
        skip=skip,
        encoding=encoding,
        channels=axes.channels,
        interleaved=axes.is_interleaved,
        color=color,
        frame_times=_find_frame_times(fields, axes),
        warnings=notes,
    )


def _split_words(fields: dict[str, str], key: str, count: int, name: str) -> list[str]:
    """Return one word for each axis; none if the field is absent."""
    words = fields.get(key, "").split()
    if words and len(words) != count:
        raise DecodeError(f"{name}: expected {count} {key}, found {len(words)}")
    return words


def _find_axes(fields: dict[str, str], name: str) -> _Axes:
    (dimension,) = parse_whole_numbers(fields.get("dimension", ""), 1, f"{name}: dimension")
    if not 2 <= dimension <= 5:
        raise DecodeError(f"{name} has {dimension} dimensions; 2 to 4 are supported")
    sizes = tuple(parse_whole_numbers(fields.get("sizes", ""), dimension, f"{name}: sizes"))
    kinds = (
        tuple(kind.lower() for kind in _split_words(fields, "kinds", dimension, name)) or ("???",) * dimension
    )
    spatial, others = _separate_axes(fields, kinds, name)
    others = [a for a in others if sizes[a] != 1]
    unsupported = [a for a in others if kinds[a] not in _CHANNELS and kinds[a] not in _UNKNOWN]
    if unsupported:
        raise DecodeError(
            f"{name} has an axis of kind {quote_text(kinds[unsupported[0]])}, which is not supported"
        )
    if len(spatial) not in (2, 3) or len(others) > 1:
        raise DecodeError(
            f"{name} has {len(spatial)} axes in space and {len(others)} others; expected 2 or 3 and at most 1"
        )
    other = others[0] if others else None
    stored = [a for a in range(dimension) if sizes[a] != 1 or a in spatial]
    if other is not None and other not in (stored[0], stored[-1]):
        raise DecodeError(
            f"{name}: its axis {other} of kind {quote_text(kinds[other])} is neither first nor last"
        )
    return _Axes(sizes, tuple(spatial), other, kinds)


def _separate_axes(fields: dict[str, str], kinds: tuple[str, ...], name: str) -> tuple[list[int], list[int]]:
    """Return the spatial axes and the others, by directions, kinds or spacings, whichever is given."""
    everything = range(len(kinds))
    if "space directions" in fields:
        directions = _parse_directions(fields, len(kinds), name)
        spatial = [a for a in everything if directions[a] is not None]
    elif any(kind not in _UNKNOWN for kind in kinds):
        spatial = [a for a in everything if kinds[a] in _SPATIAL]
        if not spatial:
            spatial = [a for a in everything if kinds[a] not in _CHANNELS]
    elif len(kinds) > 3:
        spacings = _split_words(fields, "spacings", len(kinds), name)
        spatial = [a for a in everything if spacings and spacings[a].lower() != "nan"]
    else:
        spatial = list(everything)
    return spatial, [a for a in everything if a not in spatial]


def _parse_directions(fields: dict[str, str], dimension: int, name: str) -> list[list[float] | None]:
    """Return the direction of each spatial axis, None for the others."""
    found = _VECTOR.findall(fields["space directions"])
    if len(found) != dimension or _VECTOR.sub("", fields["space directions"]).strip():
        raise DecodeError(f"{name}: expected {dimension} space directions, each (x,y,z) or none")
    vectors = [
        None if v.lower() == "none" else parse_numbers(v[1:-1].replace(",", " "), f"{name}: space directions")
        for v in found
    ]
    # some writers give a non-spatial axis a vector of NaN
    return [None if v is None or any(map(math.isnan, v)) else v for v in vectors]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _build_affine(
    fields: dict[str, str], axes: _Axes, name: str
) -> tuple[geometry.Affine, bool, tuple[str, ...]]:
    """Return the (4, 4) affine to LPS millimeters, whether it maps to a patient, and warnings."""
    space = fields.get("space", "").lower()
    if space in _SPACES_WITH_TIME:
        raise DecodeError(
            f"{name} has the space {space!r}, with time as a direction; only 3D spaces are supported"
        )
    if "space directions" not in fields:
        spacings = _split_words(fields, "spacings", len(axes.sizes), name)
        steps = [
            parse_numbers(spacings[a], f"{name}: spacings")[0] if spacings else 1.0 for a in axes.spatial
        ]
        w, h, d = (*(abs(s) if math.isfinite(s) and s else 1.0 for s in steps), 1.0)[:3]
        return geometry.image_affine((d, h, w)), False, ()
    columns = _build_columns(fields, axes, name)
    columns *= _find_unit(fields, name)
    if space in _SPACES:
        return geometry.lps_from_space(check_affine(columns, name), _SPACES[space]), True, ()
    sizes = np.linalg.norm(columns[:3, :3], axis=0)
    w, h, d = (float(v) if math.isfinite(v) and v else 1.0 for v in sizes)
    note = "the header names no anatomical space (RAS, LAS or LPS): directions and origin are ignored"
    return geometry.image_affine((d, h, w)), False, (note,)


def _build_columns(fields: dict[str, str], axes: _Axes, name: str) -> geometry.Affine:
    """Return the (4, 4) affine (i, j, k) to the space of the file; a single slice steps along its normal."""
    vectors = [v for v in _parse_directions(fields, len(axes.sizes), name) if v is not None]
    if {len(v) for v in vectors} != {3}:
        raise GeometryError(f"{name}: its space directions do not have three components")
    columns = np.eye(4)
    columns[:3, : len(vectors)] = np.array(vectors).T
    if len(vectors) == 2:
        normal = np.cross(columns[:3, 0], columns[:3, 1])
        columns[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    if "space origin" in fields:
        origin = fields["space origin"].strip("() ").replace(",", " ")
        columns[:3, 3] = parse_numbers(origin, f"{name}: space origin", 3)
    return columns


def _find_unit(fields: dict[str, str], name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))} or {""}
    if len(units) > 1 or not units <= set(_MILLIMETERS):
        raise GeometryError(f"{name}: its space units are not one of mm, cm, m and um")
    factor = _MILLIMETERS[units.pop()]
    return np.array([[factor] * 4] * 3 + [[1.0] * 4])


def _find_frame_times(fields: dict[str, str], axes: _Axes) -> tuple[float, ...] | None:
    """Return seconds if an axis of time has a spacing with a unit."""
    spacings = fields.get("spacings", "").split()
    units = re.findall(r'"([^"]*)"', fields.get("units", ""))
    if axes.other is None or axes.kinds[axes.other] != "time" or axes.channels > _MAX_TIMES:
        return None
    if len(spacings) != len(axes.sizes) or len(units) != len(axes.sizes):
        return None
    try:
        step = float(spacings[axes.other]) * _SECONDS.get(units[axes.other].lower(), 0.0)
    except ValueError:
        return None
    return tuple(step * t for t in range(axes.channels)) if 0 < step < math.inf else None


def _find_encoding(fields: dict[str, str], name: str) -> Encoding:
    stated = fields.get("encoding", "").lower()
    if stated not in _ENCODINGS:
        raise DecodeError(
            f"{name} has the encoding {quote_text(stated)}; raw, gzip, ascii and hex are supported"
        )
    return _ENCODINGS[stated]


def _find_dtype(fields: dict[str, str], encoding: Encoding, name: str) -> np.dtype[np.generic]:
    stated = " ".join(fields.get("type", "").lower().split())
    if stated not in _TYPES:
        raise DecodeError(f"{name} has values of type {quote_text(stated)}, which is not supported")
    kind = _TYPES[stated]
    if kind[1] == "1" or encoding == "text":
        return np.dtype(kind)
    order = fields.get("endian", "").lower()
    if order not in ("little", "big"):
        raise DecodeError(f"{name}: expected endian little or big, found {quote_text(order)}")
    return np.dtype(("<" if order == "little" else ">") + kind)


def _count_skipped_bytes(fields: dict[str, str], name: str) -> int:
    (skip,) = parse_whole_numbers(fields.get("byte skip", "0"), 1, f"{name}: byte skip")
    if not -1 <= skip < 2**40:
        raise DecodeError(f"{name}: byte skip is {skip}; expected -1 or more")
    return skip


def _measure_skipped_lines(fields: dict[str, str], values: Blob, start: int, name: str) -> int:
    """Return the length of the lines before the values, in bytes."""
    (count,) = parse_whole_numbers(fields.get("line skip", "0"), 1, f"{name}: line skip")
    if not 0 <= count <= 10_000:
        raise DecodeError(f"{name}: line skip is {count}; expected 0 to 10000")
    if count == 0:
        return 0
    with values.open() as file:
        file.seek(start)
        for _ in range(count):
            if not file.readline(2**16).endswith(b"\n"):
                raise ReadError(
                    f"{values.name} has fewer lines than its header declares to skip, or too long ones"
                )
        return file.tell() - start
