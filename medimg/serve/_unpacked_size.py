"""Bounds on what an upload expands to: members of archives, compressed files, pixels."""

from __future__ import annotations

import io
import math
import zipfile
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from medimg.errors import MedimgError, ReadError
from medimg.io.files.blob import list_zip_members
from medimg.io.sources import is_zip
from medimg.preprocessing.render import count_images
from medimg.serve._problem import RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medimg.io.files.blob import Blob
    from medimg.io.series import Series
    from medimg.preprocessing.preprocess import Preprocess
    from medimg.serve.limits import ServiceLimits

__all__ = ["check_results", "check_series", "check_unpacked"]

_GZIP: Final = b"\x1f\x8b"
_PIECE_BYTES: Final = 2**20
#: Bytes of an entry in the directory of a zip archive: 46, the name, and extra fields.
_ENTRY_BYTES: Final = 512
_FLOAT_BYTES: Final = 4


def check_unpacked(files: Sequence[Blob], limits: ServiceLimits) -> None:
    """Refuse files that are too many, or too large when they are decompressed."""
    count, size = 0, 0
    for blob in files:
        members = _list_members(blob, limits)
        count += len(members)
        if count > limits.max_files:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has more than {limits.max_files} files; send fewer at once",
            )
        for member in members:
            # a damaged file is an error of its reading
            with suppress(ReadError):
                size += _measure(member, limits.unpacked_bytes - size)
            if size > limits.unpacked_bytes:
                raise _expands("its files", limits)


def _list_members(blob: Blob, limits: ServiceLimits) -> list[Blob]:
    if not is_zip(blob.start(4)):
        return [blob]
    _check_directory(blob, limits)
    return list_zip_members(blob)


def _check_directory(blob: Blob, limits: ServiceLimits) -> None:
    """Refuse an archive whose directory is too large, before it is parsed."""
    most = limits.max_files * _ENTRY_BYTES
    with blob.open() as file, suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        zipfile.ZipFile(_DirectoryReader(file, most))


class _DirectoryReader(io.RawIOBase):
    """File that is not read in large pieces, as a directory is."""

    def __init__(self, file: Any, most: int) -> None:
        super().__init__()
        self._file, self._most = file, most

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            at = self._file.tell()
            size = self._file.seek(0, io.SEEK_END) - at
            self._file.seek(at)
        if size > self._most:
            raise RequestError(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the directory of an archive has {size} bytes; expected at most {self._most}",
            )
        found: bytes = self._file.read(size)
        return found

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at: int = self._file.seek(offset, whence)
        return at

    def tell(self) -> int:
        at: int = self._file.tell()
        return at

    def seekable(self) -> bool:
        return True


def _measure(blob: Blob, most: int) -> int:
    """Return the size of a file, decompressed if need be; counting ends beyond `most`."""
    if blob.start(2) != _GZIP:
        return blob.size()
    count = 0
    with blob.unzipped().stream() as stream:
        for piece in iter(lambda: stream.read(_PIECE_BYTES), b""):
            count += len(piece)
            if count > most:
                break
    return count


def check_series(series: Series, recipe: Preprocess, limits: ServiceLimits) -> None:
    """Refuse a series whose pixels, or the images that the recipe makes of them, are too many."""
    for what, size in _list_sizes(series, recipe):
        if size > limits.unpacked_bytes:
            raise _expands(f"a series of {'×'.join(map(str, series.shape))} pixels: its {what}", limits)


def _list_sizes(series: Series, recipe: Preprocess) -> Iterator[tuple[str, int]]:
    yield "pixels", math.prod(series.shape) * _FLOAT_BYTES
    # a recipe that does not fit is an error of the prediction
    with suppress(MedimgError):
        images = count_images(recipe, series) * math.prod(recipe.image_shape)
        yield "preprocessed images", images * _FLOAT_BYTES


def check_results(instances: Sequence[bytes], limits: ServiceLimits) -> None:
    """Refuse a request whose results are too large."""
    if sum(map(len, instances)) > limits.unpacked_bytes:
        raise _expands("its results", limits)


def _expands(what: str, limits: ServiceLimits) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        f"the body expands to more than {limits.max_unpacked_mb} MiB ({what}); send fewer images at once",
    )
