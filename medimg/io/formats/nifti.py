"""NIfTI-1 and NIfTI-2 headers, through nibabel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from medimg.core import geometry
from medimg.errors import DecodeError, GeometryError, NotAnImageError, ReadError
from medimg.io.files.blob import Blob, as_blob
from medimg.io.formats._image_facts import FACTS_FIELD, ImageFacts
from medimg.io.formats.raster import Raster, check_affine
from medimg.io.formats.raster_reader import raster_series

if TYPE_CHECKING:
    import os

    import numpy.typing as npt

    from medimg.io.series import Series

__all__ = ["COMMENT", "find_header", "is_nifti", "open_nifti"]

#: Sizes of the headers, in their first four bytes, which also give the byte order.
_NIFTI_1, _NIFTI_2 = 348, 540
_NIFTI_2_MARK: Final = b"\0\r\n\x1a\n"
#: Code of datatype: kind of NumPy, bytes (nifti1.h, section "DATATYPE").
_TYPES: Final = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 128: "u1", 256: "i1", 512: "u2", 768: "u4", 1024: "i8",
    1280: "u8", 2304: "u1",
}  # fmt: skip
_COLORS: Final[dict[int, Literal["RGB", "RGBA"]]] = {128: "RGB", 2304: "RGBA"}
_REFUSED: Final = {
    1: "single bits", 32: "complex64 numbers", 1536: "float128 numbers", 1792: "complex128 numbers",
    2048: "complex256 numbers",
}  # fmt: skip
#: xyzt_units: unit of length in the lower three bits (to mm), of time in the next three (to s).
_LENGTHS: Final = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 1e-3}
_TIMES: Final = {0: 1.0, 8: 1.0, 16: 1e-3, 24: 1e-6}
#: Maximum number of time points listed; the header is not checked against the file yet.
_MAX_TIMES: Final = 2**20
#: Lengths of a quaternion: that rounding to 32 bits explains, and that are accepted at all.
_ROUNDING: Final = 1e-5
_MAX_LENGTH: Final = 1.001
#: Squared real part of a quaternion that counts as 0 (nifti_quatern_to_mat44).
_LEAST_SQUARE: Final = 1e-7
#: Bytes before the first header extension, which say whether there is one.
_EXTENSION_FLAG: Final = 4
#: Code of a header extension with text (nifti1.h, NIFTI_ECODE_COMMENT).
COMMENT: Final = 6
#: Bytes of extensions that are searched.
_MAX_EXTENSIONS: Final = 2**20
_FACTS_START: Final = f"{FACTS_FIELD}: ".encode()
_MIN_OFFSET: Final = {_NIFTI_1: 352, _NIFTI_2: 544}


def is_nifti(start: bytes) -> bool:
    """Whether a file begins with a header of NIfTI, or of ANALYZE 7.5, from which NIfTI derives."""
    return _find_header_size(start) != 0


def _find_header_size(start: bytes) -> int:
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        size = int.from_bytes(start[:4], order)
        if size == _NIFTI_2 and start[4:6] in (b"n+", b"ni") and len(start) >= _NIFTI_2:
            return _NIFTI_2
        dimensions = int.from_bytes(start[40:42], order, signed=True)
        marked = start[344:346] in (b"n+", b"ni")
        if size == _NIFTI_1 and len(start) >= _NIFTI_1 and (marked or 0 < dimensions < 8):
            return _NIFTI_1
    return 0


def find_header(blob: Blob) -> Blob | None:
    """Return the ``.hdr`` file of a ``.img`` file; None if there is none."""
    found = _find_partner(blob, ".img", ".hdr")
    return found if found is not None and is_nifti(found.start()) else None


def _find_partner(blob: Blob, suffix: str, wanted: str) -> Blob | None:
    """Return the file of the same name with another suffix, compressed or not, in the same case."""
    name = blob.name.replace("\\", "/").rsplit("/", 1)[-1]
    stem = name[:-3] if name.lower().endswith(".gz") else name
    if not stem.lower().endswith(suffix):
        return None
    wanted = wanted.upper() if stem[-len(suffix) :].isupper() else wanted
    names = [stem[: -len(suffix)] + wanted + gz for gz in ("", ".gz", ".GZ")]
    found = next((s for s in map(blob.sibling, names) if s is not None), None)
    return None if found is None else _unzip(found)


def _unzip(blob: Blob) -> Blob:
    return blob.unzipped() if not blob.gzipped and blob.start(2) == b"\x1f\x8b" else blob


def open_nifti(source: str | os.PathLike[str] | Blob) -> Series:
    """
    Return the series of a ``.nii`` file or the ``.hdr`` file of a pair, from its header.

    Raises NotAnImageError for other files, and ReadError if the file is damaged or has unsupported content:
    complex numbers, time and vectors, ANALYZE 7.5 (whose left and right are ambiguous).
    """
    blob = _unzip(as_blob(source))
    start = blob.start(_NIFTI_2)
    size = _find_header_size(start)
    if not size:
        raise NotAnImageError(f"{blob.name} is not a NIfTI file")
    header, is_single = _read_header(start, size, blob.name)
    values = blob if is_single else _find_partner(blob, ".hdr", ".img")
    if values is None:
        raise ReadError(
            f"{blob.name} is the header of a NIfTI pair, but its .img file is missing; put both in one folder"
        )
    return raster_series(_build_raster(header, is_single, blob, values))


def _read_header(start: bytes, size: int, name: str) -> tuple[Any, bool]:
    """Return nibabel's header, checked, and whether the values are in the same file."""
    from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
    from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader

    magic = start[344:348] if size == _NIFTI_1 else start[4:8]
    if magic[:2] not in (b"n+", b"ni") or magic[2:3] not in (b"1", b"2"):
        raise ReadError(
            f"{name} is ANALYZE 7.5, in which left and right are ambiguous; convert it to NIfTI first"
        )
    if size == _NIFTI_2 and start[7:12] != _NIFTI_2_MARK:
        raise DecodeError(f"{name} is NIfTI-2, damaged by a transfer as text; copy it again in binary mode")
    is_single = magic[1:2] == b"+"
    if size == _NIFTI_1:
        kind: Any = Nifti1Header if is_single else Nifti1PairHeader
    else:
        kind = Nifti2Header if is_single else Nifti2PairHeader
    # nibabel's own checks repair a header silently: unknown codes of a form, for example, become none
    try:
        header = kind(start[:size], check=False)
    # damaged headers raise errors of many types
    except Exception as error:
        raise DecodeError(f"{name} has a damaged NIfTI header ({type(error).__name__})") from None
    _check_type(int(header["datatype"]), name)
    return header, is_single


