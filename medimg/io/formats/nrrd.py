"""
NRRD files, attached (``.nrrd``) and detached (``.nhdr``).

The header is read here and not by native code, which trusts it. Facts about the format: its definition
(https://teem.sourceforge.net/nrrd/format.html).
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
from medimg.io.formats._text_header import data_file, numbers, quoted, text_lines, whole_numbers
from medimg.io.formats.raster import Encoding, Raster, sound_affine
from medimg.io.formats.raster_reader import raster_series

if TYPE_CHECKING:
    import os

    from medimg.io.series import Series

__all__ = ["looks_like_nrrd", "nrrd_series"]

#: Points in time that are listed; the header, which is not compared with the file yet, may say any number.
_MOST_TIMES: Final = 2**20
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
_TIMED: Final = ("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last",
                 "left-posterior-superior-time", "lpst", "scanner-xyz-time", "3d-right-handed-time",
                 "3d-left-handed-time")  # fmt: skip
_SPATIAL: Final = frozenset({"domain", "space"})
_UNKNOWN: Final = frozenset({"???", "none"})
#: Kinds of axes along which the values at one place lie, and what they are.
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


def looks_like_nrrd(start: bytes) -> bool:
    """Whether a file begins like NRRD."""
    return start[:7] == b"NRRD000"


def nrrd_series(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Read the header of an NRRD file.

    Raises
    ------
    NotAnImageError
        If it is none.
    ReadError
        If it can't be opened, is damaged, or holds what medimg does not read: values of other types, bzip2,
        values spread over several files, more than one axis that is not in space.
    GeometryError
        If its directions span no volume.
    """
    blob = as_blob(source)
    lines, end = text_lines(blob, blank_ends=True)
    if not looks_like_nrrd(lines[0].encode("latin-1")) or lines[0][7:8] not in set("12345"):
        raise NotAnImageError(f"{blob.name} is no NRRD file of the versions 1 to 5")
    return raster_series(_raster(_fields(lines[1:], blob.name), blob, end))


def _fields(lines: list[str], name: str) -> dict[str, str]:
    """Return the fields; comments and key/value pairs of the user are left out."""
    fields: dict[str, str] = {}
    for line in lines:
        separator = re.search(r":=|: ?", line)
        if line.startswith("#") or separator is None or separator.group() == ":=":
            continue
        key = line[: separator.start()].strip().lower()
        key = {"datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}.get(key, key)
        if key in fields:
            raise DecodeError(f"{name}: the field {quoted(key)} stands twice in the header")
        fields[key] = line[separator.end() :].strip()
    return fields


@dataclass(frozen=True, slots=True)
class _Axes:
    """Which axes of an array, fastest first, are in space, and which is not."""

    sizes: tuple[int, ...]
    spatial: tuple[int, ...]
    other: int | None
    kinds: tuple[str, ...]

    @property
    def channels(self) -> int:
        return 1 if self.other is None else self.sizes[self.other]

    @property
    def interleaved(self) -> bool:
        return self.other == 0 and self.channels > 1


def _raster(fields: dict[str, str], blob: Blob, end: int) -> Raster:
    name = blob.name
    axes = _axes(fields, name)
    affine, patient, notes = _affine(fields, axes, name)
    color = "" if axes.other is None else _CHANNELS.get(axes.kinds[axes.other], "")
    values, start = blob, end
    if "data file" in fields:
        values, start = data_file(blob, fields["data file"]), 0
    encoding = _encoding(fields, name)
    dtype = _dtype(fields, encoding, name)
    start += _lines_to_skip(fields, values, start, name)
    skip = _bytes_to_skip(fields, name)
    if skip < 0:
        if encoding != "raw":
            raise DecodeError(f"{name}: byte skip -1 goes with raw values only")
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
        interleaved=axes.interleaved,
        color=color,
        frame_times=_frame_times(fields, axes),
        warnings=notes,
    )


def _words(fields: dict[str, str], key: str, count: int, name: str) -> list[str]:
    """Return one word for each axis; none where the field is absent."""
    words = fields.get(key, "").split()
    if words and len(words) != count:
        raise DecodeError(f"{name}: expected {count} {key}, found {len(words)}")
    return words


