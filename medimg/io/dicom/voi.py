"""Lookup tables and windows that a file declares (PS3.3 C.11.1 and C.11.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.multival import MultiValue

from medimg.core.window import LookupTable, Voi, VoiFunction, Window
from medimg.errors import DecodeError, PreprocessError
from medimg.io.dicom.header import floats, text

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
    for item in dataset.get("VOILUTSequence") or []:
        try:
            tables.append(_table(item, signed_input=_signed_input(dataset)))
        except DecodeError:
            # a table for display only: without it, the image is still what it is
            continue
    return tables


def lookup_table(dataset: Dataset, keyword: str) -> LookupTable | None:
    """Return the table in the first item of a sequence, or None if there is none."""
    items = [item for item in dataset.get(keyword) or [] if item.get("LUTData") or item.get("LUTDescriptor")]
    signed = dataset.get("PixelRepresentation", 0) == 1
    return _table(items[0], signed_input=signed) if items else None


def _signed_input(dataset: Dataset) -> bool:
    """Whether the values that enter the VOI LUT can be negative."""
    intercept = floats(dataset, "RescaleIntercept")
    has_modality_table = bool(dataset.get("ModalityLUTSequence"))
    signed = dataset.get("PixelRepresentation", 0) == 1 or bool(intercept and intercept[0] < 0)
    return signed and not has_modality_table


def _table(item: Dataset, *, signed_input: bool) -> LookupTable:
    """
    Read a LUT Descriptor and its data (PS3.3 C.11.1.1).

    The first number is unsigned, 0 for 65536; the second is signed where the input is; the third is
    unsigned.
    """
    descriptor = item.get("LUTDescriptor")
    data: Any = item.get("LUTData")
    numbers = list(descriptor) if isinstance(descriptor, MultiValue | list | tuple) else []
    if len(numbers) != 3 or data is None:
        raise DecodeError(
            f"a lookup table lacks its data or has a descriptor of {len(numbers)} numbers, not 3"
        )
    count = int(numbers[0]) & 0xFFFF or 65536
    first, bits = int(numbers[1]), int(numbers[2]) & 0xFFFF
    if signed_input and first >= 32768:
        first -= 65536
    if not signed_input and first < 0:
        first += 65536
    entries = _entries(data, count)
    return LookupTable(first, entries, min(max(bits, 1), 16), text(item, "LUTExplanation"))


def _entries(data: Any, count: int) -> np.ndarray[tuple[int], np.dtype[np.uint16]]:
    if isinstance(data, bytes):
        # 8-bit tables are written either packed or one entry in each word
        packed = len(data) < 2 * count
        entries = np.frombuffer(data, np.uint8 if packed else np.dtype("<u2"))
    else:
        entries = np.asarray(data, dtype=np.int64).ravel() & 0xFFFF
        if entries.size < count <= 2 * entries.size:
            entries = np.frombuffer(entries.astype("<u2").tobytes(), np.uint8)
    if entries.size < count:
        raise DecodeError(f"a lookup table of {count} entries holds {entries.size}")
    return entries[:count].astype(np.uint16)


def _windows(dataset: Dataset) -> list[Window]:
    centers, widths = floats(dataset, "WindowCenter"), floats(dataset, "WindowWidth")
    if centers is None or widths is None:
        return []
    explained = dataset.get("WindowCenterWidthExplanation") or []
    names = [explained] if isinstance(explained, str) else list(explained)
    stated = text(dataset, "VOILUTFunction").upper()
    function: VoiFunction = "SIGMOID" if stated == "SIGMOID" else "LINEAR"
    if stated == "LINEAR_EXACT":
        function = "LINEAR_EXACT"
    windows = []
    for place, (center, width) in enumerate(zip(centers, widths, strict=False)):
        name = str(names[place]).strip() if place < len(names) else ""
        try:
            windows.append(Window(center, width, function, name))
        except PreprocessError:
            continue
    return windows
