"""Shards: tar files of arrays in NumPy's format, as WebDataset reads them, named by their SHA-256."""

from __future__ import annotations

import hashlib
import io
import math
import tarfile
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import numpy as np
import torch

from medimg.data.cache.images import RenderedImages, compute_crc32
from medimg.data.prepared.source_table import PreparedImages
from medimg.errors import DatasetError
from medimg.io.files.regular_file import explain_irregular

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Self

    import numpy.typing as npt

__all__ = ["ShardWriter", "file_size", "map_images", "map_shard", "shard_name", "view_images"]

_BLOCK: Final = 512  # of tar


def shard_name(sha256: str) -> str:
    """Return the name of a shard in its folder."""
    return f"shards/{sha256}.tar"


def file_size(end: int) -> int:
    """Return the size of a shard whose last array ends at a position."""
    # blocks of the array, two empty ones, and those up to a whole record
    blocks = -(-end // _BLOCK) + 2
    return -(-blocks * _BLOCK // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


class _HashedFile:
    """A file that is written once, from its start, and hashed meanwhile."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()


class ShardWriter:
    """
    Writes one shard; equal images in equal order give equal bytes.

    Used as a context manager; `sha256` and `images` are final after it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: dict[str, PreparedImages] = {}
        self.sha256 = ""
        self.size = 0

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._hashed = _HashedFile(self._file)
        self._tar = tarfile.open(fileobj=self._hashed, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[call-overload]  # it needs write and tell alone
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._tar.close()
                self.sha256 = self._hashed.digest.hexdigest()
                self.size = self._file.tell()
        finally:
            self._file.close()

    def add(self, key: str, images: RenderedImages) -> None:
        """Add the images of a source; the name of the member is its key."""
        planes = images.planes.contiguous()
        array = planes.numpy()
        head = io.BytesIO()
        np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
        data = array.reshape(-1).view(np.uint8).data
        info = tarfile.TarInfo(f"{key}.npy")
        info.size, info.mode = len(head.getvalue()) + len(data), 0o600
        start = self._tar.offset + _BLOCK + len(head.getvalue())
        self._tar.addfile(info, io.BytesIO(head.getvalue() + bytes(data)))
        self._found[key] = PreparedImages(
            shard="",
            offset=start,
            size=len(data),
            shape=tuple(array.shape),
            dtype=array.dtype.name,
            crc32=tuple(compute_crc32(planes).tolist()),
            slices=images.slices,
            sop_instance_uids=images.sop_instance_uids,
            digest=hashlib.sha256(data).hexdigest(),
        )

    @property
    def images(self) -> dict[str, PreparedImages]:
        """Where the images of each source are, by key."""
        return {key: replace(one, shard=self.sha256) for key, one in self._found.items()}


def map_images(path: Path, images: PreparedImages) -> RenderedImages:
    """Return the images of a source, mapped from a shard on disk, to be checked when they are first taken."""
    # a pipe would be waited for
    irregular = explain_irregular(path)
    if irregular:
        raise DatasetError(f"{path} is {irregular}; remove it, and prepare the folder again")
    try:
        array: Any = np.memmap(path, images.dtype, "c", images.offset, images.shape)
    except (OSError, ValueError) as error:
        raise _refuse_part(str(path), images, error) from None
    return _wrap(array, images)


def map_shard(path: Path) -> npt.NDArray[np.uint8]:
    """Return the bytes of a whole shard on disk, mapped; FileNotFoundError if it is not there."""
    try:
        return np.memmap(path, np.uint8, "c")
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise DatasetError(f"{path} can't be mapped ({type(error).__name__}); remove it") from None


def view_images(shard: npt.NDArray[np.uint8], images: PreparedImages) -> RenderedImages:
    """Return the images of a source in a mapped shard, which is kept by others; see :func:`map_images`."""
    try:
        array = shard[images.offset : images.offset + images.size].view(images.dtype).reshape(images.shape)
    except ValueError as error:
        raise _refuse_part(shard_name(images.shard), images, error) from None
    return _wrap(array, images, is_kept=True)


def _wrap(array: Any, images: PreparedImages, *, is_kept: bool = False) -> RenderedImages:
    assert math.prod(images.shape) == array.size  # as the manifest is checked
    return RenderedImages(
        torch.from_numpy(array),
        images.slices,
        images.sop_instance_uids,
        np.array(images.crc32, np.int64),
        is_kept=is_kept,
    )


def _refuse_part(name: str, images: PreparedImages, error: Exception) -> DatasetError:
    return DatasetError(
        f"{name} is no whole shard ({type(error).__name__}); expected at least "
        f"{images.offset + images.size} bytes: remove it, and prepare the folder again"
    )
