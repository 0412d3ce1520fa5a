"""Copies on disk of shards in object storage, up to a bound."""

from __future__ import annotations

import os
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from medimg.data.cache.images import DamagedError
from medimg.data.prepared.shard import map_images, map_shard, shard_name, view_images
from medimg.errors import DatasetError, MedimgError, MedimgWarning, also
from medimg.io.files.atomic import atomic_path, hash_file
from medimg.io.files.bounded_folder import remove_least_used
from medimg.io.files.file_lock import file_lock

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from medimg.data.cache.images import RenderedImages
    from medimg.data.prepared.source_table import PreparedImages
    from medimg.io.files.storage_folder import StorageFolder

__all__ = ["ShardCache"]

_SUFFIX: Final = ".tar"
#: Smallest bound, in shards: one in use, one that is fetched, and as many that others still use.
_LEAST: Final = 4
#: Shards that are mapped at once, and sources whose images are, in a process.
_MOST_OPEN: Final = 4096
_MOST_SOURCES: Final = 8192
#: Times that a shard is fetched which others remove before it is opened.
_TRIES: Final = 5


@dataclass(slots=True)
class _OpenShard:
    """A shard that is mapped, and the images of its sources that were asked for, by their positions."""

    data: npt.NDArray[np.uint8]
    images: dict[int, RenderedImages] = field(default_factory=dict)


class ShardCache:
    """
    Copies of the shards of a folder in object storage; several processes may use them at once.

    A copy gets its name when it is whole and its SHA-256 is right. With `most`, a bound in bytes, the least
    recently used ones are removed before another is fetched. A process keeps what it has mapped until the
    copy is removed, so that removed ones take no room for long.
    """

    def __init__(
        self, folder: StorageFolder, cache: Path, most: int | None, sizes: Mapping[str, int]
    ) -> None:
        self._folder = folder
        self._cache = cache
        self._most = most
        self._largest = max(sizes.values(), default=0)
        self._holds_all = most is None or sum(sizes.values()) <= most
        if not self._holds_all and most is not None and most < _LEAST * self._largest:
            raise DatasetError(
                f"cache_bytes={most} is too small: shards of {folder} have up to {self._largest} bytes, and "
                f"at least {_LEAST} must have room; pass {_LEAST * self._largest} or more"
            )
        self._reset()

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._n_sources = 0

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: what is mapped is not."""
        hidden = ("_process", "_lock", "_open", "_n_sources")
        return {name: value for name, value in self.__dict__.items() if name not in hidden}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    @property
    def window(self) -> int | None:
        """Number of shards whose images may be shuffled together; None if all have room."""
        return None if self._holds_all or self._most is None else self._most // (_LEAST * self._largest)

    def load(self, images: PreparedImages) -> RenderedImages:
        """Return the images of a source, mapped."""
        if self._most is None:
            return map_images(self.fetch(images.shard), images)
        if self._process != os.getpid():
            # a thread of the process that this one was forked from may have held the lock
            self._reset()
        with self._lock:
            shard = self._open.get(images.shard) or self._map(images.shard)
            self._open.move_to_end(images.shard)
            if images.offset not in shard.images:
                shard.images[images.offset] = view_images(shard.data, images)
                self._n_sources += 1
            while len(self._open) > 1 and (len(self._open) > _MOST_OPEN or self._n_sources > _MOST_SOURCES):
                self._close(next(iter(self._open)))
            return shard.images[images.offset]

    def _map(self, shard: str) -> _OpenShard:
        for removed in [one for one in self._open if not self._path(one).exists()]:
            self._close(removed)
        for _ in range(_TRIES):
            path = self.fetch(shard)
            try:
                self._open[shard] = _OpenShard(map_shard(path))
            except FileNotFoundError:
                continue
            return self._open[shard]
        raise DatasetError(
            f"{self._cache} is too small for all processes that use it: other shards take the room of one "
            "before it can be read; raise cache_bytes="
        )

    def _close(self, shard: str) -> None:
        closed = self._open.pop(shard, None)
        self._n_sources -= len(closed.images) if closed else 0

    def _path(self, shard: str) -> Path:
        return self._cache / f"{shard}{_SUFFIX}"

    def fetch(self, shard: str) -> Path:
        """Return the path of the copy of a shard, fetched if it is not there; others may remove it."""
        path = self._path(shard)
        if _touch(path):
            return path
        try:
            with file_lock(path.with_suffix(".lock")):
                # another process may have been faster
                if not _touch(path):
                    self._copy(shard, path)
        except MedimgError:
            raise
        except OSError as error:
            raise also(DatasetError, type(error))(
                f"a shard can't be copied to {self._cache}: {error.strerror}"
            ) from None
        return path

    def _copy(self, shard: str, path: Path) -> None:
        if self._most is not None:
            room = 0 if self._holds_all else self._largest
            remove_least_used(self._cache, _SUFFIX, self._most - room)
        with atomic_path(path) as temporary:
            self._folder.copy(shard_name(shard), temporary)
            if hash_file(temporary) != shard:
                raise DatasetError(
                    f"the shard {shard[:12]} of {self._folder} is damaged: its SHA-256 is not its name; "
                    "remove it, and prepare the folder again"
                )
        if self._most is not None:
            # what others have fetched meanwhile
            remove_least_used(self._cache, _SUFFIX, self._most)

    def reload(self, images: PreparedImages, error: DamagedError) -> RenderedImages:
        """Return the images of a source from a new copy of the shard, as the one on disk is damaged."""
        warnings.warn(
            f"the copy of the shard {images.shard[:12]} in {self._cache} is damaged: {error}; it is "
            "fetched again",
            MedimgWarning,
            stacklevel=3,
        )
        self._path(images.shard).unlink(missing_ok=True)
        with self._lock:
            self._close(images.shard)
        found = self.load(images)
        try:
            found.take()
        except DamagedError as again:
            raise DatasetError(
                f"the shard {images.shard[:12]} of {self._folder} does not match the manifest: {again}; "
                "prepare the folder again"
            ) from again
        return found


def _touch(path: Path) -> bool:
    """Note that a file is used; False if it is not there."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    except OSError:
        # of another user, or on a file system that is only read
        return path.exists()
    return True
