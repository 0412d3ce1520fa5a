"""Parts of a file, read without a buffer between: each costs one call of the system."""

from __future__ import annotations

import os
from stat import S_ISREG
from typing import TYPE_CHECKING, Any, Final

from medimg.io.starts import OPEN_FLAGS

if TYPE_CHECKING:
    from types import TracebackType

    import numpy.typing as npt

__all__ = ["Segments"]

_HAS_PREAD: Final = hasattr(os, "pread")
_HAS_PREADV: Final = hasattr(os, "preadv")


class Segments:
    """
    An open file; its position belongs to whoever reads, so that only one thread may.

    Parameters
    ----------
    path : str
        Of an ordinary file.

    Raises
    ------
    OSError
        If it can't be opened, or is no ordinary file.

    Attributes
    ----------
    size : int
        Bytes of the file.
    """

    def __init__(self, path: str) -> None:
        self._file = os.open(path, OPEN_FLAGS)
        facts = os.fstat(self._file)
        self.size = facts.st_size
        if not S_ISREG(facts.st_mode):
            os.close(self._file)
            raise OSError("no ordinary file")

    def __enter__(self) -> Segments:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes, or those up to the end of the file."""
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        if _HAS_PREAD:
            data = os.pread(self._file, length, offset)
        else:
            os.lseek(self._file, offset, os.SEEK_SET)
            data = os.read(self._file, length)
        if len(data) < length:
            raise OSError("the file ended early")
        return data

    def read_into(self, array: npt.NDArray[Any], offset: int) -> None:
        """
        Fill a contiguous array.

        Raises
        ------
        OSError
            If the file ends before.
        """
        if _HAS_PREADV:
            count = os.preadv(self._file, [array.data], offset)
        else:
            with open(self._file, "rb", buffering=0, closefd=False) as file:
                file.seek(offset)
                count = file.readinto(array.data.cast("B")) or 0
        if count < array.nbytes:
            raise OSError("the file ended early")

    def read_both(self, length: int, array: npt.NDArray[Any]) -> bytes:
        """
        Return the first bytes, and fill an array with those that follow.

        Raises
        ------
        OSError
            If the file ends before.
        """
        if not _HAS_PREADV:
            head = self.read(0, length)
            self.read_into(array, length)
            return head
        start = bytearray(length)
        if os.preadv(self._file, [start, array.data], 0) < length + array.nbytes:
            raise OSError("the file ended early")
        return bytes(start)
