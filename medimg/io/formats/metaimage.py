"""
MetaImage files: ``.mha``, and ``.mhd`` with the values in another file.

The header is read here rather than by native code, which does not check it. Format:
https://itk.org/Wiki/ITK/MetaIO/Documentation, and what ITK reads and writes.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg.core import geometry
from medimg.errors import DecodeError, NotAnImageError
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats._image_facts import FACTS_FIELD, ImageFacts
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

    from medimg.io.series import Series

__all__ = ["MODALITIES", "is_metaimage", "open_metaimage"]

#: MET_LONG has four bytes, whatever the machine.
_TYPES: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4",
    "MET_UINT": "u4", "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4", "MET_DOUBLE": "f8",
}  # fmt: skip
#: Other names of the same field.
_SYNONYMS: Final = {
    "Position": "Offset", "Origin": "Offset", "Orientation": "TransformMatrix", "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}  # fmt: skip
#: Fields that are used, or that MetaIO knows.
_FIELDS: Final = frozenset(
    {
        *(
            "AnatomicalOrientation",
            "BinaryData",
            "BinaryDataByteOrderMSB",
            "CenterOfRotation",
            "Color",
            "Comment",
        ),
        *(
            "CompressedData",
            "CompressedDataSize",
            "CompressionLevel",
            "DimSize",
            "DistanceUnits",
            "ElementDataFile",
        ),
        *("ElementMax", "ElementMin", "ElementNumberOfChannels", "ElementSize", "ElementSizeValid"),
        *("ElementSpacing", "ElementToIntensityFunctionOffset", "ElementToIntensityFunctionSlope"),
        *("ElementType", "HeaderSize", "ID", "Modality", "NDims", "Name", "ObjectSubType", "ObjectType"),
        *("Offset", "ParentID", "SequenceID", "TransformMatrix", "TransformType", *_SYNONYMS),
    }
)
_MILLIMETERS: Final = {"mm": 1.0, "cm": 10.0, "m": 1000.0, "um": 1e-3, "?": 1.0, "": 1.0}
#: Modalities that the format names.
MODALITIES: Final = frozenset({"CT", "MR", "NM", "US"})
_FIRST_FIELD: Final = re.compile(rb"\s*(ObjectType|ObjectSubType|NDims|Comment|Name|ID|BinaryData)\s*[=:]")
_KEY: Final = re.compile(r"\s*(\w+)\s*[=:]")


def is_metaimage(start: bytes) -> bool:
    """Whether a file begins like a MetaImage header."""
    return _FIRST_FIELD.match(start) is not None and re.search(rb"(^|\n)\s*NDims\s*[=:]", start) is not None


def open_metaimage(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of a MetaImage file, from its header.

    Raises NotAnImageError for other files, GeometryError if the directions span no volume, and ReadError if
    the file is damaged or has unsupported content: other types of values, values in several files, time and
    vectors.
    """
    blob = as_blob(source)
    lines, end = read_text_lines(blob, last="ElementDataFile")
    fields = _parse_fields(lines, blob.name)
    if fields.get("ObjectType", "Image") != "Image":
        raise NotAnImageError(f"{blob.name} is MetaIO, but not an image")
    return raster_series(_build_raster(fields, blob, end))


