"""Files that medimg itself wrote, read from this machine or from a URL."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from medimg.errors import MedimgError
from medimg.io.files.atomic import temporary_folder
from medimg.io.files.object_storage import (
    convert_failure,
    explain_failure,
    find_storage,
    local_name,
    redact_url,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["local_copy"]

#: Most bytes of a file that is copied from a URL.
_MOST: Final = 2**36
_BLOCK: Final = 2**24


@contextmanager
def local_copy(
    location: Path | str, *, error: type[MedimgError], most: int = _MOST, beside: str | None = None
) -> Iterator[Path]:
    """
    Yield a path as it is, and of a URL the path of a private copy, which is removed.

    `beside` is a suffix: the file of the same name that has it is copied, too, if there is one. Messages of
    errors in the block name the URL. Raises `error` if there is no file, it has more than `most` bytes, or
    can't be read.
    """
    if not isinstance(location, str):
        yield location
        return
    with temporary_folder() as folder:
        copy = folder / local_name(location)
        _download(location, copy, most, error)
        if beside is not None and not urlsplit(location).query:
            try:
                url = f"{location.removesuffix(PurePosixPath(location).suffix)}{beside}"
                _download(url, copy.with_suffix(beside), most, error)
            except FileNotFoundError:
                pass
        try:
            yield copy
        except MedimgError as failure:
            parent = redact_url(location).rpartition("/")[0]
            failure.args = tuple(
                one.replace(str(folder), parent) if isinstance(one, str) else one for one in failure.args
            )
            raise


def _download(url: str, copy: Path, most: int, error: type[MedimgError]) -> None:
    """Copy a file block by block; its size is whatever the server says, or less."""
    shown = redact_url(url)
    try:
        storage, path = find_storage(url)
        storage.invalidate_cache(path)
        with (
            storage.open(path, "rb", block_size=_BLOCK, cache_type="none") as source,
            copy.open("wb") as file,
        ):
            size = getattr(source, "size", None)
            limit = min(most, shutil.disk_usage(copy.parent).free)
            if size is not None and size > limit:
                raise error(
                    f"{shown} has {size} bytes; expected at most {limit}, by its type or for space in the "
                    "folder of temporary files, which TMPDIR names"
                )
            while block := source.read(min(_BLOCK, limit + 1)):
                limit -= len(block)
                if limit < 0:
                    raise error(f"{shown} is larger than expected; check what the URL leads to")
                file.write(block)
    except MedimgError as failure:
        raise convert_failure(failure, error) from None
    # each protocol has its own errors
    except Exception as failure:
        raise convert_failure(explain_failure(failure, url), error) from None
