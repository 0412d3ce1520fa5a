"""Files in object storage and on web servers: random access by ranges of bytes."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final, cast
from urllib.parse import quote, urlsplit, urlunsplit

from medimg.core.content_hash import content_hash, json_text
from medimg.errors import ReadError
from medimg.io.files.byte_ranges import FIRST_BYTES, FileFacts, fetch_range, find_file
from medimg.io.files.object_storage import is_web_url, name_url

__all__ = ["ByteRange", "ListedFile", "find_url", "limit_read_ahead"]

#: Bytes that are read ahead at most, and how much more than the last time.
_MOST_AHEAD: Final = 2**23
_GROWTH: Final = 8
#: Bytes of a file that are kept in memory as a whole.
_MAX_WHOLE: Final = 2**32
_KEPT_HEADS: Final = 256


class _Heads:
    """The first bytes of recent files: a file is identified first, and then opened."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget them, and what another thread held before a fork."""
        self._lock = threading.Lock()
        self._heads: OrderedDict[ListedFile, bytes] = OrderedDict()

    def get(self, file: ListedFile) -> bytes | None:
        """Return the first bytes of a file, if they are kept."""
        with self._lock:
            return self._heads.get(file)

    def put(self, file: ListedFile, data: bytes) -> None:
        """Keep the first bytes of a file whose version is known."""
        if not file.version or not file.length:
            return
        with self._lock:
            self._heads[file] = data[:FIRST_BYTES]
            while len(self._heads) > _KEPT_HEADS:
                self._heads.popitem(last=False)


_HEADS: Final = _Heads()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_HEADS.reset)


@dataclass(frozen=True, slots=True)
class ListedFile:
    """
    A file at a URL, as it was when it was listed; reading another version of it raises ReadError.

    `version` is the entity tag, or the time of modification; "" if the server gives none, so that only a
    change of size is noticed. `ranged`: whether the server gives ranges of bytes.
    """

    url: str = field(repr=False)
    length: int
    version: str
    ranged: bool = True

    @property
    def name(self) -> str:
        """Name for messages; see :func:`name_url`."""
        return name_url(self.url)

    @property
    def digest(self) -> str:
        """Digest of name, size and version, 64 hexadecimal digits; "" if the version is unknown."""
        facts = [self.name, self.length, self.version]
        return content_hash(json_text(facts)) if self.version else ""

    def open(self) -> BinaryIO:
        """Open it for random access; nothing is fetched before it is read."""
        return cast("BinaryIO", _RangedFile(self))

    def size(self) -> int:
        """Return the number of bytes."""
        return self.length

    def read(self, start: int, stop: int) -> tuple[int, bytes]:
        """Return bytes that include those from `start` to `stop`, and the offset of the first."""
        return fetch_range(self.url, start, stop, FileFacts(self.length, self.version))

    def sibling(self, relative: str) -> tuple[str, ListedFile] | None:
        """Return name and file at a path below the folder of this one; None if there is none."""
        if any(part in ("", ".", "..") for part in relative.split("/")) or set(relative) & set("\\\0"):
            return None
        try:
            found = find_url(_replace_name(self.url, relative))
        except ReadError as error:
            if isinstance(error, FileNotFoundError):
                return None
            raise
        return None if found is None else (found[0].name, found[0])

    def remember_start(self, data: bytes) -> None:
        """Keep the first bytes for when it is opened next."""
        _HEADS.put(self, data)


def find_url(url: str) -> tuple[ListedFile, bytes | None] | None:
    """
    Return the file at a URL, and its bytes if the server states no size; None for a folder.

    Raises ReadError, also a FileNotFoundError, if there is nothing.
    """
    facts, head, is_whole = find_file(url)
    if facts is None:
        return None
    found = ListedFile(url, *facts)
    found.remember_start(head)
    return found, head if is_whole else None


