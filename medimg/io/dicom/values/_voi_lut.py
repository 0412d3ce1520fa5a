"""Lookup tables and windows that a file declares (PS3.3 C.11.1 and C.11.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast, get_args

import numpy as np

from medimg.core.window import LookupTable, Voi, VoiFunction, Window
from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import (
    get_description,
    get_descriptions,
    get_floats,
    get_items,
    get_value,
    has_value,
    parse_defined_term,
    parse_items,
)
from medimg.io.dicom.header.element_values import note_finding
from medimg.io.dicom.header.image_pixel import is_signed
from medimg.io.dicom.header.transfer_syntax import BIG_ENDIAN, parse_transfer_syntax

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt
    from pydicom.dataset import Dataset

#: Bits per entry (PS3.3 C.11.1.1.1, C.11.2.1.1).
_MOST_BITS: Final = 16
#: Entries beyond the stated number that pad the data.
_PADDING: Final = 1

__all__ = ["build_lookup_table", "parse_declared_voi", "parse_lookup_table"]


def parse_declared_voi(dataset: Dataset) -> tuple[Voi, ...]:
    """
    Return the VOI LUTs, then the windows that a dataset declares, without unusable ones, which are noted.

    A display applies one of them: a LUT *or* a window, never both (PS3.3 C.11.2.1).
    """
    return (*_parse_tables(dataset), *_parse_windows(dataset))


def _parse_tables(dataset: Dataset) -> list[LookupTable]:
    tables = []
    for item in _list_filled(get_items(dataset, "VOILUTSequence")):
        try:
            tables.append(_parse_item(item, dataset, signed_input=_has_signed_input(dataset)))
        except DecodeError as error:
            # only the display needs it, the values do not
            note_finding(f"VOILUTSequence: {error}; it is not used")
    return tables


def parse_lookup_table(dataset: Dataset, keyword: str) -> LookupTable | None:
    """Return the table in the first filled item of a sequence; None if there is none."""
    filled = _list_filled(parse_items(dataset, keyword))
    signed = is_signed(dataset)
    return _parse_item(filled[0], dataset, signed_input=signed) if filled else None


def _list_filled(items: Sequence[Dataset]) -> list[Dataset]:
    return [item for item in items if has_value(item, "LUTData") or has_value(item, "LUTDescriptor")]


def _has_signed_input(dataset: Dataset) -> bool:
    """Whether the input of the VOI LUT can be negative."""
    intercept = get_floats(dataset, "RescaleIntercept")
    signed = is_signed(dataset) or bool(intercept and intercept[0] < 0)
    return signed and not get_items(dataset, "ModalityLUTSequence")


def _parse_item(item: Dataset, dataset: Dataset, *, signed_input: bool) -> LookupTable:
    big_endian = parse_transfer_syntax(dataset) == BIG_ENDIAN
    return build_lookup_table(
        item, "LUTDescriptor", get_value(item, "LUTData"), signed_input=signed_input, big_endian=big_endian
    )


def build_lookup_table(
    item: Dataset,
    keyword: str,
    data: Any,
    *,
    signed_input: bool,
    big_endian: bool,
    expand: Callable[..., Sequence[int]] | None = None,
) -> LookupTable:
    """
    Return a table by its descriptor (PS3.3 C.11.1.1 and C.7.6.3.1.5): entries, first input value, bits.

    Entries of 8 bits are packed or one per word, as the length of `data` shows; `expand` expands segmented
    `data`.
    """
    descriptor = get_floats(item, keyword, 3)
    if descriptor is None or data is None or not all(n.is_integer() for n in descriptor):
        raise DecodeError("a lookup table lacks its data, or its descriptor is not three whole numbers")
    count, first, bits = (int(n) for n in descriptor)
    count, bits = count & 0xFFFF or 65536, bits & 0xFFFF
    # too few bits are a slip: white is then the largest entry
    if not 1 <= bits <= _MOST_BITS:
        raise DecodeError(f"a lookup table declares {bits} bits per entry; expected 8 to {_MOST_BITS}")
    if signed_input and first >= 32768:
        first -= 65536
    if not signed_input and first < 0:
        first += 65536
    words = _to_words(data, big_endian=big_endian)
    if expand is not None:
        packed = bits <= 8
        numbers = (words.astype("<u2").view(np.uint8) if packed else words).tolist()
        entries = np.asarray(expand(numbers, count, bytes_each=1 if packed else 2), np.uint16)
    else:
        entries = words
        if words.size < count and bits <= 8:
            entries = words.astype("<u2").view(np.uint8)
    if not count <= entries.size <= count + _PADDING:
        raise DecodeError(f"a lookup table of {count} entries holds {entries.size}")
    return LookupTable(
        first, entries[:count].astype(np.uint16), bits, get_description(item, "LUTExplanation")
    )


def _to_words(data: Any, *, big_endian: bool) -> npt.NDArray[np.uint16]:
    if isinstance(data, bytes):
        return np.frombuffer(data[: len(data) // 2 * 2], ">u2" if big_endian else "<u2").astype(np.uint16)
    try:
        numbers = np.atleast_1d(np.asarray(data, dtype=np.float64)).ravel()
    except (TypeError, ValueError, OverflowError):
        numbers = np.array([np.nan])
    # signed numbers are words with another VR
    if not ((numbers >= -(2**15)) & (numbers < 2**16) & (numbers == np.floor(numbers))).all():
        raise DecodeError("a lookup table does not hold whole numbers of up to 16 bits")
    return numbers.astype(np.int64).astype(np.uint16)


def _parse_windows(dataset: Dataset) -> list[Window]:
    centers, widths = get_floats(dataset, "WindowCenter") or (), get_floats(dataset, "WindowWidth") or ()
    if len(centers) != len(widths):
        note_finding(
            f"WindowCenter has {len(centers)} usable value(s) and WindowWidth {len(widths)}; "
            f"{min(len(centers), len(widths))} window(s) are used"
        )
    names = get_descriptions(dataset, "WindowCenterWidthExplanation")
    stated = parse_defined_term(dataset, "VOILUTFunction", get_args(VoiFunction), "LINEAR")
    function = cast("VoiFunction", stated)
    windows = []
    for index, (center, width) in enumerate(zip(centers, widths, strict=False)):
        if width <= 0:
            note_finding(f"WindowWidth is {width:g}, more than 0 is expected; the window is not used")
            continue
        shape = function
        if function == "LINEAR" and width < 1:
            note_finding(
                f"WindowWidth is {width:g}, but at least 1 for the VOI LUT function LINEAR; "
                "LINEAR_EXACT is used"
            )
            shape = "LINEAR_EXACT"
        windows.append(Window(center, width, shape, names[index] if index < len(names) else ""))
    return windows
