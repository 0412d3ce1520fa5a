"""
NRRD files, attached (``.nrrd``) and detached (``.nhdr``): https://teem.sourceforge.net/nrrd/format.html.

The header is read here rather than by native code, which does not check it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from medimg.core import geometry
from medimg.errors import DecodeError, GeometryError, NotAnImageError, ReadError
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats._image_facts import FACTS_FIELD, ImageFacts, as_units
from medimg.io.formats._text_header import (
    find_data_file,
    find_misspelled,
    parse_numbers,
    parse_whole_numbers,
    quote_text,
    read_text_lines,
)
from medimg.io.formats.raster import Encoding, Raster, check_affine
from medimg.io.formats.raster_reader import raster_series

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from medimg.io.series import Series

__all__ = ["is_nrrd", "open_nrrd"]

#: Maximum number of axes in teem, the reference implementation.
_MAX_DIMENSION: Final = 16
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
    "raw": "raw", "gz": "deflated", "gzip": "deflated", "bz2": "bzip2", "bzip2": "bzip2", "txt": "text",
    "text": "text", "ascii": "text", "hex": "hex",
}  # fmt: skip
#: Fields of the definition; in other lines the text before ": " is the key of a key/value pair.
_FIELDS: Final = frozenset(
    {
        "dimension",
        "type",
        "block size",
        "blocksize",
        "encoding",
        "endian",
        "content",
        "min",
        "max",
        "old min",
        "oldmin",
        "old max",
        "oldmax",
        "data file",
        "datafile",
        "line skip",
        "lineskip",
        "byte skip",
        "byteskip",
        "number",
        "sample units",
        "sampleunits",
        "sizes",
        "spacings",
        "thicknesses",
        "axis mins",
        "axismins",
        "axis maxs",
        "axismaxs",
        "centers",
        "centerings",
        "labels",
        "units",
        "kinds",
        "space",
        "space dimension",
        "space units",
        "space origin",
        "space directions",
        "measurement frame",
    }
)
_SYNONYMS: Final = {
    "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip", "axismins": "axis mins",
    "axismaxs": "axis maxs", "centerings": "centers", "sampleunits": "sample units",
}  # fmt: skip
#: Spaces: anatomical orientation, if any, and number of dimensions, of which the fourth is time.
_SPACES: Final = {
    name + suffix: (code, dimension)
    for names, code in (
        (("right-anterior-superior", "ras"), "RAS"),
        (("left-anterior-superior", "las"), "LAS"),
        (("left-posterior-superior", "lps"), "LPS"),
        (("scanner-xyz", "3d-right-handed", "3d-left-handed"), ""),
    )
    for name in names
    for suffix, dimension in (("", 3), ("t" if len(name) == 3 else "-time", 4))
}
_SPATIAL: Final = frozenset({"domain", "space"})
_UNKNOWN: Final = frozenset({"???", "none"})
#: Kinds of non-spatial axes, and the meaning of their values.
_CHANNELS: Final[dict[str, Literal["", "vector", "RGB", "RGBA"]]] = {
    "list": "", "time": "", "point": "vector", "vector": "vector", "covariant-vector": "vector",
    "normal": "vector", "2-vector": "vector", "3-vector": "vector", "4-vector": "vector",
    "3-normal": "vector", "3-gradient": "vector", "3-color": "RGB", "rgb-color": "RGB", "4-color": "RGBA",
    "rgba-color": "RGBA", "scalar": "", "stub": "", "hsv-color": "", "xyz-color": "", "quaternion": "",
    "2d-symmetric-matrix": "", "2d-masked-symmetric-matrix": "", "2d-matrix": "", "2d-masked-matrix": "",
    "3d-symmetric-matrix": "", "3d-masked-symmetric-matrix": "", "3d-matrix": "", "3d-masked-matrix": "",
}  # fmt: skip
_MILLIMETERS: Final = {
    name: factor
    for factor, names in {
        1.0: ("", "mm", "millimeter", "millimeters", "millimetre", "millimetres"),
        10.0: ("cm", "centimeter", "centimeters", "centimetre", "centimetres"),
        1000.0: ("m", "meter", "meters", "metre", "metres"),
        # with the micro sign, and with the Greek letter
        1e-3: (
            "um",
            "µm",
            "μm",
            "micron",
            "microns",
            "micrometer",
            "micrometers",
            "micrometre",
            "micrometres",
        ),
        1e-6: ("nm", "nanometer", "nanometers", "nanometre", "nanometres"),
    }.items()
    for name in names
}
_SECONDS: Final = {"s": 1.0, "sec": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3,
                   "millisecond": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "min": 60.0}  # fmt: skip
_ESCAPED: Final = re.compile(r"\\(\\)")
_VECTOR: Final = re.compile(r"\([^()]*\)|none", re.IGNORECASE)


def is_nrrd(start: bytes) -> bool:
    """Whether a file begins like NRRD."""
    return start[:7] == b"NRRD000"


def open_nrrd(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of an NRRD file, from its header.

    Raises NotAnImageError for other files, GeometryError if the directions span no volume, and ReadError if
    the file is damaged or has unsupported content: other types of values, values in several files,
    more than one non-spatial axis.
    """
    blob = as_blob(source)
    lines, end = read_text_lines(blob, blank_ends=True)
    if not is_nrrd(lines[0].encode("latin-1")) or lines[0][7:8] not in set("12345"):
        raise NotAnImageError(f"{blob.name} is not an NRRD file of versions 1 to 5")
    fields, notes = _parse_fields(lines[1:], blob.name)
    raster = _build_raster(fields, blob, end)
    return raster_series(replace(raster, warnings=(*notes, *raster.warnings)))


