"""Frames of instances on a server (WADO-RS), apart from their files, if the server sends them as stored."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Final

from medimg.core.logger import get_logger
from medimg.io.dicom.header.transfer_syntax import BIG_ENDIAN, EXPLICIT, NATIVE_SYNTAXES, SYNTAXES
from medimg.io.dicomweb.dicom_json import get_json_number, get_json_value
from medimg.io.dicomweb.multipart import fetch_parts
from medimg.io.dicomweb.transport import ServerAnswerError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medimg.io.dicomweb.dicom_json import JsonObject
    from medimg.io.dicomweb.file_cache import FileCache
    from medimg.io.dicomweb.multipart import Part
    from medimg.io.dicomweb.service_url import ResourceUrl
    from medimg.io.dicomweb.transport import Transport

__all__ = ["Frame", "FrameLayout", "FrameRetriever"]

#: Transfer syntax and bytes of a frame.
Frame = tuple[str, memoryview]

_ACCEPT: Final = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'
#: Answers of servers that don't send frames, not in this transfer syntax, or not several at once.
_NOT_SENT: Final = frozenset({400, 404, 405, 406, 415, 500, 501})
#: Bytes of the headers of a part.
_PART_BYTES: Final = 2**12
_UID_BYTES: Final = 64
_LITTLE_ENDIAN: Final = NATIVE_SYNTAXES - {"", BIG_ENDIAN}
#: Pixel data of floating-point numbers: headers made of metadata don't tell them from integers.
_FLOAT_DATA: Final = ("7FE00008", "7FE00009")


@dataclass(frozen=True, slots=True)
class FrameLayout:
    """What the metadata of a multi-frame instance say of its frames."""

    size: int  # bytes of a frame, if it is not compressed
    syntax: str  # Transfer Syntax UID in which it is stored, "" if the server does not state it
    has_plain_values: bool  # False if a server that decodes frames may have converted their colors
    is_lossy: bool  # whether it was ever compressed with loss

    @classmethod
    def from_metadata(cls, item: JsonObject) -> FrameLayout | None:
        """Return the layout; None of a single frame, and of frames that are not whole bytes of integers."""
        rows, columns, samples, bits, count = (
            get_json_number(item, tag) or 0
            for tag in ("00280010", "00280011", "00280002", "00280100", "00280008")
        )
        samples = samples or 1
        size, rest = divmod(rows * columns * samples * bits, 8)
        if count <= 1 or not size or rest or any(tag in item for tag in _FLOAT_DATA):
            return None
        syntax = get_json_value(item, "00083002")
        planar = get_json_number(item, "00280006") or 0
        is_plain_rgb = get_json_value(item, "00280004") == "RGB" and not planar
        is_lossy = get_json_value(item, "00282110") == "01" or _is_lossy(syntax)
        return cls(size, syntax, samples == 1 or is_plain_rgb or syntax in _LITTLE_ENDIAN, is_lossy)

    @property
    def largest_size(self) -> int:
        """Bytes that a frame can have: codestreams of noise are somewhat longer than what they hold."""
        return self.size * 3 // 2 + _PART_BYTES

    def parse(self, part: Part) -> Frame | None:
        """Return a frame; None if it is in another format than its type states, or that is not decoded."""
        header = Message()
        header["Content-Type"] = part.content_type
        stated = header.get_param("transfer-syntax")
        is_bytes = header.get_content_type() == "application/octet-stream"
        syntax = stated if isinstance(stated, str) else (EXPLICIT if is_bytes else "")
        if syntax in SYNTAXES:
            # a server may have made it of uncompressed pixels
            return None if _is_lossy(syntax) and not self.is_lossy else (syntax, part.data)
        # a byte more makes the length even
        if (
            syntax not in _LITTLE_ENDIAN
            or not self.has_plain_values
            or not 0 <= len(part.data) - self.size <= 1
        ):
            return None
        return EXPLICIT, part.data[: self.size]


def _is_lossy(syntax: str) -> bool:
    return syntax in SYNTAXES and SYNTAXES[syntax].lossy


class FrameRetriever:
    """Reads frames of one server, and remembers of which instances it does not send any."""

    def __init__(self, transport: Transport, cache: FileCache | None) -> None:
        self._transport = transport
        self._cache = cache
        self._refused: set[str] = set()
        self._reported: set[str] = set()
        self._sends_several = True

    def read(
        self, resource: ResourceUrl, layout: FrameLayout, digest: str, numbers: Sequence[int]
    ) -> list[Frame] | None:
        """
        Return frames, counted from 0, of an instance; None if its file has to be read.

        Raises ReadError as :meth:`Transport.get` does, but not for the answers of servers without frames.
        """
        # those of a series have one transfer syntax, in which they come from a scanner
        key = layout.syntax or resource.in_series(resource.series).path
        if key in self._refused:
            return None
        found = {number: self._load(resource, digest, number) for number in numbers}
        missing = [number for number, frame in found.items() if frame is None]
        fetched = self._fetch(resource, layout, missing)
        if isinstance(fetched, str):
            self._refused.add(key)
            self._report(layout.syntax, fetched)
            return None
        for number, frame in zip(missing, fetched, strict=True):
            found[number] = frame
            self._store(resource, digest, number, frame)
        return [frame for frame in found.values() if frame is not None]

    def _fetch(self, resource: ResourceUrl, layout: FrameLayout, numbers: list[int]) -> list[Frame] | str:
        """Return frames, or the reason for which they are not sent."""
        if not numbers:
            return []
        if self._sends_several or len(numbers) == 1:
            found = self._request(resource, layout, numbers)
            if not isinstance(found, str) or len(numbers) == 1:
                return found
        frames: list[Frame] = []
        for number in numbers:
            one = self._request(resource, layout, [number])
            if isinstance(one, str):
                return one
            self._sends_several = False
            frames += one
        return frames

    def _request(self, resource: ResourceUrl, layout: FrameLayout, numbers: list[int]) -> list[Frame] | str:
        path = f"{resource.path}/frames/{','.join(str(number + 1) for number in numbers)}"
        most = len(numbers) * (layout.largest_size + _PART_BYTES)
        try:
            parts = fetch_parts(lambda check: self._transport.get(path, _ACCEPT, most=most, check=check))
        except ServerAnswerError as error:
            if error.status not in _NOT_SENT:
                raise
            return f"it answers {error.status}"
        if len(parts) != len(numbers):
            return f"it sends {len(parts)} instead of {len(numbers)}"
        frames = [layout.parse(part) for part in parts]
        found = [frame for frame in frames if frame is not None]
        return found if len(found) == len(frames) else "it sends them in another format than stated"

    def _report(self, syntax: str, reason: str) -> None:
        """Log once for each transfer syntax that whole instances are read."""
        if syntax not in self._reported:
            self._reported.add(syntax)
            get_logger().warning(
                "%s does not send single frames%s (%s): whole multi-frame instances are read from it",
                self._transport.host,
                f" of transfer syntax {syntax}" if syntax.replace(".", "").isdecimal() else "",
                reason,
            )

    def _load(self, resource: ResourceUrl, digest: str, number: int) -> Frame | None:
        found = None if self._cache is None else self._cache.load(_make_key(resource, digest, number))
        if found is None:
            return None
        return found[:_UID_BYTES].decode("ascii").strip(), memoryview(found)[_UID_BYTES:]

    def _store(self, resource: ResourceUrl, digest: str, number: int, frame: Frame) -> None:
        if self._cache is not None:
            syntax, data = frame
            packed = syntax.ljust(_UID_BYTES).encode("ascii") + bytes(data)
            self._cache.store(_make_key(resource, digest, number), packed)


def _make_key(resource: ResourceUrl, digest: str, number: int) -> tuple[str, str, str]:
    return resource.url, digest, f"frame {number}"
