"""Outputs: files on this machine, and objects in a storage that a URL names, written whole or not at all."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from medimg._validation import printable
from medimg.errors import StoreError, also
from medimg.io.files.atomic import atomic_path, temporary_folder
from medimg.io.files.object_storage import (
    check_location,
    convert_failure,
    explain_failure,
    explain_write_failure,
    find_writable,
    local_name,
    redact_url,
)
from medimg.io.files.regular_file import read_start

if TYPE_CHECKING:
    from collections.abc import Iterator

    from medimg.errors import MedimgError

__all__ = [
    "atomic_output",
    "check_target",
    "has_target",
    "join_target",
    "read_target_start",
    "replace_suffix",
    "write_text",
]

_READ_ONLY: Final = ("http", "https")
#: Protocols whose URLs name the container before an @.
_WITH_CONTAINER: Final = ("az", "abfs", "abfss")


def check_target(
    name: str, value: object, *, error: type[MedimgError], is_folder: bool = False
) -> Path | str:
    """
    Return where to write: a Path, or the URL of an object; of objects, if it is a folder.

    Raises `error` if it is neither, or can't be written to, MissingDependencyError without the package of
    the protocol, and StoreError if that can't be set up.
    """
    target = check_location(name, value, error=error)
    if isinstance(target, str):
        _check_url(name, target, error, is_folder=is_folder)
    return target


def _check_url(name: str, url: str, error: type[MedimgError], *, is_folder: bool) -> None:
    shown = printable(redact_url(url))
    scheme = url.partition("://")[0].lower()
    if scheme in _READ_ONLY:
        raise error(
            f"{name} is {shown}, and {scheme}:// is only read; expected a path, or a URL of s3://, gs:// or "
            "az://"
        )
    try:
        parts = urlsplit(url)
    except ValueError:
        raise error(f"{name} is {shown}, which is not a valid URL") from None
    is_login = "@" in parts.netloc and (scheme not in _WITH_CONTAINER or parts.password is not None)
    if is_login or "?" in url or "#" in url or not url.isprintable():
        raise error(
            f"{name} is {shown} with a login, a query or other characters that would become part of names in "
            "the storage; expected scheme://bucket/name, and credentials in the configuration of fsspec or "
            "the environment"
        )
    _, path = find_writable(url)
    levels = path.strip("/").split("/")
    if {".", ".."} & set(levels):
        raise error(f"{name} is {shown}; expected a URL without . and .. as folders")
    if is_folder and levels[0]:
        return
    least = 1 if scheme == "memory" else 2
    if is_folder or url.endswith("/") or len(levels) < least or not levels[-1]:
        what = "folder" if is_folder else "file"
        raise error(f"{name} is {shown}, which is no {what}; expected scheme://bucket/name")


def join_target(folder: Path | str, name: str) -> Path | str:
    """Return a file in a folder, or an object in one of a URL."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def replace_suffix(target: Path | str, suffix: str) -> Path | str:
    """Return a path or URL with another suffix."""
    if isinstance(target, Path):
        return target.with_suffix(suffix)
    return f"{target.removesuffix(PurePosixPath(target).suffix)}{suffix}"


@contextmanager
def atomic_output(target: Path | str) -> Iterator[Path]:
    """
    Yield a temporary path, and replace the target by it when the block ends without error.

    A file is replaced as by :func:`atomic_path`. To a URL the temporary file is uploaded as one object, which
    is visible when it is complete. Raises StoreError if it can't be.
    """
    if isinstance(target, Path):
        with atomic_path(target) as temporary:
            yield temporary
        return
    storage, path = find_writable(target)
    _refuse_folder(storage, path, target)
    with temporary_folder() as folder:
        temporary = folder / local_name(target)
        temporary.touch()
        yield temporary
        _upload(temporary, storage, path, target)


def _refuse_folder(storage: Any, path: str, url: str) -> None:
    """Raise StoreError if there are objects below the name of a new one; errors of the server are found."""
    try:
        storage.invalidate_cache(path)
        is_folder = storage.isdir(path)
    except PermissionError:
        return  # who may write need not be allowed to list
    # each protocol has its own errors
    except Exception as error:
        raise explain_write_failure(error, url) from None
    if is_folder:
        raise also(StoreError, IsADirectoryError)(
            f"{redact_url(url)} can't be written, as there are files below it; name another one"
        )


def _upload(file: Path, storage: Any, path: str, url: str) -> None:
    """Upload a file; if this is interrupted, the thread of fsspec ends it at the next part."""
    from fsspec import Callback

    interrupted = threading.Event()

    def stop(*_: object, **__: object) -> None:
        if interrupted.is_set():
            raise OSError("the upload was interrupted")

    try:
        # file systems abort uploads of several parts if one fails
        storage.put_file(str(file), path, callback=Callback(hooks={"stop": stop}))
    except Exception as error:
        raise explain_write_failure(error, url) from None
    except BaseException:
        interrupted.set()
        raise


def has_target(target: Path | str) -> bool:
    """Whether there is a file at a path, or an object at a URL; StoreError if that can't be found out."""
    if isinstance(target, Path):
        return target.exists()
    storage, path = find_writable(target)
    try:
        storage.invalidate_cache(path)
        return bool(storage.exists(path))
    except Exception as error:
        raise convert_failure(explain_failure(error, target), StoreError) from None


def read_target_start(target: Path | str, count: int) -> bytes:
    """Return the first bytes of what is at a path or URL; none of a file that can't be read."""
    if isinstance(target, Path):
        return read_start(str(target), count)
    storage, path = find_writable(target)
    try:
        return bytes(storage.cat_file(path, start=0, end=count))
    except Exception as error:
        raise convert_failure(explain_failure(error, target), StoreError) from None


def write_text(target: Path | str, text: str) -> None:
    """Write UTF-8 text to a path or URL, atomically."""
    with atomic_output(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")