def _check_type(code: int, name: str) -> None:
    if code not in _TYPES:
        found = _REFUSED.get(code, f"values of the unknown type {code}")
        raise DecodeError(f"{name} has {found}; numbers of up to 8 bytes and colors of 3 or 4 are supported")


def _build_raster(header: Any, is_single: bool, blob: Blob, values: Blob) -> Raster:
    code = int(header["datatype"])
    order = ">" if header.endianness == ">" else "<"
    (i, j, k), count, vector = _find_shape(header, blob.name)
    color: Literal["", "vector", "RGB", "RGBA"] = "vector" if vector else ""
    if code in _COLORS:
        if count != 1:
            raise DecodeError(f"{blob.name} is a color image with {count} time points; one is supported")
        color, count = _COLORS[code], len(_COLORS[code])
    slope, intercept = (1.0, 0.0) if code in _COLORS else _find_scaling(header, blob.name)
    affine, is_placed, notes = _build_affine(header, (i, j, k), blob.name)
    facts, damage = _find_facts(header, blob) if is_single else (ImageFacts(), ())
    notes = (*_check_bits(header), *notes, *damage)
    return Raster(
        name=blob.name,
        format="NIfTI",
        files=(blob.name,) if is_single else (blob.name, values.name),
        blob=values,
        dtype=np.dtype(order + _TYPES[code]),
        grid=(k, j, i),
        affine=affine,
        space="patient" if is_placed else "image",
        start=_find_offset(header, is_single, blob.name),
        channels=count,
        interleaved=code in _COLORS,
        color=color,
        slope=slope,
        intercept=intercept,
        frame_times=None if color else _find_frame_times(header, count),
        **facts.as_fields(count),
        warnings=notes,
    )


def _find_facts(header: Any, blob: Blob) -> tuple[ImageFacts, tuple[str, ...]]:
    """Return what a comment of medimg in the header extensions states, and warnings."""
    first = int(header.sizeof_hdr)
    end = min(_find_offset(header, True, blob.name), first + _MAX_EXTENSIONS)
    if end <= _MIN_OFFSET[first]:
        return ImageFacts(), ()
    content = blob.start(end)[first:]
    at = _EXTENSION_FLAG
    order: Literal["little", "big"] = "big" if header.endianness == ">" else "little"
    while content[:1] == b"\1" and at + 8 <= len(content):
        size = int.from_bytes(content[at : at + 4], order)
        text = content[at + 8 : at + size].rstrip(b"\0")
        if size < 8:
            break
        if int.from_bytes(content[at + 4 : at + 8], order) == COMMENT and text.startswith(_FACTS_START):
            return ImageFacts.parse(text[len(_FACTS_START) :].decode("latin-1"))
        at += size
    return ImageFacts(), ()


def _find_shape(header: Any, name: str) -> tuple[tuple[int, int, int], int, bool]:
    """Return the grid (i, j, k), the number of channels, and whether these are a vector."""
    try:
        shape = [int(n) for n in header.get_data_shape()]
    # long vectors as FreeSurfer writes them raise this if incomplete
    except Exception as error:
        raise DecodeError(f"{name} has a damaged NIfTI header ({type(error).__name__})") from None
    i, j, k, t, v, *more = (*shape, *(1,) * (7 - len(shape)))
    if any(n != 1 for n in more) or (t != 1 and v != 1):
        raise DecodeError(
            f"{name} has the shape {tuple(shape)}; three dimensions and either time or a vector are supported"
        )
    return (i, j, k), t * v, v != 1


