"""Blob: bytes that can be reopened: a file, local or remote, a member of an archive, or in memory."""

from __future__ import annotations

import io
import os
import posixpath
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, cast, runtime_checkable

from medimg.errors import MedimgError, ReadError, also
from medimg.io.files.decompress import (
    MAX_EXPANSION,
    as_seekable,
    open_inflated,
)
from medimg.io.files.listed_file import ListedFile
from medimg.io.files.regular_file import explain_irregular, is_inside, is_regular_file
from medimg.io.files.zip_archive import MAX_MEMBERS, Archive

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Blob",
    "RemoteFile",
    "RemoteFrames",
    "RemoteHeader",
    "VersionedFile",
    "as_blob",
    "list_zip_members",
]


class RemoteFile(Protocol):
    """A file that is not on disk: in object storage, or on a server. Equal ones have equal bytes."""

    def open(self) -> BinaryIO:
        """Open it for random access; ReadError, also while reading, says what the server answered."""
        ...

    def size(self) -> int:
        """Return the number of bytes; ReadError if it does not exist."""
        ...

    def sibling(self, relative: str) -> tuple[str, RemoteFile] | None:
        """Return name and file at a path relative to the folder of this one; None if there is none."""
        ...


@runtime_checkable
class RemoteHeader(Protocol):
    """A remote DICOM file whose header can be read apart from its pixels."""

    def read_header(self, tags: frozenset[int]) -> bytes | None:
        """Return these elements as a file without pixels; None if they have to be read from the file."""
        ...


@runtime_checkable
class RemoteFrames(Protocol):
    """A remote DICOM file whose frames can be read apart from it."""

    def read_frames(self, numbers: Sequence[int]) -> Sequence[tuple[str, memoryview]] | None:
        """
        Return transfer syntax and bytes of frames, counted from 0; None if the file has to be read.

        The bytes are those of one frame: a codestream, or native little-endian pixels of exactly its size.
        """
        ...


@runtime_checkable
class VersionedFile(Protocol):
    """A remote file of which another version is another file."""

    def identify(self) -> str:
        """Return a digest of where it is and of its version, for which nothing is read."""
        ...


