"""Zip archives whose members are read in place."""

from __future__ import annotations

import io
import os
import struct
import threading
import weakref
import zipfile
from collections import deque
from typing import TYPE_CHECKING, BinaryIO, Final

from medimg.errors import MedimgError, ReadError, also
from medimg.io.files.decompress import (
    DecompressedStream,
    as_buffered,
)
from medimg.io.files.listed_file import limit_read_ahead

if TYPE_CHECKING:
    from medimg.io.files.blob import RemoteFile

__all__ = ["MAX_MEMBERS", "Archive"]

MAX_MEMBERS: Final = 2**20
#: Archives kept open at the same time: the limit of open files is often 1024 per process.
_MAX_OPEN: Final = 32
_ENCRYPTED: Final = 1
_UTF_8: Final = 0x800
_UNSUPPORTED: Final = 0x60  # patched data, strong encryption
#: Bytes of the header before each member, without its name.
_LOCAL_HEADER: Final = 30


class Archive:
    """
    Zip archive, in a file, in memory or elsewhere.

    The directory stays open while few other archives are read in the process; a pickle has only the path.
    """

    def __init__(self, name: str, data: bytes | None = None, remote: RemoteFile | None = None) -> None:
        self.name = name
        self._data = data
        self.remote = remote
        self._lock = threading.Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._closing: weakref.finalize[..., Archive] | None = None

    def __reduce__(self) -> tuple[type[Archive], tuple[str, bytes | None, RemoteFile | None]]:
        return Archive, (self.name, self._data, self.remote)

    @property
    def is_remote(self) -> bool:
        """Whether it is neither on disk nor in memory."""
        return self.remote is not None

    def open_directory(self) -> zipfile.ZipFile:
        """Return the open archive; raise ReadError if it can't be opened or is damaged."""
        with self._lock:
            opened = self._opened
            # after a fork, two processes would share the position in one file
            if opened is None or opened[0] != os.getpid():
                self.release()
                self._opened = opened = os.getpid(), self._open()
                # in a garbage cycle, the file could be collected before its archive
                self._closing = weakref.finalize(self, opened[1].close)
                self._close_others()
            return opened[1]

    def release(self) -> None:
        """Forget the open file."""
        if self._closing is not None:
            self._closing.detach()
        self._opened = self._closing = None

    def _close_others(self) -> None:
        """Release the archive opened first; it closes when none of its members is read any more."""
        if self._data is not None:
            return
        _OPEN_ARCHIVES.append(weakref.ref(self))
        while len(_OPEN_ARCHIVES) > _MAX_OPEN:
            first = _OPEN_ARCHIVES.popleft()()
            if first is not None and first is not self:
                first.release()

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self._open_stored())
        except ReadError:
            raise
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise also(ReadError, type(error))(f"{self.name} can't be opened: {reason}") from None
        # a damaged directory raises errors of many types
        except Exception as error:
            raise ReadError(f"{self.name} is a damaged zip archive ({type(error).__name__})") from None

    def _open_stored(self) -> str | BinaryIO:
        if self.remote is not None:
            return self.remote.open()
        return self.name if self._data is None else io.BytesIO(self._data)

    def get_entry(self, member: str) -> zipfile.ZipInfo:
        """Return the directory entry of a member; raise ReadError if there is none."""
        try:
            return self.open_directory().getinfo(member)
        except KeyError:
            raise also(ReadError, FileNotFoundError)(f"there is no file {member} in {self.name}") from None

    def open_member(self, member: str) -> BinaryIO:
        """Open a member for reading forward; raise ReadError if it is missing, encrypted or damaged."""
        entry = self.get_entry(member)
        name = f"{self.name}/{member}"
        if entry.flag_bits & _ENCRYPTED:
            raise ReadError(f"{name} is encrypted; unpack the archive with its password first")
        try:
            file = (
                self.open_directory().open(entry) if self.remote is None else _open_apart(self.remote, entry)
            )
        except MedimgError:
            raise
        # unknown compression and damage raise errors of many types
        except Exception as error:
            raise ReadError(f"{name} is damaged or can't be decompressed ({type(error).__name__})") from None
        return as_buffered(DecompressedStream(file.read, file.close, name))


def _open_apart(remote: RemoteFile, entry: zipfile.ZipInfo) -> zipfile.ZipExtFile:
    """Open a member by a file of its own: those of one archive would wait for each other."""
    file = remote.open()
    file.seek(entry.header_offset)
    head = file.read(_LOCAL_HEADER)
    if len(head) < _LOCAL_HEADER or not head.startswith(b"PK\x03\x04"):
        raise zipfile.BadZipFile
    # the same checks as those of zipfile
    length, extra = struct.unpack("<HH", head[-4:])
    name = file.read(length).decode("utf-8" if head[7] & _UTF_8 >> 8 else "cp437")
    if name != entry.orig_filename or entry.flag_bits & _UNSUPPORTED:
        raise zipfile.BadZipFile
    start = entry.header_offset + _LOCAL_HEADER + length + extra
    end = getattr(entry, "_end_offset", None)
    if end is not None and start + entry.compress_size > end:
        raise zipfile.BadZipFile
    file.seek(start)
    limit_read_ahead(file, start + entry.compress_size)
    return zipfile.ZipExtFile(file, "r", entry, close_fileobj=True)


_OPEN_ARCHIVES: Final[deque[weakref.ref[Archive]]] = deque()