def _find_scaling(header: Any, name: str) -> tuple[float, float]:
    """Return scl_slope and scl_inter; a slope of 0 (nifti1.h) or NaN (nibabel) means stored values."""
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or math.isnan(slope):
        return 1.0, 0.0
    if not (math.isfinite(slope) and math.isfinite(intercept)):
        raise DecodeError(
            f"{name}: scl_slope is {slope:g} and scl_inter {intercept:g}; the header is damaged"
        )
    return slope, intercept


def _check_bits(header: Any) -> tuple[str, ...]:
    """Return a warning if bitpix contradicts datatype."""
    code, stated = int(header["datatype"]), int(header["bitpix"])
    expected = 8 * np.dtype(_TYPES[code]).itemsize * len(_COLORS.get(code, "1"))
    if stated in (0, expected):
        return ()
    return (f"bitpix is {stated}, but datatype {code} has {expected} bits, which are used",)


def _find_offset(header: Any, is_single: bool, name: str) -> int:
    offset = float(header["vox_offset"])
    least = _MIN_OFFSET[header.sizeof_hdr] if is_single else 0
    if not math.isfinite(offset) or not offset.is_integer() or not least <= offset < 2**40:
        raise DecodeError(f"{name}: vox_offset is {offset:g}; expected a whole number of at least {least}")
    return int(offset)


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def _build_affine(
    header: Any, grid: tuple[int, int, int], name: str
) -> tuple[geometry.Affine, bool, tuple[str, ...]]:
    """
    Return the (4, 4) affine to LPS millimeters, whether it maps to a patient, and warnings.

    Sform if its code is positive, else qform, else voxel sizes only (NIfTI standard), in the unit of
    xyzt_units.
    """
    ras, is_placed = np.eye(4), True
    notes: tuple[str, ...] = ()
    if int(header["sform_code"]) > 0:
        ras[:3] = [header[f"srow_{axis}"] for axis in "xyz"]
    else:
        sizes, notes = _find_voxel_sizes(header, grid)
        is_placed = int(header["qform_code"]) > 0
        if is_placed:
            rotation, scaled = _compute_rotation(header, name)
            handed = -1.0 if header["pixdim"][0] < 0 else 1.0
            ras[:3, :3] = rotation * np.array([*sizes[:2], handed * sizes[2]])
            ras[:3, 3] = [header[f"qoffset_{axis}"] for axis in "xyz"]
            notes += scaled
    affine = (
        geometry.lps_from_ras(check_affine(ras, name)) if is_placed else geometry.image_affine(sizes[::-1])
    )
    unit = int(header["xyzt_units"]) & 0x07
    if unit not in _LENGTHS:
        notes += (f"xyzt_units has the unknown unit of length {unit}; millimeters are assumed",)
    affine[:3] *= _LENGTHS.get(unit, 1.0)
    return affine, is_placed, notes


def _find_voxel_sizes(
    header: Any, grid: tuple[int, int, int]
) -> tuple[tuple[float, float, float], tuple[str, ...]]:
    """Return pixdim[1] to pixdim[3], and warnings; an axis of one voxel needs no size."""
    sizes: list[float] = []
    notes: tuple[str, ...] = ()
    for number, (stated, count) in enumerate(zip(header["pixdim"][1:4].tolist(), grid, strict=True), 1):
        if stated < 0:
            notes += (f"pixdim[{number}] is negative; its absolute value is used",)
        if stated == 0 and count > 1:
            notes += (f"pixdim[{number}], a voxel size, is 0; 1 is assumed",)
        sizes.append(abs(stated) or 1.0)
    return (sizes[0], sizes[1], sizes[2]), notes


def _compute_rotation(header: Any, name: str) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """
    Return the rotation (3, 3) of the quaternion (nifti1.h, method 2), and warnings.

    As in the reference implementation (nifti_quatern_to_mat44), one that rounding made longer than 1 is
    scaled.
    """
    b, c, d = (float(header[f"quatern_{axis}"]) for axis in "bcd")
    square = b * b + c * c + d * d
    if not square <= _MAX_LENGTH**2:
        raise GeometryError(
            f"{name}: its qform is not a rotation: the quaternion has the length {math.sqrt(square):.6g}, "
            "expected at most 1; correct the header, or store an sform"
        )
    rest = 1 - square
    if rest < _LEAST_SQUARE:
        a, length = 0.0, math.sqrt(square)
        b, c, d = b / length, c / length, d / length
    else:
        a, length = math.sqrt(rest), 1.0
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - c * c - b * b],
        ]
    )
    is_rounded = length <= 1 + _ROUNDING
    return rotation, () if is_rounded else (f"the quaternion has the length {length:.6g}; it is scaled to 1",)


def _find_frame_times(header: Any, count: int) -> tuple[float, ...] | None:
    unit = _TIMES.get(int(header["xyzt_units"]) & 0x38)
    step = float(header["pixdim"][4]) * (unit or 0.0)
    if not 1 < count <= _MAX_TIMES or not math.isfinite(step) or step <= 0:
        return None
    return tuple(step * t for t in range(count))