def _parse_fields(lines: list[str], name: str) -> tuple[dict[str, str], tuple[str, ...]]:
    """
    Return the fields, and warnings of misspelled ones.

    Comments and key/value pairs, whose keys and values may have colons, are left out, but for medimg's own.
    """
    fields: dict[str, str] = {}
    unknown: list[str] = []
    for line in lines:
        key, colon, value = line.partition(":")
        key = key.strip().lower()
        if key == FACTS_FIELD and value.startswith("="):
            value = _ESCAPED.sub(r"\1", value[1:])
        elif line.startswith("#") or key not in _FIELDS or value.startswith("="):
            if colon and not line.startswith("#") and ":=" not in line:
                unknown.append(key)
            continue
        key = _SYNONYMS.get(key, key)
        if key in fields:
            raise DecodeError(f"{name}: the field {quote_text(key)} appears twice in the header")
        fields[key] = value.strip()
    return fields, find_misspelled((*fields, *unknown), _FIELDS)


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
    facts, damage = _find_facts(fields)
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
        frame_times=_find_frame_times(fields, axes, name),
        **facts.as_fields(axes.channels),
        warnings=(*notes, *damage),
    )


def _find_facts(fields: dict[str, str]) -> tuple[ImageFacts, tuple[str, ...]]:
    """Return what the header states of modality, units and display, and warnings."""
    if FACTS_FIELD in fields:
        return ImageFacts.parse(fields[FACTS_FIELD])
    return ImageFacts(units=as_units(fields.get("sample units", ""))), ()


def _split_words(fields: dict[str, str], key: str, count: int, name: str) -> list[str]:
    """Return one word for each axis; none if the field is absent."""
    words = fields.get(key, "").split()
    if words and len(words) != count:
        raise DecodeError(f"{name}: expected {count} {key}, found {len(words)}")
    return words


def _find_axes(fields: dict[str, str], name: str) -> _Axes:
    (dimension,) = parse_whole_numbers(fields.get("dimension", ""), 1, f"{name}: dimension")
    if not 2 <= dimension <= _MAX_DIMENSION:
        raise DecodeError(f"{name} has {dimension} dimensions; expected 2 to {_MAX_DIMENSION}")
    sizes = tuple(parse_whole_numbers(fields.get("sizes", ""), dimension, f"{name}: sizes"))
    kinds = (
        tuple(kind.lower() for kind in _split_words(fields, "kinds", dimension, name)) or ("???",) * dimension
    )
    spatial, others = _separate_axes(fields, kinds, name)
    if len(spatial) == 4 and "space directions" not in fields:
        # four axes of which none is marked: the last one is no direction in space, as in other formats
        others.append(spatial.pop())
    others = [a for a in others if sizes[a] != 1]
    unsupported = [a for a in others if kinds[a] not in {*_CHANNELS, *_UNKNOWN, *_SPATIAL}]
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
        time = _find_time_axis(directions, name)
        spatial = [a for a in everything if directions[a] is not None and a != time]
    elif any(kind not in _UNKNOWN for kind in kinds):
        spatial = [a for a in everything if kinds[a] in _SPATIAL]
        if not spatial:
            spatial = [a for a in everything if kinds[a] not in _CHANNELS]
    elif len(kinds) > 3:
        spacings = _split_words(fields, "spacings", len(kinds), name)
        spatial = [a for a in everything if not spacings or spacings[a].lower() != "nan"]
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