def _axes(fields: dict[str, str], name: str) -> _Axes:
    (dimension,) = whole_numbers(fields.get("dimension", ""), 1, f"{name}: dimension")
    if not 2 <= dimension <= 5:
        raise DecodeError(f"{name} has {dimension} dimensions; 2 to 4 are supported")
    sizes = tuple(whole_numbers(fields.get("sizes", ""), dimension, f"{name}: sizes"))
    kinds = tuple(kind.lower() for kind in _words(fields, "kinds", dimension, name)) or ("???",) * dimension
    spatial, others = _told_apart(fields, kinds, name)
    others = [a for a in others if sizes[a] != 1]
    odd = [a for a in others if kinds[a] not in _CHANNELS and kinds[a] not in _UNKNOWN]
    if odd:
        raise DecodeError(f"{name} has an axis of the kind {quoted(kinds[odd[0]])}, which is not supported")
    if len(spatial) not in (2, 3) or len(others) > 1:
        raise DecodeError(
            f"{name} has {len(spatial)} axes in space and {len(others)} others; expected 2 or 3 and at most 1"
        )
    other = others[0] if others else None
    stored = [a for a in range(dimension) if sizes[a] != 1 or a in spatial]
    if other is not None and other not in (stored[0], stored[-1]):
        raise DecodeError(
            f"{name}: its axis {other} of the kind {quoted(kinds[other])} is neither first nor last"
        )
    return _Axes(sizes, tuple(spatial), other, kinds)


def _told_apart(fields: dict[str, str], kinds: tuple[str, ...], name: str) -> tuple[list[int], list[int]]:
    """Return the axes in space, and the others: by directions, kinds or spacings, whichever says it."""
    everything = range(len(kinds))
    if "space directions" in fields:
        directions = _vectors(fields, len(kinds), name)
        spatial = [a for a in everything if directions[a] is not None]
    elif any(kind not in _UNKNOWN for kind in kinds):
        spatial = [a for a in everything if kinds[a] in _SPATIAL]
        if not spatial:
            spatial = [a for a in everything if kinds[a] not in _CHANNELS]
    elif len(kinds) > 3:
        spacings = _words(fields, "spacings", len(kinds), name)
        spatial = [a for a in everything if spacings and spacings[a].lower() != "nan"]
    else:
        spatial = list(everything)
    return spatial, [a for a in everything if a not in spatial]


def _vectors(fields: dict[str, str], dimension: int, name: str) -> list[list[float] | None]:
    """Return the direction of each axis in space, None for the others."""
    found = _VECTOR.findall(fields["space directions"])
    if len(found) != dimension or _VECTOR.sub("", fields["space directions"]).strip():
        raise DecodeError(f"{name}: expected {dimension} space directions, each (x,y,z) or none")
    vectors = [
        None if v.lower() == "none" else numbers(v[1:-1].replace(",", " "), f"{name}: space directions")
        for v in found
    ]
    # other writers give an axis outside of space a vector of not-a-numbers
    return [None if v is None or any(map(math.isnan, v)) else v for v in vectors]


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _affine(fields: dict[str, str], axes: _Axes, name: str) -> tuple[geometry.Affine, bool, tuple[str, ...]]:
    """Return the affine to LPS millimeters, whether it leads into a patient, and what is doubtful."""
    space = fields.get("space", "").lower()
    if space in _TIMED:
        raise DecodeError(f"{name} is in the space {space!r}, with time as a direction; three are supported")
    if "space directions" not in fields:
        spacings = _words(fields, "spacings", len(axes.sizes), name)
        steps = [numbers(spacings[a], f"{name}: spacings")[0] if spacings else 1.0 for a in axes.spatial]
        w, h, d = (*(abs(s) if math.isfinite(s) and s else 1.0 for s in steps), 1.0)[:3]
        return geometry.image_affine((d, h, w)), False, ()
    columns = _columns(fields, axes, name)
    columns *= _unit(fields, name)
    if space in _SPACES:
        return geometry.lps_from_space(sound_affine(columns, name), _SPACES[space]), True, ()
    sizes = np.linalg.norm(columns[:3, :3], axis=0)
    w, h, d = (float(v) if math.isfinite(v) and v else 1.0 for v in sizes)
    note = "the header names no anatomical space (RAS, LAS or LPS): directions and origin are left out"
    return geometry.image_affine((d, h, w)), False, (note,)


