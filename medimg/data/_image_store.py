"""The images of a dataset: mapped from a cache on disk, or in memory up to a bound."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from medimg.core.progress import Progress, progress_bar
from medimg.data.cache.images import DamagedError
from medimg.data.cache.keys import stat_files
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import ExecutorError
from medimg.preprocessing.torch_threads import map_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Executor

    import torch

    from medimg.data.cache.images import RenderedImages
    from medimg.data.cache.keys import Address, FileStates
    from medimg.data.image_loader import ImageLoader
    from medimg.io.series import Series

__all__ = ["ImageStore", "RecentImages"]

# a process may map some 65,000 files
_MOST_MAPPED: Final = 8192
_THREADS: Final = 8


class RecentImages:
    """Most recently used images by source, up to a total size; at least the last ones, of any size."""

    def __init__(self, capacity: int, size: Callable[[RenderedImages], int]) -> None:
        self.capacity = capacity
        self._size = size
        self._images: OrderedDict[int, RenderedImages] = OrderedDict()
        self._total = 0
        self._lock = Lock()

    def get(self, source: int) -> RenderedImages | None:
        """Return the images of a source if present."""
        with self._lock:
            if source in self._images:
                self._images.move_to_end(source)
            return self._images.get(source)

    def put(self, source: int, images: RenderedImages) -> None:
        """Add the images of a source, and drop the least recently used ones."""
        with self._lock:
            self._remove(source)
            self._images[source] = images
            self._total += self._size(images)
            while self._total > self.capacity and len(self._images) > 1:
                self._remove(next(iter(self._images)))

    def discard(self, source: int) -> None:
        """Drop the images of a source."""
        with self._lock:
            self._remove(source)

    def _remove(self, source: int) -> None:
        images = self._images.pop(source, None)
        self._total -= self._size(images) if images else 0


def _fill_one(loader: ImageLoader, task: tuple[Series, Address | None]) -> None:
    series, address = task
    loader.load(ResolvedSource.resolve(series), address)


def _raise_lost(task: tuple[Series, Address | None], error: ExecutorError) -> None:
    raise ExecutorError(f"{task[0].path}: {error}") from error


class ImageStore:
    """Images of series, loaded when first needed, and kept in memory up to `capacity` bytes if not mapped."""

    def __init__(self, loader: ImageLoader, series: Sequence[Series], capacity: int) -> None:
        self.loader = loader
        self.series = tuple(series)
        self.capacity = capacity
        self._states: dict[int, FileStates | None] = {}
        self._addresses: list[Address | None] = [None] * len(series)
        self._make_backings()
        if loader.cache:
            with ThreadPoolExecutor(_THREADS) as pool:
                self._states = dict(enumerate(pool.map(stat_files, self.series)))
                self._addresses = list(pool.map(loader.address, self.series))

    def _make_backings(self) -> None:
        self._in_memory = RecentImages(self.capacity, lambda images: images.planes.nbytes)
        self._mapped = RecentImages(_MOST_MAPPED, lambda _: 1)

    def select(self, sources: Sequence[int]) -> ImageStore:
        """Return a store of some of the series, renumbered, without their images."""
        part = object.__new__(type(self))
        part.__setstate__(
            {
                "loader": self.loader,
                "series": tuple(self.series[n] for n in sources),
                "capacity": self.capacity,
                "_addresses": [self._addresses[n] for n in sources],
            }
        )
        return part

    def last_states(self, source: int) -> FileStates | None:
        """Return the states of a series' files when its images were last loaded; current ones if never."""
        return self._states[source] if source in self._states else stat_files(self.series[source])

    def take(self, source: int, image: int | None = None) -> torch.Tensor:
        """Return one image (1, 1 or 3, H, W) of a series, or all, in the stored type."""
        images = self._mapped.get(source) or self._in_memory.get(source) or self._load(source)
        try:
            return images.take(image)
        except DamagedError:
            self._mapped.discard(source)
            made = self.loader.replace_damaged(self._resolve(source), self._addresses[source])
            return self._keep(source, made).take(image)

    def _load(self, source: int) -> RenderedImages:
        return self._keep(source, self.loader.load(self._resolve(source), self._addresses[source]))

    def _keep(self, source: int, images: RenderedImages) -> RenderedImages:
        """Keep the mapping, or in memory the images that neither cache nor reader holds."""
        if images.is_kept:
            return images
        (self._in_memory if images.crc32 is None else self._mapped).put(source, images)
        return images

    def _resolve(self, source: int) -> ResolvedSource:
        if self._addresses[source] is None:
            self._states[source] = stat_files(self.series[source])
        return ResolvedSource.resolve(self.series[source])

    def fill(
        self,
        sources: Sequence[int],
        workers: int | None,
        progress: Progress,
        executor: Executor | None = None,
    ) -> None:
        """Cache all images of some series that are not in the cache yet."""
        tasks = ((self.series[n], self._addresses[n]) for n in sources)
        filled = map_sources(
            partial(_fill_one, self.loader), tasks, workers, executor, lost=_raise_lost, small=True
        )
        for _ in progress_bar(filled, desc="caching", unit="series", progress=progress, total=len(sources)):
            pass

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for another process: no images, but their addresses."""
        return {name: getattr(self, name) for name in ("loader", "series", "capacity", "_addresses")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._states = {}
        self._make_backings()