def _find_time_axis(directions: Sequence[list[float] | None], name: str) -> int | None:
    """Return the axis along the fourth dimension of a space; None if the space has no fourth one."""
    sizes = {len(v) for v in directions if v is not None}
    if len(sizes) > 1 or not sizes <= {2, 3, 4}:
        raise GeometryError(f"{name}: its space directions do not have two, three components or four each")
    if sizes != {4}:
        return None
    time = [a for a, v in enumerate(directions) if v is not None and v[3] and not any(v[:3])]
    mixed = [a for a, v in enumerate(directions) if v is not None and v[3] and any(v[:3])]
    if mixed or len(time) > 1:
        raise GeometryError(f"{name}: its space directions mix the fourth dimension, time, with space")
    return time[0] if time else None


def _find_space(fields: dict[str, str], vectors: Sequence[list[float]], name: str) -> str:
    """Return the anatomical space, "" if it is none; raise GeometryError if the directions contradict it."""
    stated = fields.get("space", "").lower()
    code, dimension = _SPACES.get(stated, ("", 0))
    if not dimension and "space dimension" in fields:
        (dimension,) = parse_whole_numbers(fields["space dimension"], 1, f"{name}: space dimension")
    if dimension and {len(v) for v in vectors} - {dimension}:
        shown = f"space {stated}" if stated in _SPACES else "space"
        raise GeometryError(
            f"{name}: its {shown} has {dimension} dimensions, but its space directions do not have "
            f"{'three components' if dimension == 3 else f'{dimension} components'}"
        )
    return code


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _build_affine(
    fields: dict[str, str], axes: _Axes, name: str
) -> tuple[geometry.Affine, bool, tuple[str, ...]]:
    """Return the (4, 4) affine to LPS millimeters, whether it maps to a patient, and warnings."""
    if "space directions" not in fields:
        spacings, notes = _find_spacings(fields, axes, name)
        w, h, d = (*spacings, 1.0)[:3]
        return geometry.image_affine((d, h, w)), False, notes
    directions = _parse_directions(fields, len(axes.sizes), name)
    code = _find_space(fields, [v for v in directions if v is not None], name)
    vectors = [v for v in (directions[a] for a in axes.spatial) if v is not None]
    units = _find_space_units(fields, len(vectors[0]), name)
    if code:
        columns = _build_columns(fields, vectors, name)
        columns[:3] *= np.array(units[:3])[:, None]
        return geometry.lps_from_space(check_affine(columns, name), code), True, ()
    sizes = [float(np.linalg.norm(np.multiply(v, units)[:3])) for v in vectors]
    w, h, d = (*(s if math.isfinite(s) and s else 1.0 for s in sizes), 1.0)[:3]
    stated = fields.get("space", "")
    named = (
        "no anatomical space"
        if stated.lower() in {"", *_SPACES}
        else f"the unknown space {quote_text(stated)}"
    )
    note = f"the header names {named} (known: RAS, LAS and LPS): directions and origin are ignored"
    return geometry.image_affine((d, h, w)), False, () if len(units) == 2 else (note,)


def _build_columns(fields: dict[str, str], vectors: Sequence[list[float]], name: str) -> geometry.Affine:
    """Return the (4, 4) affine (i, j, k) to the space of the file; a single slice steps along its normal."""
    columns = np.eye(4)
    columns[:3, : len(vectors)] = np.array(vectors)[:, :3].T
    if len(vectors) == 2:
        normal = np.cross(columns[:3, 0], columns[:3, 1])
        columns[:3, 2] = normal / (np.linalg.norm(normal) or 1.0)
    if "space origin" in fields:
        origin = fields["space origin"].strip("() ").replace(",", " ")
        columns[:3, 3] = parse_numbers(origin, f"{name}: space origin", len(vectors[0]))[:3]
    return columns


