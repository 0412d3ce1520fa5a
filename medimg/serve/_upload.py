"""The body of a request: its files, in memory up to a bound, then in a temporary file without a name."""

from __future__ import annotations

import errno
import io
import tempfile
import threading
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from medimg.errors import ReadError
from medimg.io.files.blob import Blob
from medimg.io.files.decompress import as_buffered
from medimg.serve._problem import RequestError

if TYPE_CHECKING:
    from medimg.io.files.blob import RemoteFile
    from medimg.serve.limits import ServiceLimits

__all__ = ["Upload"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class Upload:
    """Files of a request, one after another; nothing of them is left after :meth:`close`, nor a kill."""

    def __init__(self, limits: ServiceLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._memory = bytearray()
        self._disk: BinaryIO | None = None
        self._is_closed = False
        self._starts: list[tuple[str, int]] = []
        self.size = 0

    @property
    def is_on_disk(self) -> bool:
        """Whether the bytes are in a temporary file."""
        return self._disk is not None

    def start_file(self, name: str) -> None:
        """Begin the next file; RequestError if there are too many."""
        if len(self._starts) == self._limits.max_files:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has more than {self._limits.max_files} files; send fewer at once",
            )
        self._starts.append((name or f"file {len(self._starts)}", self.size))

    def write(self, data: bytes) -> None:
        """Append to the last file; RequestError if there is no room for it."""
        try:
            with self._lock:
                if self._is_closed:
                    return
                self._append(data)
        except OSError as error:
            if error.errno not in _NO_SPACE:
                raise
            raise RequestError(
                HTTPStatus.INSUFFICIENT_STORAGE, "the service has no room for the body now; try again later"
            ) from None

    def _append(self, data: bytes) -> None:
        if self._disk is None and self.size + len(data) > self._limits.memory_bytes:
            # it has no name on Linux, is unlinked at once on other Unixes, and deleted on close by Windows
            file = tempfile.TemporaryFile(prefix="medimg-", buffering=0)  # noqa: SIM115  # until close
            self._disk = cast("BinaryIO", file)
            self._write_disk(self._memory)
            self._memory = bytearray()
        if self._disk is None:
            self._memory += data
        else:
            self._write_disk(data)
        self.size += len(data)

    def _write_disk(self, data: bytes | bytearray) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._disk.write(rest) :]  # type: ignore[union-attr]  # is open

    def files(self) -> list[Blob]:
        """Return the files."""
        ends = [start for _, start in self._starts[1:]] + [self.size]
        used: dict[str, int] = {}
        found = []
        for (name, start), end in zip(self._starts, ends, strict=True):
            used[name] = used.get(name, 0) + 1
            unique = name if used[name] == 1 else f"{name} ({used[name]})"
            found.append(Blob(unique, remote=_UploadedFile(self, start, end - start)))
        return found

    def find(self, name: str) -> tuple[str, RemoteFile] | None:
        """Return a file by its name, such as the values that belong to a header; None if there is none."""
        for blob in self.files():
            if blob.name == name and blob.remote is not None:
                return name, blob.remote
        return None

    def read_at(self, start: int, count: int) -> bytes:
        """Return bytes from a position; ReadError after :meth:`close`."""
        with self._lock:
            if self._is_closed:
                raise ReadError("the upload is closed, as its request has ended")
            if self._disk is None:
                return bytes(memoryview(self._memory)[start : start + count])
            self._disk.seek(start)
            return self._disk.read(count)

    def close(self) -> None:
        """Release memory and file."""
        with self._lock:
            self._is_closed = True
            self._memory = bytearray()
            if self._disk is not None:
                self._disk.close()


@dataclass(frozen=True, slots=True)
class _UploadedFile:
    """One file of an upload, that any number of readers open."""

    upload: Upload
    start: int
    length: int

    def open(self) -> BinaryIO:
        return as_buffered(_UploadReader(self))

    def size(self) -> int:
        return self.length

    def sibling(self, relative: str) -> tuple[str, RemoteFile] | None:
        return self.upload.find(relative)


class _UploadReader(io.RawIOBase):
    """Random access to a file of an upload."""

    def __init__(self, file: _UploadedFile) -> None:
        super().__init__()
        self._file = file
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.length - self._at))
        data = self._file.upload.read_at(self._file.start + self._at, count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._file.length}[whence]
        if origin + offset < 0:
            raise OSError(errno.EINVAL, "negative position in a file")
        self._at = origin + offset
        return self._at