def _parse_fields(lines: list[str], name: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        match = _KEY.match(line)
        if match is None:
            continue
        key = _SYNONYMS.get(match.group(1), match.group(1))
        if key in fields and key != "Comment":
            raise DecodeError(f"{name}: the field {quote_text(key)} appears twice in the header")
        fields[key] = line[match.end() :].strip()
    if "ElementDataFile" not in fields:
        raise NotAnImageError(f"{name} is not a MetaImage file: it does not name the file of its values")
    return fields


def _build_raster(fields: dict[str, str], blob: Blob, end: int) -> Raster:
    name = blob.name
    (dimension,) = parse_whole_numbers(fields.get("NDims", ""), 1, f"{name}: NDims")
    if not 2 <= dimension <= 4:
        raise DecodeError(f"{name} has {dimension} dimensions; 2 to 4 are supported")
    sizes = parse_whole_numbers(fields.get("DimSize", ""), dimension, f"{name}: DimSize")
    w, h, d, t = (*sizes, 1, 1)[:4]
    (samples,) = parse_whole_numbers(fields.get("ElementNumberOfChannels", "1"), 1, f"{name}: channels")
    if samples != 1 and t != 1:
        raise DecodeError(f"{name} has {samples} channels at {t} time points, which is not supported")
    dtype = _find_dtype(fields, name)
    _check_rescale(fields, name)
    affine, patient, notes = _build_affine(fields, dimension, name)
    values, start = (blob, end) if _is_local(fields) else (find_data_file(blob, fields["ElementDataFile"]), 0)
    encoding = _find_encoding(fields, name)
    facts, damage = _find_facts(fields)
    skip = _parse_header_size(fields, values is blob, encoding, name)
    if skip < 0:
        count = w * h * d * t * samples
        start, skip = max(start, values.size() - count * dtype.itemsize), 0
    return Raster(
        name=name,
        format="MetaImage",
        files=(name,) if values is blob else (name, values.name),
        blob=values,
        dtype=dtype,
        grid=(d, h, w),
        affine=affine,
        space="patient" if patient else "image",
        start=start + skip,
        encoding=encoding,
        channels=t * samples,
        interleaved=samples != 1,
        color="vector" if samples != 1 else "",
        **facts.as_fields(t * samples),
        warnings=(*find_misspelled(fields, _FIELDS), *notes, *damage),
    )


def _find_facts(fields: dict[str, str]) -> tuple[ImageFacts, tuple[str, ...]]:
    """Return what the header states of modality, units and display, and warnings."""
    if FACTS_FIELD in fields:
        return ImageFacts.parse(fields[FACTS_FIELD])
    stated = fields.get("Modality", "").removeprefix("MET_MOD_")
    return ImageFacts(modality=stated if stated in MODALITIES else ""), ()


def _is_local(fields: dict[str, str]) -> bool:
    return fields["ElementDataFile"].upper() == "LOCAL"


def _parse_flag(fields: dict[str, str], key: str, default: bool, name: str) -> bool:
    stated = fields.get(key, "").lower()
    if stated not in ("", "true", "false", "1", "0", "t", "f", "yes", "no"):
        raise DecodeError(f"{name}: {key} is {quote_text(stated)}; expected True or False")
    return stated in ("true", "1", "t", "yes") if stated else default


def _find_dtype(fields: dict[str, str], name: str) -> np.dtype[Any]:
    stated = fields.get("ElementType", "")
    if stated not in _TYPES:
        raise DecodeError(f"{name} has values of type {quote_text(stated)}, which is not supported")
    big = _parse_flag(fields, "BinaryDataByteOrderMSB", False, name)
    return np.dtype((">" if big else "<") + _TYPES[stated])


def _find_encoding(fields: dict[str, str], name: str) -> Encoding:
    if not _parse_flag(fields, "BinaryData", True, name):
        return "text"
    return "deflated" if _parse_flag(fields, "CompressedData", False, name) else "raw"


def _parse_header_size(fields: dict[str, str], local: bool, encoding: Encoding, name: str) -> int:
    """Return the number of bytes to skip in the other file; -1 if the values are at its end."""
    (size,) = parse_whole_numbers(fields.get("HeaderSize", "0"), 1, f"{name}: HeaderSize")
    if not -1 <= size < 2**40 or (size > 0 and local) or (size < 0 and encoding != "raw"):
        raise DecodeError(
            f"{name}: HeaderSize is {size}; expected 0, or for raw values in another file -1 or more"
        )
    return size


def _check_rescale(fields: dict[str, str], name: str) -> None:
    """Raise DecodeError for a rescale, which ITK ignores, so that its meaning is unclear."""
    for key, plain in (("ElementToIntensityFunctionSlope", 1.0), ("ElementToIntensityFunctionOffset", 0.0)):
        if key in fields and parse_numbers(fields[key], f"{name}: {key}", 1) != [plain]:
            raise DecodeError(
                f"{name}: {key} is not {plain:g}, which is not supported; apply it to the values"
            )


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _build_affine(
    fields: dict[str, str], dimension: int, name: str
) -> tuple[geometry.Affine, bool, tuple[str, ...]]:
    """
    Return the (4, 4) affine to LPS millimeters, whether it maps to a patient, and warnings.

    Each row of TransformMatrix is the direction of one axis, fastest first.
    """
    unit = _MILLIMETERS.get(fields.get("DistanceUnits", "").lower())
    if unit is None:
        raise DecodeError(f"{name}: its DistanceUnits are unknown; expected mm, cm, m or um")
    stated = fields.get("ElementSpacing") or fields.get("ElementSize") or "1 " * dimension
    spacing = parse_numbers(stated, f"{name}: ElementSpacing", dimension)
    if not all(math.isfinite(s) and s != 0 for s in spacing):
        raise DecodeError(f"{name}: its ElementSpacing has zeros or infinite numbers")
    if dimension == 2 or not {"TransformMatrix", "Offset"} & set(fields):
        w, h, d = (*(abs(s) * unit for s in spacing), 1.0)[:3]
        notes = ("ElementSpacing is negative; its absolute value is used",) if min(spacing) < 0 else ()
        return geometry.image_affine((d, h, w)), False, notes
    default = " ".join(map(str, np.eye(dimension).ravel()))
    matrix = np.array(
        parse_numbers(fields.get("TransformMatrix", default), f"{name}: TransformMatrix", dimension**2)
    ).reshape(dimension, dimension)
    if dimension == 4 and (matrix[3, :3].any() or matrix[:3, 3].any()):
        raise DecodeError(f"{name}: its TransformMatrix mixes time and space")
    offset = parse_numbers(fields.get("Offset", "0 " * dimension), f"{name}: Offset", dimension)
    columns = np.eye(4)
    columns[:3, :3] = matrix[:3, :3].T * np.array(spacing[:3])
    columns[:3, 3] = offset[:3]
    columns[:3] *= unit
    affine = geometry.lps_from_space(check_affine(columns, name), "LPS")
    return affine, True, _check_orientation(fields, affine)


def _check_orientation(fields: dict[str, str], affine: geometry.Affine) -> tuple[str, ...]:
    """Return a warning if AnatomicalOrientation (the origin of each axis) contradicts the matrix."""
    stated = fields.get("AnatomicalOrientation", "").upper()
    if not re.fullmatch(r"[RLAPSI]{3}", stated):
        return ()
    found = geometry.orientation_code(affine)[::-1].translate(str.maketrans("RLAPSI", "LRPAIS"))
    if found == stated:
        return ()
    return (f"AnatomicalOrientation {stated} contradicts TransformMatrix ({found}), which is used",)
