"""Multipart bodies (RFC 2046, PS3.18 8.6.1): answers taken apart, and what is stored put together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from email.message import Message
from typing import TYPE_CHECKING, Final, NamedTuple

from medimg.errors import ReadError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from medimg.io.dicomweb.transport import Answer

__all__ = ["MultipartBody", "Part", "fetch_parts", "parse_parts"]

_MAX_PARTS: Final = 2**16
_MAX_HEADER: Final = 2**12
_BOUNDARY: Final = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")
_BLANK_LINE: Final = b"\r\n\r\n"


class Part(NamedTuple):
    """Content type with its parameters, and bytes of a part, without a copy."""

    content_type: str
    data: memoryview


def parse_parts(answer: Answer) -> list[Part]:
    """
    Return the parts of an answer; one that is not multipart is its only part.

    Raises TruncatedError if the last boundary is missing, ReadError if the body is malformed.
    """
    header = Message()
    header["Content-Type"] = answer.headers.get("Content-Type", "")
    if header.get_content_maintype() != "multipart":
        return [Part(str(header["Content-Type"]), memoryview(answer.body))]
    boundary = header.get_param("boundary")
    if not isinstance(boundary, str) or not _BOUNDARY.fullmatch(boundary):
        raise ReadError("the server's answer is multipart, but states no valid boundary")
    return list(_split(answer.body, f"--{boundary}".encode("ascii")))


def fetch_parts(fetch: Callable[[Callable[[Answer], None]], Answer]) -> list[Part]:
    """Return the parts of what `fetch` gets, parsed once: it is given the check of each attempt's answer."""
    found: list[Part] = []

    def check(answer: Answer) -> None:
        found[:] = parse_parts(answer)

    fetch(check)
    return found


def _split(body: bytearray, delimiter: bytes) -> Iterator[Part]:
    view = memoryview(body)
    at = 0 if body.startswith(delimiter) else _find_delimiter(body, delimiter, 0)
    for _ in range(_MAX_PARTS):
        at += len(delimiter)
        if body[at : at + 2] == b"--":
            return
        line = body.find(b"\r\n", at, at + _MAX_HEADER)
        if line < 0:
            raise TruncatedError("the server's answer ends in the middle")
        # a part without headers begins with a blank line
        is_bare = body[line : line + 4] == _BLANK_LINE
        stop = line if is_bare else body.find(_BLANK_LINE, line, line + _MAX_HEADER)
        if stop < 0:
            raise TruncatedError("the server's answer ends in the header of a part, or it has none")
        content_type, length = _parse_headers(bytes(body[line:stop]))
        start = stop + len(_BLANK_LINE)
        end = _find_end(body, delimiter, start, length)
        yield Part(content_type, view[start:end])
        at = end + 2
    raise ReadError(f"the server's answer has more than {_MAX_PARTS} parts")


def _find_end(body: bytearray, delimiter: bytes, start: int, length: int | None) -> int:
    """Return where a part ends: by its stated length, if a boundary follows there."""
    if length is not None and body.startswith(b"\r\n" + delimiter, start + length):
        return start + length
    return _find_delimiter(body, delimiter, start) - 2


def _find_delimiter(body: bytearray, delimiter: bytes, start: int) -> int:
    at = body.find(b"\r\n" + delimiter, max(0, start - 2))
    if at < 0:
        raise TruncatedError("the server's answer ends before its last boundary")
    return at + 2


def _parse_headers(data: bytes) -> tuple[str, int | None]:
    content_type, length = "", None
    for line in data.decode("latin-1").split("\r\n"):
        name, _, value = line.partition(":")
        if name.strip().lower() == "content-type":
            content_type = value.strip()
        elif name.strip().lower() == "content-length" and value.strip().isdecimal():
            length = int(value.strip()[:18])
    return content_type, length


@dataclass(frozen=True, slots=True)
class MultipartBody:
    """A body of DICOM files, whose bytes are read while they are sent."""

    boundary: str
    files: Sequence[tuple[int, Callable[[], Iterator[bytes]]]]  # size, and the bytes in pieces

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers of the request."""
        return {"Content-Type": f'multipart/related; type="application/dicom"; boundary={self.boundary}'}

    @property
    def _start(self) -> bytes:
        return f"--{self.boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()

    @property
    def _end(self) -> bytes:
        return f"--{self.boundary}--\r\n".encode()

    def __iter__(self) -> Iterator[bytes]:
        for _, read in self.files:
            yield self._start
            yield from read()
            yield b"\r\n"
        yield self._end

    def __len__(self) -> int:
        return sum(size + len(self._start) + 2 for size, _ in self.files) + len(self._end)
