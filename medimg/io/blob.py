"""Bytes that can be opened again and again: a file, a member of a zip archive, or a buffer in memory."""

from __future__ import annotations

import io
import os
import posixpath
import threading
import weakref
import zipfile
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Final, cast

from medimg.errors import ReadError
from medimg.io.unpacking import MOST_EXPANSION, Unpacking, buffered, inflating, rereadable

__all__ = ["Archive", "Blob", "as_blob", "zip_members"]

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
        return buffered(Unpacking(file.read, file.close, name))


_OPEN: Final[deque[weakref.ref[Archive]]] = deque()


@dataclass(frozen=True, slots=True)
class Blob:
    """
    Where the bytes of one image file are.

    Attributes
    ----------
    name : str
        For messages and reports: a path, ``archive.zip/member``, or ``<bytes>``.
    archive : Archive or None
        The zip archive that it is a member of.
    member : str
        Its name in the archive.
    data : bytes or None
        The bytes themselves, for what never was a file.
    gzipped : bool
        Whether what is meant is what they unpack to.
    """

    name: str
    archive: Archive | None = field(default=None, repr=False)
    member: str = field(default="", repr=False)
    data: bytes | None = field(default=None, repr=False)
    gzipped: bool = False

    @property
    def path(self) -> Path | None:
        """The file, where the bytes are one by themselves."""
        plain = self.archive is None and self.data is None and not self.gzipped
        return Path(self.name) if plain else None

    def unzipped(self) -> Blob:
        """Return what the bytes of a gzip file unpack to."""
        return replace(self, gzipped=True)

    def stream(self) -> BinaryIO:
        """
        Open the bytes for reading forward, which takes little memory however much they unpack to.

        Raises
        ------
        ReadError
            If the file is not there or can't be opened. What is damaged raises one while it is read.
        """
        packed = self._packed()
        return inflating(packed, self.name) if self.gzipped else packed

    def open(self) -> BinaryIO:
        """
        Open the bytes for reading back and forth; what is unpacked for that is kept in memory.

        Raises
        ------
        ReadError
            As :meth:`stream`; while reading, if more than 2 GiB are unpacked.
        """
        if self.archive is None and not self.gzipped:
            return self._packed()
        return rereadable(self.stream(), self.name)

    def start(self, count: int = 2048) -> bytes:
        """
        Return the first bytes.

        Raises
        ------
        ReadError
            If they can't be read.
        """
        with self.stream() as file:
            try:
                return file.read(count)
            except OSError as error:
                raise ReadError(f"{self.name} can't be read: {error.strerror}") from None

    def size(self) -> int:
        """
        Return the number of bytes; a gzip file, which does not say, is unpacked to count them.

        Raises
        ------
        ReadError
            If the file is not there, can't be opened, or its compression is damaged.
        """
        if self.archive is not None and not self.gzipped:
            return self.archive.entry(self.member).file_size
        with self.stream() as file:
            if not self.gzipped:
                return file.seek(0, io.SEEK_END)
            return sum(len(piece) for piece in iter(lambda: file.read(2**20), b""))

    def stored_size(self) -> int:
        """
        Return the number of bytes as they are stored, packed or not.

        Raises
        ------
        ReadError
            If the file is not there or can't be opened.
        """
        if self.archive is not None:
            return self.archive.entry(self.member).compress_size
        with self._packed() as file:
            return file.seek(0, io.SEEK_END)

    def bound(self) -> int:
        """
        Return the most bytes that :meth:`stream` can give, known without unpacking.

        Raises
        ------
        ReadError
            If the file is not there or can't be opened.
        """
        if self.archive is not None:
            entry = self.archive.entry(self.member)
            size = entry.file_size
            if entry.compress_type == zipfile.ZIP_DEFLATED:
                size = min(size, entry.compress_size * MOST_EXPANSION)
        else:
            size = self.stored_size()
        return size * MOST_EXPANSION if self.gzipped else size

    def sibling(self, relative: str) -> Blob | None:
        """
        Return a file by its path relative to the folder of this one; None where there is none.

        Files in memory have no siblings.
        """
        if self.data is not None:
            return None
        if self.archive is not None:
            member = posixpath.join(posixpath.dirname(self.member), relative)
            if member not in self.archive.directory().NameToInfo:
                return None
            return Blob(f"{self.archive.name}/{member}", self.archive, member)
        path = Path(self.name).parent / relative
        return Blob(str(path)) if path.is_file() else None

    def _packed(self) -> BinaryIO:
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.archive is not None:
            return self.archive.stream(self.member)
        path = Path(self.name)
        try:
            if path.exists() and not path.is_file():
                raise ReadError(f"{self.name} is {'a folder' if path.is_dir() else 'no ordinary file'}")
            return cast("BinaryIO", path.open("rb"))
        except FileNotFoundError:
            raise ReadError(f"there is no file {self.name}") from None
        # a name with a null character is a ValueError
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise ReadError(f"{self.name} can't be opened: {reason}") from None


def as_blob(source: str | os.PathLike[str] | Blob) -> Blob:
    """Return a path as a blob; a blob as it is."""
    return source if isinstance(source, Blob) else Blob(os.fspath(source))


def zip_members(source: str | os.PathLike[str] | Blob) -> list[Blob]:
    """
    Return the files in a zip archive, sorted by name, without unpacking it.

    Hidden files are left out, and so is what macOS adds (``__MACOSX``).

    Raises
    ------
    ReadError
        If the archive is damaged, or holds more than a million files.
    """
    blob = as_blob(source)
    archive = Archive(blob.name, blob.data)
    names = [
        e.filename
        for e in archive.directory().infolist()
        if not e.filename.endswith(("/", "\\")) and e.filename
    ]
    if len(names) > _MOST_MEMBERS:
        raise ReadError(f"{archive.name} holds {len(names)} files; up to {_MOST_MEMBERS} are read")
    return [Blob(f"{archive.name}/{name}", archive, name) for name in sorted(set(names)) if not _hidden(name)]


def _hidden(member: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in member.split("/"))
