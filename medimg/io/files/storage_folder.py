"""A folder of whole files, on disk or in object storage."""

from __future__ import annotations

import errno
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import ReadError, also
from medimg.io.files.byte_ranges import call_storage, fetch_object
from medimg.io.files.object_storage import check_location, show_location
from medimg.io.files.output import atomic_output, join_target
from medimg.io.files.regular_file import explain_irregular
from medimg.io.files.remote_folder import list_folder

if TYPE_CHECKING:
    from typing import Self

__all__ = ["StorageFolder"]

#: Errors of this machine, not of the storage.
_DISK_ERRORS: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class StorageFolder:
    """Files by their names, with slashes, below a path or URL; each is written whole or not at all."""

    where: Path | str

    @classmethod
    def of(cls, name: str, where: object) -> Self:
        """Return a folder; ReadError, with the `name` of the argument, if `where` is neither path nor URL."""
        found = check_location(name, where, error=ReadError)
        if "\0" in str(found):
            raise ReadError(f"{name} has a null character; expected a path or URL")
        return cls(found.absolute() if isinstance(found, Path) else found.rstrip("/"))

    def __str__(self) -> str:
        return show_location(self.where)

    @property
    def is_remote(self) -> bool:
        """Whether it is not on disk."""
        return isinstance(self.where, str)

    def path(self, name: str) -> Path:
        """Return the path of a file; only of a folder on disk."""
        return Path(self.where, name)

    def list_sizes(self, subfolder: str) -> dict[str, int]:
        """Return the names and sizes of the files in a subfolder; empty if there is none."""
        place = join_target(self.where, subfolder)
        try:
            if isinstance(place, str):
                return {f"{subfolder}/{name}": file.length for name, file in list_folder(place).items()}
            with os.scandir(place) as entries:
                return {f"{subfolder}/{e.name}": e.stat().st_size for e in entries if e.is_file()}
        except FileNotFoundError:
            return {}
        except ReadError:
            raise
        except OSError as error:
            raise also(ReadError, type(error))(f"{place} can't be listed: {error.strerror}") from None

    def write(self, name: str, source: Path) -> None:
        """Write a file from one on disk, which is moved."""
        with atomic_output(join_target(self.where, name)) as temporary:
            shutil.move(source, temporary)

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file from bytes."""
        with atomic_output(join_target(self.where, name)) as temporary:
            temporary.write_bytes(data)

    def read_bytes(self, name: str, most: int) -> bytes:
        """Return a whole file; ReadError if it does not exist or has more than `most` bytes."""
        place = join_target(self.where, name)
        if isinstance(place, str):
            return fetch_object(place, most)
        try:
            irregular = explain_irregular(place)
            if irregular:
                raise ReadError(f"{place} is {irregular}; expected a file")
            size = place.stat().st_size
            if size > most:
                raise ReadError(f"{place} has {size} bytes; at most {most} are read")
            return place.read_bytes()
        except ReadError:
            raise
        except OSError as error:
            raise also(ReadError, type(error))(f"{place} can't be read: {error.strerror}") from None

    def copy(self, name: str, target: Path) -> None:
        """Copy a file of object storage over one on disk; what is there after an error is a part of it."""
        call_storage(f"{self.where}/{name}", lambda storage, path: _copy(storage, path, target))


def _copy(storage: Any, path: str, target: Path) -> None:
    try:
        storage.get_file(path, str(target))
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        raise also(ReadError, OSError)(f"{target.parent.parent} can't be written: {error.strerror}") from None
