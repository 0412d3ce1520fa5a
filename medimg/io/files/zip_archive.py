"""Zip archives whose members are read in place."""

from __future__ import annotations

import io
import os
import threading
import weakref
import zipfile
from collections import deque
from typing import BinaryIO, Final

from medimg.errors import ReadError
from medimg.io.files.decompress import (
    DecompressedStream,
    as_buffered,
)

__all__ = ["Archive"]

_MOST_MEMBERS: Final = 2**20
#: Archives that are kept open at the same time: a process may open a thousand files, and a study has more.
_MOST_OPEN: Final = 32
_ENCRYPTED: Final = 1


class Archive:
    """
    A zip archive, in a file or in memory, that is read in place.

    Its directory is kept while few others are read in the same process; what is pickled is only where the
    archive is.

    Parameters
    ----------
    name : str
        Its path, or a name for messages if there are `data`.
    data : bytes, optional
        The archive itself.
    """

    def __init__(self, name: str, data: bytes | None = None) -> None:
        self.name = name
        self._data = data
        self._lock = threading.Lock()
        self._opened: tuple[int, zipfile.ZipFile] | None = None
        self._closing: weakref.finalize[..., Archive] | None = None

    def __reduce__(self) -> tuple[type[Archive], tuple[str, bytes | None]]:
        return Archive, (self.name, self._data)

    def directory(self) -> zipfile.ZipFile:
        """
        Return the open archive.

        Raises
        ------
        ReadError
            If it can't be opened, or is damaged.
        """
        with self._lock:
            opened = self._opened
            # after a fork, two processes would move the position of one file
            if opened is None or opened[0] != os.getpid():
                self._let_go()
                self._opened = opened = os.getpid(), self._open()
                # in a cycle of garbage, the file could be collected before what closes it
                self._closing = weakref.finalize(self, opened[1].close)
                self._close_others()
            return opened[1]

    def _let_go(self) -> None:
        if self._closing is not None:
            self._closing.detach()
        self._opened = self._closing = None

    def _close_others(self) -> None:
        """Let go of the archive opened first; it closes when no member of it is read any more."""
        if self._data is not None:
            return
        _OPEN.append(weakref.ref(self))
        while len(_OPEN) > _MOST_OPEN:
            first = _OPEN.popleft()()
            if first is not None and first is not self:
                first._let_go()

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.name if self._data is None else io.BytesIO(self._data))
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ReadError(f"{self.name} can't be opened: {reason}") from None
        # a damaged directory raises errors of many kinds
        except Exception as error:
            raise ReadError(f"{self.name} is a damaged zip archive ({type(error).__name__})") from None

    def entry(self, member: str) -> zipfile.ZipInfo:
        """
        Return what the directory says of a file.

        Raises
        ------
        ReadError
            If there is no such file.
        """
        try:
            return self.directory().getinfo(member)
        except KeyError:
            raise ReadError(f"there is no file {member} in {self.name}") from None

    def stream(self, member: str) -> BinaryIO:
        """
        Open a file for reading forward.

        Raises
        ------
        ReadError
            If there is no such file, or it is encrypted or packed in a way that can't be read.
        """
        entry = self.entry(member)
        name = f"{self.name}/{member}"
        if entry.flag_bits & _ENCRYPTED:
            raise ReadError(f"{name} is encrypted; unpack the archive with its password first")
        try:
            file = self.directory().open(entry)
        # unknown methods of compression and damage raise errors of many kinds
        except Exception as error:
            raise ReadError(f"{name} is damaged or can't be unpacked ({type(error).__name__})") from None
        return as_buffered(DecompressedStream(file.read, file.close, name))


_OPEN: Final[deque[weakref.ref[Archive]]] = deque()