@dataclass(frozen=True, slots=True)
class Blob:
    """
    Location of the bytes of one image file.

    Attributes
    ----------
    name : str
        Name for messages and reports: a path, ``archive.zip/member``, or ``<bytes>``.
    archive : Archive or None
        Zip archive that contains it.
    member : str
        Name in the archive.
    data : bytes or None
        Bytes in memory.
    gzipped : bool
        Whether the bytes are to be decompressed by gzip.
    remote : RemoteFile or None
        File that is not on disk.
    """

    name: str
    archive: Archive | None = field(default=None, repr=False)
    member: str = field(default="", repr=False)
    data: bytes | None = field(default=None, repr=False)
    gzipped: bool = False
    remote: RemoteFile | None = field(default=None, repr=False)

    @property
    def is_local_file(self) -> bool:
        """Whether the bytes are a whole file on disk."""
        return self.archive is None and self.data is None and self.remote is None and not self.gzipped

    @property
    def path(self) -> Path | None:
        """Path of the file; None if the bytes are not a whole file on disk."""
        return Path(self.name) if self.is_local_file else None

    @property
    def is_remote(self) -> bool:
        """Whether the bytes come over a network, or from a request."""
        return self.remote is not None or (self.archive is not None and self.archive.is_remote)

    @property
    def listed_file(self) -> ListedFile | None:
        """The file in object storage or on a web server that these bytes are, or that contains them."""
        found = self.remote if self.archive is None else self.archive.remote
        return found if isinstance(found, ListedFile) else None

    @property
    def remote_header(self) -> RemoteHeader | None:
        """The remote file, if its header can be read apart from its pixels."""
        found: object = self.remote
        return found if isinstance(found, RemoteHeader) else None

    @property
    def remote_frames(self) -> RemoteFrames | None:
        """The remote file, if its frames can be read apart from it."""
        found: object = self.remote
        return found if isinstance(found, RemoteFrames) else None

    def unzipped(self) -> Blob:
        """Return the decompressed content of a gzip file."""
        return replace(self, gzipped=True)

    def stream(self) -> BinaryIO:
        """
        Open the bytes for reading forward; memory stays bounded whatever the decompressed size.

        Raises
        ------
        ReadError
            If the file does not exist or can't be opened. Damaged data raise one while they are read.
        """
        stored = self._open_stored()
        return open_inflated(stored, self.name) if self.gzipped else stored

    def open(self) -> BinaryIO:
        """
        Open the bytes for random access; decompressed bytes are kept in memory.

        Raises
        ------
        ReadError
            As :meth:`stream`; while reading, if more than 2 GiB are decompressed.
        """
        if self.archive is None and not self.gzipped:
            return self._open_stored()
        return as_seekable(self.stream(), self.name)

    def fetched(self) -> Blob:
        """Return the bytes in memory, if they are those of a remote file."""
        if self.remote is None:
            return self
        with self.open() as file:
            return Blob(self.name, data=file.read())

    def start(self, count: int = 2048) -> bytes:
        """
        Return the first bytes.

        Parameters
        ----------
        count : int
            Maximum number of bytes.

        Raises
        ------
        ReadError
            If they can't be read.
        """
        with self.stream() as file:
            try:
                return file.read(count)
            except MedimgError:
                raise
            except OSError as error:
                raise also(ReadError, type(error))(f"{self.name} can't be read: {error.strerror}") from None

    def size(self) -> int:
        """
        Return the number of bytes; a gzip file is decompressed to count them.

        Raises
        ------
        ReadError
            If the file does not exist, can't be opened, or its compressed data are damaged.
        """
        if self.archive is not None and not self.gzipped:
            return self.archive.get_entry(self.member).file_size
        if self.remote is not None and not self.gzipped:
            return self.remote.size()
        with self.stream() as file:
            if not self.gzipped:
                return file.seek(0, io.SEEK_END)
            return sum(len(piece) for piece in iter(lambda: file.read(2**20), b""))

    def stored_size(self) -> int:
        """
        Return the number of bytes as stored, compressed or not.

        Raises
        ------
        ReadError
            If the file does not exist or can't be opened.
        """
        if self.archive is not None:
            return self.archive.get_entry(self.member).compress_size
        if self.remote is not None:
            return self.remote.size()
        with self._open_stored() as file:
            return file.seek(0, io.SEEK_END)

    def bound(self) -> int:
        """
        Return an upper bound of the bytes of :meth:`stream`, known without decompression.

        Raises
        ------
        ReadError
            If the file does not exist or can't be opened.
        """
        if self.archive is not None:
            entry = self.archive.get_entry(self.member)
            size = entry.file_size
            if entry.compress_type == zipfile.ZIP_DEFLATED:
                size = min(size, entry.compress_size * MAX_EXPANSION)
        else:
            size = self.stored_size()
        return size * MAX_EXPANSION if self.gzipped else size

    def sibling(self, relative: str) -> Blob | None:
        """
        Return a file by its path relative to the folder of this one; None if it does not exist.

        Bytes in memory have no siblings.

        Parameters
        ----------
        relative : str
            Path with slashes.

        Raises
        ------
        ReadError
            If it is a link to a file outside of the folder.
        """
        if self.data is not None:
            return None
        if self.remote is not None:
            found = self.remote.sibling(relative)
            return None if found is None else Blob(found[0], remote=found[1])
        if self.archive is not None:
            member = posixpath.join(posixpath.dirname(self.member), relative)
            if member not in self.archive.open_directory().NameToInfo:
                return None
            return Blob(f"{self.archive.name}/{member}", self.archive, member)
        header = Path(self.name)
        path = header.parent / relative
        if not is_regular_file(path):
            return None
        # the header can be a link, too
        if not is_inside(path, header.parent) and not is_inside(path, Path(os.path.realpath(header)).parent):
            raise ReadError(
                f"{self.name} has its values behind a link out of its own folder, which is not followed; "
                "copy the file there"
            )
        return Blob(str(path))

    def _open_stored(self) -> BinaryIO:
        if self.data is not None:
            return io.BytesIO(self.data)
        if self.archive is not None:
            return self.archive.open_member(self.member)
        if self.remote is not None:
            return self.remote.open()
        path = Path(self.name)
        irregular = explain_irregular(path)
        if irregular:
            raise ReadError(f"{self.name} is {irregular}")
        try:
            return cast("BinaryIO", path.open("rb"))
        except FileNotFoundError:
            raise also(ReadError, FileNotFoundError)(f"there is no file {self.name}") from None
        # a name with a null character is a ValueError
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise also(ReadError, type(error))(f"{self.name} can't be opened: {reason}") from None


def as_blob(source: str | os.PathLike[str] | Blob) -> Blob:
    """Return a path as a blob, and a blob as it is."""
    return source if isinstance(source, Blob) else Blob(os.fspath(source))


def list_zip_members(source: str | os.PathLike[str] | Blob) -> list[Blob]:
    """
    Return the files in a zip archive, sorted by name, without unpacking it.

    Hidden files and ``__MACOSX`` are left out. Raises ReadError if the archive is damaged or has more than a
    million files.
    """
    blob = as_blob(source)
    archive = Archive(blob.name, blob.data, blob.remote)
    names = [
        e.filename
        for e in archive.open_directory().infolist()
        if not e.filename.endswith(("/", "\\")) and e.filename
    ]
    if len(names) > MAX_MEMBERS:
        raise ReadError(f"{archive.name} has {len(names)} files; at most {MAX_MEMBERS} are supported")
    return [
        Blob(f"{archive.name}/{name}", archive, name) for name in sorted(set(names)) if not _is_hidden(name)
    ]


def _is_hidden(member: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in member.split("/"))
