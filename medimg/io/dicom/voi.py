"""Lookup tables and windows that a file declares (PS3.3 C.11.1 and C.11.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medimg.core.window import LookupTable, Voi, VoiFunction, Window
from medimg.errors import DecodeError, PreprocessError
from medimg.io.dicom.attributes import (
    BIG_ENDIAN,
    code,
    description,
    floats,
    is_there,
    items,
    transfer_syntax,
    value,
    whole,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["declared_voi", "lookup_table"]


def declared_voi(dataset: Dataset) -> tuple[Voi, ...]:
    """
    Return the VOI LUTs, then the windows that a data set declares; unusable ones are left out.

    A display applies one of them: a LUT *or* a window, never both (PS3.3 C.11.2.1).
    """
    return (*_tables(dataset), *_windows(dataset))


def _tables(dataset: Dataset) -> list[LookupTable]:
    tables = []
    for item in items(dataset, "VOILUTSequence"):
        try:
            tables.append(_table(item, dataset, signed_input=_signed_input(dataset)))
        except DecodeError:
            # a table for display only: without it, the image is still what it is
            continue
    return tables


def lookup_table(dataset: Dataset, keyword: str) -> LookupTable | None:
    """Return the table in the first item of a sequence, or None if there is none."""
    filled = [i for i in items(dataset, keyword) if is_there(i, "LUTData") or is_there(i, "LUTDescriptor")]
    signed = whole(dataset, "PixelRepresentation", 0) == 1
    return _table(filled[0], dataset, signed_input=signed) if filled else None


def _signed_input(dataset: Dataset) -> bool:
    """Whether the values that enter the VOI LUT can be negative."""
    intercept = floats(dataset, "RescaleIntercept")
    signed = whole(dataset, "PixelRepresentation", 0) == 1 or bool(intercept and intercept[0] < 0)
    return signed and not items(dataset, "ModalityLUTSequence")


def _table(item: Dataset, dataset: Dataset, *, signed_input: bool) -> LookupTable:
    """
    Read a LUT Descriptor and its data (PS3.3 C.11.1.1).

    The first number is unsigned, 0 for 65536; the second is signed where the input is; the third is
    unsigned.
    """
    descriptor = floats(item, "LUTDescriptor", 3)
    data = value(item, "LUTData")
    if descriptor is None or data is None:
        raise DecodeError("a lookup table lacks its data, or its descriptor is not three numbers")
    count, first, bits = (int(n) for n in descriptor)
    count, bits = count & 0xFFFF or 65536, min(max(bits & 0xFFFF, 1), 16)
    if signed_input and first >= 32768:
        first -= 65536
    if not signed_input and first < 0:
        first += 65536
    big_endian = transfer_syntax(dataset) == BIG_ENDIAN
    entries = _entries(data, count, bits, ">u2" if big_endian else "<u2")
    return LookupTable(first, entries, bits, description(item, "LUTExplanation"))


def _entries(data: Any, count: int, bits: int, word: str) -> npt.NDArray[np.uint16]:
    """Return the entries; those of 8 bits are written either packed or one in each word."""
    if isinstance(data, bytes):
        words = np.frombuffer(data[: len(data) // 2 * 2], word)
    else:
        words = np.atleast_1d(np.asarray(data, dtype=np.int64)).ravel().astype(np.uint16)
    entries = words
    if words.size < count and bits <= 8:
        entries = np.frombuffer(data if isinstance(data, bytes) else words.astype("<u2").tobytes(), np.uint8)
    if entries.size < count:
        raise DecodeError(f"a lookup table of {count} entries holds {entries.size}")
    return entries[:count].astype(np.uint16)


def _windows(dataset: Dataset) -> list[Window]:
    centers, widths = floats(dataset, "WindowCenter"), floats(dataset, "WindowWidth")
    if centers is None or widths is None:
        return []
    explained = value(dataset, "WindowCenterWidthExplanation") or ()
    names = [explained] if isinstance(explained, str) else list(explained)
    stated = code(dataset, "VOILUTFunction")
    function: VoiFunction = "SIGMOID" if stated == "SIGMOID" else "LINEAR"
    if stated == "LINEAR_EXACT":
        function = "LINEAR_EXACT"
    windows = []
    for place, (center, width) in enumerate(zip(centers, widths, strict=False)):
        name = str(names[place]).strip() if place < len(names) else ""
        try:
            windows.append(Window(center, width, function, name if name.isprintable() else ""))
        except PreprocessError:
            continue
    return windows
