"""Compressed bytes read forward, piece by piece: damage becomes an error of medimg, memory stays bounded."""

from __future__ import annotations

import io
import re
import zlib
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from isal import isal_zlib

from medimg.errors import DecodeError, ReadError, TruncatedError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MOST_EXPANSION", "DecompressedStream", "as_buffered", "as_seekable", "open_inflated"]

#: How many bytes one byte of deflated data can stand for at most; a header that promises more is wrong.
MOST_EXPANSION: Final = 1032

_MOST_KEPT: Final = 2**31
#: Bytes that are unpacked at once, and that a file is read by: both stay in the cache of a core.
_MOST_AT_ONCE: Final = 2**20
_PIECE: Final = 2**16
_GZIP: Final = b"\x1f\x8b"
_ANY_WRAPPER: Final = 32 + isal_zlib.MAX_WBITS  # the first two bytes tell zlib's from gzip's
#: Errors whose text is one of a few; the stub of isal calls the class an exception.
_CODE: Final = re.compile(r"^Error -?\d+ ")
_STATED: Final = (zlib.error, cast("type[Exception]", isal_zlib.IsalError))


class DecompressedStream(io.RawIOBase):
    """
    A file that can only be read forward, whose damage is reported as errors of medimg.

    Parameters
    ----------
    read : callable
        Returns up to that many of the next bytes, none at the end.
    close : callable
        Closes what `read` reads from.
    name : str
        For messages.
    """

    def __init__(self, read: Callable[[int], bytes], close: Callable[[], None], name: str) -> None:
        super().__init__()
        self._read = read
        self._close = close
        self.name = name

    def readable(self) -> bool:
        """Whether it can be read: always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """
        Fill a buffer, or less where the data come in smaller pieces.

        Raises
        ------
        TruncatedError
            If the compressed data end too early.
        DecodeError
            If they are damaged: a checksum does not match, for example.
        """
        view = memoryview(buffer).cast("B")
        if not view:
            return 0
        try:
            data = self._read(min(len(view), _MOST_AT_ONCE))
        except ReadError:
            raise
        except EOFError:
            raise TruncatedError(f"{self.name} ends inside its compressed data; copy it again") from None
        # damage raises errors of many kinds, by the method of compression
        except Exception as error:
            raise DecodeError(f"{self.name} is damaged: it can't be unpacked ({_cause(error)})") from None
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close it and what it reads from."""
        if not self.closed:
            self._close()
        super().close()


def _cause(error: Exception) -> str:
    """Return the reason that an inflater gives, which is one of a few fixed texts; else the kind of error."""
    return _CODE.sub("", str(error)) if isinstance(error, _STATED) else type(error).__name__


class _Inflater:
    """
    The bytes of zlib data, or of the members of a gzip file one after the other (RFC 1950, RFC 1952).

    Unpacked by ISA-L, which is three times as fast as zlib, and lets other threads run meanwhile.
    """

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._held = b""
        self._inflater = isal_zlib.decompressobj(_ANY_WRAPPER)
        self._more_held = False
        self._ended = False

    def read(self, count: int) -> bytes:
        while not self._ended:
            packed = self._inflater.unconsumed_tail
            if not packed and not self._more_held:
                packed = self._next_piece()
                if not packed:
                    raise EOFError
            data = self._inflater.decompress(packed, count)
            self._more_held = len(data) == count
            if self._inflater.eof:
                self._next_member()
            if data:
                return data
        return b""

    def _next_piece(self) -> bytes:
        held, self._held = self._held, b""
        return held or self._packed.read(_PIECE)

    def _next_member(self) -> None:
        rest = self._inflater.unused_data.lstrip(b"\0")
        while not rest and (piece := self._packed.read(_PIECE)):
            rest = piece.lstrip(b"\0")
        if len(rest) == 1:
            rest += self._packed.read(_PIECE)
        self._ended = rest[:2] != _GZIP  # what else follows is no part of the data
        if not self._ended:
            self._inflater = isal_zlib.decompressobj(_ANY_WRAPPER)
            self._held = rest
        self._more_held = False


def open_inflated(packed: BinaryIO, name: str) -> BinaryIO:
    """
    Return the unpacked bytes of a gzip file or of zlib data, to be read forward.

    The checksum is verified when the end is read.
    """
    return as_buffered(DecompressedStream(_Inflater(packed).read, packed.close, name))


def as_buffered(raw: io.RawIOBase) -> BinaryIO:
    """Return a file whose ``read`` gives as many bytes as asked for, but at the end."""
    return cast("BinaryIO", io.BufferedReader(raw, 2**16))


def as_seekable(stream: BinaryIO, name: str) -> BinaryIO:
    """Return a file that can be searched back and forth, over one that only goes forward."""
    return as_buffered(_Kept(stream, name))


class _Kept(io.RawIOBase):
    """Keeps in memory what has been read so far, and no more: a header costs no more than itself."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        super().__init__()
        self._stream = stream
        self.name = name
        self._data = bytearray()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def _fill(self, end: int) -> None:
        while len(self._data) < end:
            piece = self._stream.read(min(max(end - len(self._data), 2**12), 2**24))
            if not piece:
                return
            self._data += piece
            if len(self._data) > _MOST_KEPT:
                raise ReadError(f"{self.name} unpacks to more than {_MOST_KEPT >> 20} MB; unpack it first")

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._fill(self._at + len(view))
        data = self._data[self._at : self._at + len(view)]
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:
            self._fill(_MOST_KEPT + 1)
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._data)}[whence]
        if start + offset < 0:
            raise OSError(22, "negative position in a file")
        self._at = start + offset
        return self._at

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
