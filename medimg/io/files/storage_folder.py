"""A folder of whole files, on disk or in object storage."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medimg.errors import ReadError, StoreError, also
from medimg.io.files.atomic import atomic_path
from medimg.io.files.object_storage import (
    explain_failure,
    find_storage,
    is_remote_url,
    redact_url,
    refuse_url_as_path,
)

if TYPE_CHECKING:
    from typing import Self

__all__ = ["StorageFolder"]


@dataclass(frozen=True, slots=True)
class StorageFolder:
    """Files by their names, with slashes, below a path or URL; each is written whole or not at all."""

    where: str

    @classmethod
    def of(cls, where: str | os.PathLike[str]) -> Self:
        """Return a folder; ReadError if `where` is neither a path nor a URL that can be written."""
        if is_remote_url(where):
            return cls(where.rstrip("/"))
        refuse_url_as_path(where)
        return cls(str(Path(where).absolute()))

    def __str__(self) -> str:
        return redact_url(self.where) if self.is_remote else self.where

    @property
    def is_remote(self) -> bool:
        """Whether it is not on disk."""
        return is_remote_url(self.where)

    def path(self, name: str) -> Path:
        """Return the path of a file; only of a folder on disk."""
        return Path(self.where, *name.split("/"))

    def list_sizes(self, subfolder: str) -> dict[str, int]:
        """Return the names and sizes of the files in a subfolder; empty if there is none."""
        if not self.is_remote:
            folder = self.path(subfolder)
            try:
                with os.scandir(folder) as entries:
                    return {f"{subfolder}/{e.name}": e.stat().st_size for e in entries if e.is_file()}
            except FileNotFoundError:
                return {}
            except OSError as error:
                raise also(ReadError, type(error))(f"{folder} can't be listed: {error.strerror}") from None
        url = f"{self.where}/{subfolder}"
        storage, path = find_storage(url)
        try:
            storage.invalidate_cache()
            found = storage.ls(path, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # of each protocol its own
            raise explain_failure(error, url) from error
        names = ((one["name"].rpartition("/")[2], one) for one in found if one["type"] == "file")
        return {f"{subfolder}/{name}": int(one["size"]) for name, one in names if name}

    def write(self, name: str, source: Path) -> None:
        """Write a file from one on disk."""
        if not self.is_remote:
            with atomic_path(self.path(name)) as temporary:
                source.replace(temporary) if _is_same_device(source, temporary) else _copy(source, temporary)
            return
        url = f"{self.where}/{name}"
        storage, path = find_storage(url)
        try:
            storage.put_file(str(source), path)
        except Exception as error:  # of each protocol its own
            raise _explain_writing(error, url) from error

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file from bytes."""
        if not self.is_remote:
            with atomic_path(self.path(name)) as temporary:
                temporary.write_bytes(data)
            return
        url = f"{self.where}/{name}"
        storage, path = find_storage(url)
        try:
            storage.pipe_file(path, data)
        except Exception as error:  # of each protocol its own
            raise _explain_writing(error, url) from error

    def read_bytes(self, name: str, most: int) -> bytes:
        """Return a whole file; ReadError if it does not exist or has more than `most` bytes."""
        try:
            if not self.is_remote:
                size = self.path(name).stat().st_size
                _check_size(f"{self}/{name}", size, most)
                return self.path(name).read_bytes()
            storage, path = find_storage(f"{self.where}/{name}")
            _check_size(f"{self}/{name}", int(storage.info(path)["size"]), most)
            return bytes(storage.cat_file(path))
        except ReadError:
            raise
        except Exception as error:
            raise explain_failure(error, f"{self.where}/{name}") from error

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file of object storage to one on disk, whole or not at all."""
        url = f"{self.where}/{name}"
        storage, path = find_storage(url)
        with atomic_path(target) as temporary:
            try:
                storage.get_file(path, str(temporary))
            except Exception as error:  # of each protocol its own
                raise explain_failure(error, url) from error


def _check_size(name: str, size: int, most: int) -> None:
    if size > most:
        raise ReadError(f"{name} has {size} bytes; at most {most} are read")


def _is_same_device(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.parent.stat().st_dev


def _copy(source: Path, target: Path) -> None:
    import shutil

    shutil.copyfile(source, target)


def _explain_writing(error: Exception, url: str) -> StoreError:
    """Return the error of writing a URL, without the text of a library, which may quote secrets."""
    return also(StoreError, ConnectionError)(
        f"{redact_url(url)} can't be written ({type(error).__name__}); check the URL, the network, and that "
        "the credentials of fsspec and the environment may write there"
    )