def _find_spacings(fields: dict[str, str], axes: _Axes, name: str) -> tuple[list[float], tuple[str, ...]]:
    """
    Return the spacing of each spatial axis in the unit of the axis, and warnings.

    NaN means unknown; without spacings, the range of an axis and its number of samples give them.
    """
    count = len(axes.sizes)
    stated = _split_words(fields, "spacings", count, name)
    units = _split_units(fields, "units", count, name)
    spacings: list[float] = []
    notes: tuple[str, ...] = ()
    for a in axes.spatial:
        if units[a] not in _MILLIMETERS:
            raise GeometryError(f"{name}: its units of spacings are not one of mm, cm, m, um and nm")
        if stated:
            spacing = parse_numbers(stated[a], f"{name}: spacings")[0]
        else:
            spacing = _measure_range(fields, a, axes.sizes, name)
        if math.isinf(spacing) or spacing <= 0:
            used = abs(spacing) if math.isfinite(spacing) and spacing else 1.0
            notes += (f"the spacing of axis {a} is {spacing:g}; {used:g} is used",)
            spacing = used
        spacings.append(spacing * _MILLIMETERS[units[a]])
    unknown = [str(a) for a, spacing in zip(axes.spatial, spacings, strict=True) if math.isnan(spacing)]
    # of an image without any spacings, none is expected
    if 0 < len(unknown) < len(spacings):
        notes += (f"the spacing of axis {' and '.join(unknown)} is not known: 1 mm is assumed",)
    return [1.0 if math.isnan(spacing) else spacing for spacing in spacings], notes


def _measure_range(fields: dict[str, str], axis: int, sizes: tuple[int, ...], name: str) -> float:
    """Return the spacing of samples in the range of an axis; NaN if the range is not given."""
    ends = [_split_words(fields, key, len(sizes), name) for key in ("axis mins", "axis maxs")]
    if not all(ends):
        return math.nan
    low, high = (parse_numbers(words[axis], f"{name}: range of an axis")[0] for words in ends)
    centers = _split_words(fields, "centers", len(sizes), name)
    # samples are centers of cells unless the header says that they are nodes
    is_node = bool(centers) and centers[axis].lower() == "node"
    return abs(high - low) / max(1, sizes[axis] - is_node)


def _split_units(fields: dict[str, str], key: str, count: int, name: str) -> list[str]:
    """Return the unit of each axis, or of each dimension of the space; "" if not given."""
    stated = fields.get(key, "")
    if not stated:
        return [""] * count
    units = re.findall(r'"([^"]*)"', stated)
    if len(units) != count:
        raise DecodeError(f"{name}: expected {count} {key}, each in quotes, found {len(units)}")
    return [_decode_utf8(unit).strip().lower() for unit in units]


def _decode_utf8(text: str) -> str:
    """Return text that was read as Latin-1 as UTF-8, if it is that."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeDecodeError:
        return text


def _find_space_units(fields: dict[str, str], dimension: int, name: str) -> list[float]:
    """Return millimeters per unit of each dimension of the space; 1 for the fourth, which is time."""
    units = _split_units(fields, "space units", dimension, name)
    if not set(units[:3]) <= set(_MILLIMETERS):
        raise GeometryError(f"{name}: its space units are not one of mm, cm, m, um and nm")
    return [_MILLIMETERS[unit] for unit in units[:3]] + [1.0] * (dimension - 3)


def _find_frame_times(fields: dict[str, str], axes: _Axes, name: str) -> tuple[float, ...] | None:
    """Return seconds if an axis of time has a spacing, or a direction, with a unit."""
    axis = axes.other
    if axis is None or axes.channels > _MAX_TIMES:
        return None
    count = len(axes.sizes)
    vectors = _parse_directions(fields, count, name) if "space directions" in fields else [None] * count
    vector = vectors[axis]
    if vector is not None:
        step, unit = vector[3], _split_units(fields, "space units", len(vector), name)[3]
    elif axes.kinds[axis] == "time":
        spacings = _split_words(fields, "spacings", count, name)
        step = parse_numbers(spacings[axis], f"{name}: spacings")[0] if spacings else math.nan
        unit = _split_units(fields, "units", count, name)[axis]
    else:
        return None
    step *= _SECONDS.get(unit, 0.0)
    return tuple(step * t for t in range(axes.channels)) if 0 < step < math.inf else None


def _find_encoding(fields: dict[str, str], name: str) -> Encoding:
    stated = fields.get("encoding", "").lower()
    if stated not in _ENCODINGS:
        raise DecodeError(
            f"{name} has the encoding {quote_text(stated)}; raw, gzip, bzip2, ascii and hex are supported"
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