def _replace_name(url: str, relative: str) -> str:
    """Return the URL of a path below the folder of a file; without its query, which is of that file."""
    if not is_web_url(url):
        return f"{url.rpartition('/')[0]}/{relative}"
    scheme, host, path, _, _ = urlsplit(url)
    return urlunsplit((scheme, host, f"{path.rpartition('/')[0]}/{quote(relative)}", "", ""))


class _RangedFile(io.BufferedIOBase):
    """
    Random access to a file by ranges; one of them is in memory.

    What is read on and on is fetched in larger and larger pieces, up to 8 MiB, and not beyond `limit`.
    """

    def __init__(self, file: ListedFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0
        self._start = 0
        self._data = b""
        self._ahead = FIRST_BYTES
        self.limit = file.length

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check_open()
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.length}[whence]
        if origin + offset < 0:
            raise OSError(22, "negative position in a file")
        self._at = origin + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            return self._read_rest()
        self._check_open()
        stop = min(self._at + size, self._file.length)
        if stop <= self._at:
            return b""
        self._fill(stop)
        data = self._data[self._at - self._start : stop - self._start]
        self._at = stop
        return data

    def read1(self, size: int = -1) -> bytes:
        return self.read(min(size, FIRST_BYTES) if size >= 0 else FIRST_BYTES)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def readline(self, size: int | None = -1) -> bytes:
        self._check_open()
        most = self._file.length if size is None or size < 0 else size
        line = b""
        while len(line) < most and self._at < self._file.length:
            self._fill(self._at + 1)
            begin = self._at - self._start
            end = self._data.find(b"\n", begin, begin + most - len(line)) + 1
            piece = self._data[begin : end or begin + most - len(line)]
            line += piece
            self._at += len(piece)
            if end:
                break
        return line

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on a closed file")

    def _read_rest(self) -> bytes:
        if self._file.length - self._at > _MAX_WHOLE:
            raise ReadError(
                f"{self._file.name} has more than {_MAX_WHOLE >> 20} MB to read at once; download it"
            )
        return self.read(self._file.length)

    def _fill(self, stop: int) -> None:
        """Have the bytes from the position on up to `stop` in memory, and more if reading goes on and on."""
        end = self._start + len(self._data)
        if self._start <= self._at and stop <= end:
            return
        if self._data and self._start <= self._at <= end:
            kept = self._data[self._at - self._start :]
            self._ahead = min(self._ahead * _GROWTH, _MOST_AHEAD)
        else:
            kept, self._ahead = self._find_start(), FIRST_BYTES
        begin = self._at
        if not kept and self.limit == self._file.length:
            # the directory of an archive is read from the end on backwards
            begin = min(begin, max(0, self.limit - FIRST_BYTES))
        first = begin + len(kept)
        if first < stop:
            offset, data = self._file.read(first, max(stop, min(first + self._ahead, self.limit)))
            if offset < first:  # the server gives no ranges
                self._start, self._data = offset, data
                return
            if first == 0:
                self._file.remember_start(data)
            kept += data
        self._start, self._data = begin, kept

    def _find_start(self) -> bytes:
        """Return what is kept of the start of the file from the position on."""
        head = _HEADS.get(self._file) if self._at < FIRST_BYTES else None
        return b"" if head is None else head[self._at :]


class ByteRange:
    """Bytes of a file as if they were in memory: parts are fetched when they are taken."""

    def __init__(self, file: ListedFile, start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> memoryview:
        first, stop, _ = part.indices(self._length)
        if stop <= first:
            return memoryview(b"")
        offset, data = self._file.read(self._start + first, self._start + stop)
        skipped = self._start + first - offset
        return memoryview(data)[skipped : skipped + stop - first]


def limit_read_ahead(file: BinaryIO, stop: int) -> None:
    """Say that nothing from a position on is needed of a file, so that it is not fetched."""
    if isinstance(file, _RangedFile):
        file.limit = stop
