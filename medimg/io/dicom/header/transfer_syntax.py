"""Transfer syntaxes (PS3.5 annex A): native ones, compressed ones with a decoder, and refused ones."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from medimg.errors import DecodeError
from medimg.io.dicom.header.attributes import get_identifier

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = [
    "BIG_ENDIAN",
    "EXPLICIT",
    "IMPLICIT",
    "NATIVE_SYNTAXES",
    "SYNTAXES",
    "TransferSyntax",
    "check_syntax",
    "parse_transfer_syntax",
]

_UID_GRAMMAR: Final = re.compile(r"[0-9.]{1,64}")
_UID: Final = "1.2.840.10008.1.2."
IMPLICIT: Final = "1.2.840.10008.1.2"
EXPLICIT: Final = _UID + "1"
#: Explicit VR Big Endian, the only transfer syntax whose binary values have to be swapped.
BIG_ENDIAN: Final = _UID + "2"
#: Implicit and explicit little endian, deflated, big endian; "" for a file without meta information.
NATIVE_SYNTAXES: Final = frozenset({"", IMPLICIT, EXPLICIT, _UID + "1.99", BIG_ENDIAN})


@dataclass(frozen=True, slots=True)
class TransferSyntax:
    """An encapsulated transfer syntax and how its frames are decoded."""

    name: str  # as in PS3.6, shortened
    codec: str  # decoder in pixels/_codecs.py
    gives_rgb: frozenset[str] = frozenset({"RGB"})  # photometric interpretations decoded to RGB
    lossy: bool = False  # values may be slightly outside the range of Bits Stored
    is_codestream: bool = True  # frames have a header that states their size; others hold whole samples
    sign_in_precision: bool = False  # signed values are two's complements of as many bits as the precision


_ALL_COLORS: Final = frozenset(
    {"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_PARTIAL_422", "YBR_PARTIAL_420", "YBR_ICT", "YBR_RCT", "XYB"}
)
_J2K_COLORS: Final = frozenset({"RGB", "YBR_RCT", "YBR_ICT"})

#: Encapsulated transfer syntaxes that are decoded, by UID.
SYNTAXES: Final[dict[str, TransferSyntax]] = {
    _UID + "1.98": TransferSyntax("Encapsulated Uncompressed", "native", is_codestream=False),
    _UID + "5": TransferSyntax("RLE Lossless", "rle", is_codestream=False),
    _UID + "8.1": TransferSyntax("Deflated Image Frame Compression", "deflate", is_codestream=False),
    _UID + "4.50": TransferSyntax("JPEG Baseline", "jpeg", _ALL_COLORS, lossy=True),
    _UID + "4.51": TransferSyntax("JPEG Extended", "jpeg", _ALL_COLORS, lossy=True),
    _UID + "4.57": TransferSyntax("JPEG Lossless", "jpeg-lossless"),
    _UID + "4.70": TransferSyntax("JPEG Lossless SV1", "jpeg-lossless"),
    _UID + "4.80": TransferSyntax("JPEG-LS Lossless", "jpeg-ls", sign_in_precision=True),
    _UID + "4.81": TransferSyntax("JPEG-LS Near-lossless", "jpeg-ls", lossy=True, sign_in_precision=True),
    _UID + "4.90": TransferSyntax("JPEG 2000 Lossless", "jpeg-2000", _J2K_COLORS, sign_in_precision=True),
    _UID + "4.91": TransferSyntax("JPEG 2000", "jpeg-2000", _J2K_COLORS, lossy=True, sign_in_precision=True),
    _UID + "4.110": TransferSyntax("JPEG XL Lossless", "jpeg-xl", _ALL_COLORS),
    _UID + "4.111": TransferSyntax("JPEG XL JPEG Recompression", "jpeg-xl", _ALL_COLORS, lossy=True),
    _UID + "4.112": TransferSyntax("JPEG XL", "jpeg-xl", _ALL_COLORS, lossy=True),
    _UID + "4.201": TransferSyntax("HTJ2K Lossless", "jpeg-2000", _J2K_COLORS, sign_in_precision=True),
    _UID + "4.202": TransferSyntax("HTJ2K Lossless RPCL", "jpeg-2000", _J2K_COLORS, sign_in_precision=True),
    _UID + "4.203": TransferSyntax("HTJ2K", "jpeg-2000", _J2K_COLORS, lossy=True, sign_in_precision=True),
}

_VIDEO: Final = "is video: extract its frames with a video tool such as ffmpeg"
_ELSEWHERE: Final = "leaves the pixels on a server: retrieve the image in another transfer syntax"
_RETIRED: Final = "is retired: convert it to an uncompressed transfer syntax first"
_REFUSED: Final[dict[str, tuple[str, str]]] = {
    **{_UID + f"4.{n}": ("a retired JPEG process", _RETIRED) for n in (*range(52, 57), *range(58, 67))},
    _UID + "4.92": ("JPEG 2000 Part 2 Lossless", "has no free decoder: convert it to JPEG 2000 or native"),
    _UID + "4.93": ("JPEG 2000 Part 2", "has no free decoder: convert it to JPEG 2000 or uncompressed"),
    **{_UID + f"4.{n}": ("JPIP Referenced", _ELSEWHERE) for n in (94, 95, 204, 205)},
    **{_UID + f"4.{n}": ("MPEG2", _VIDEO) for n in ("100", "100.1", "101", "101.1")},
    **{_UID + f"4.{n}{f}": ("MPEG-4 AVC/H.264", _VIDEO) for n in range(102, 107) for f in ("", ".1")},
    **{_UID + f"4.{n}": ("HEVC/H.265", _VIDEO) for n in (107, 108)},
    **{_UID + f"7.{n}": ("SMPTE ST 2110", _VIDEO) for n in (1, 2, 3)},
    _UID + "6.1": ("RFC 2557 MIME", "holds no pixels"),
    _UID + "6.2": ("XML", "holds no pixels"),
}


def check_syntax(syntax_uid: str) -> None:
    """Raise DecodeError if a compressed transfer syntax has no decoder, with its name and what to do."""
    if syntax_uid in SYNTAXES:
        return
    if syntax_uid in _REFUSED:
        name, reason = _REFUSED[syntax_uid]
        raise DecodeError(f"the transfer syntax {syntax_uid} ({name}) {reason}")
    known = ", ".join(s.name for s in SYNTAXES.values())
    shown = syntax_uid if syntax_uid.replace(".", "").isdigit() else "of this file"
    raise DecodeError(f"the transfer syntax {shown} has no decoder; supported are {known}")


def parse_transfer_syntax(dataset: Dataset) -> str:
    """Return the Transfer Syntax UID, "" without meta information; raise DecodeError if it is malformed."""
    found = get_identifier(dataset.file_meta, "TransferSyntaxUID")
    # without it, the pixels may be encoded in any way
    if found and not _UID_GRAMMAR.fullmatch(found):
        raise DecodeError("TransferSyntaxUID is present but is not a UID; the file is damaged")
    return found