def _columns(fields: dict[str, str], axes: _Axes, name: str) -> geometry.Affine:
    """(4, 4): index (i, j, k) to the space of the file; a single slice gets a step along its normal."""
    vectors = [v for v in _vectors(fields, len(axes.sizes), name) if v is not None]
    if {len(v) for v in vectors} != {3}:
        raise GeometryError(f"{name}: its space directions don't have three components")
    columns = np.eye(4)
    columns[:3, : len(vectors)] = np.array(vectors).T
    if len(vectors) == 2:
        normal = np.cross(columns[:3, 0], columns[:3, 1])
        columns[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    if "space origin" in fields:
        origin = fields["space origin"].strip("() ").replace(",", " ")
        columns[:3, 3] = numbers(origin, f"{name}: space origin", 3)
    return columns


def _unit(fields: dict[str, str], name: str) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    units = {unit.lower() for unit in re.findall(r'"([^"]*)"', fields.get("space units", ""))} or {""}
    if len(units) > 1 or not units <= set(_MILLIMETERS):
        raise GeometryError(f"{name}: its space units are not one of mm, cm, m and um")
    factor = _MILLIMETERS[units.pop()]
    return np.array([[factor] * 4] * 3 + [[1.0] * 4])


def _frame_times(fields: dict[str, str], axes: _Axes) -> tuple[float, ...] | None:
    """Return seconds where an axis of time has a spacing with a unit."""
    spacings = fields.get("spacings", "").split()
    units = re.findall(r'"([^"]*)"', fields.get("units", ""))
    if axes.other is None or axes.kinds[axes.other] != "time" or axes.channels > _MOST_TIMES:
        return None
    if len(spacings) != len(axes.sizes) or len(units) != len(axes.sizes):
        return None
    try:
        step = float(spacings[axes.other]) * _SECONDS.get(units[axes.other].lower(), 0.0)
    except ValueError:
        return None
    return tuple(step * t for t in range(axes.channels)) if 0 < step < math.inf else None


def _encoding(fields: dict[str, str], name: str) -> Encoding:
    stated = fields.get("encoding", "").lower()
    if stated not in _ENCODINGS:
        raise DecodeError(f"{name} has the encoding {quoted(stated)}; raw, gzip, ascii and hex are supported")
    return _ENCODINGS[stated]


def _dtype(fields: dict[str, str], encoding: Encoding, name: str) -> np.dtype[np.generic]:
    stated = " ".join(fields.get("type", "").lower().split())
    if stated not in _TYPES:
        raise DecodeError(f"{name} has values of the type {quoted(stated)}, which is not supported")
    kind = _TYPES[stated]
    if kind[1] == "1" or encoding == "text":
        return np.dtype(kind)
    order = fields.get("endian", "").lower()
    if order not in ("little", "big"):
        raise DecodeError(f"{name}: expected endian little or big, found {quoted(order)}")
    return np.dtype(("<" if order == "little" else ">") + kind)


def _bytes_to_skip(fields: dict[str, str], name: str) -> int:
    (skip,) = whole_numbers(fields.get("byte skip", "0"), 1, f"{name}: byte skip")
    if not -1 <= skip < 2**40:
        raise DecodeError(f"{name}: byte skip is {skip}; expected -1 or more")
    return skip


def _lines_to_skip(fields: dict[str, str], values: Blob, start: int, name: str) -> int:
    """Return the length of the lines that stand before the values."""
    (count,) = whole_numbers(fields.get("line skip", "0"), 1, f"{name}: line skip")
    if not 0 <= count <= 10_000:
        raise DecodeError(f"{name}: line skip is {count}; expected 0 to 10000")
    if count == 0:
        return 0
    with values.open() as file:
        file.seek(start)
        for _ in range(count):
            if not file.readline(2**16).endswith(b"\n"):
                raise ReadError(f"{values.name} has fewer lines than its header says to skip, or long ones")
        return file.tell() - start
