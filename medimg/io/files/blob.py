"""Bytes that can be opened again and again: a file, a member of a zip archive, or a buffer in memory."""

from __future__ import annotations

import io
import os
import posixpath
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, cast

from medimg.errors import ReadError
from medimg.io.files.decompress import (
    MOST_EXPANSION,
    as_seekable,
    open_inflated,
)
from medimg.io.files.zip_archive import _MOST_MEMBERS, Archive

__all__ = ["Blob", "as_blob", "zip_members"]


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
        return open_inflated(packed, self.name) if self.gzipped else packed

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
        return as_seekable(self.stream(), self.name)

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
