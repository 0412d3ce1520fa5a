"""The pictures of a data set: mapped from a cache on disk, or kept in memory up to a bound."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from medimg.core.parallel import ordered_map
from medimg.data.cache.images import DamagedError, RenderedImages
from medimg.data.cache.keys import states_of
from medimg.data.image_loader import ResolvedSource
from medimg.preprocessing.torch_threads import share_cores

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from medimg.data.cache.keys import Address, States
    from medimg.data.image_loader import ImageLoader
    from medimg.io.series import Series

__all__ = ["ImageStore", "MemoryImageStore"]


class MemoryImageStore:
    """
    A store of tensors that forgets the least recently used ones when it is full.

    Parameters
    ----------
    capacity : int
        Bytes that it may hold; 0 keeps only the last tensor.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._kept: OrderedDict[int, torch.Tensor] = OrderedDict()
        self._size = 0
        self._lock = Lock()

    def get(self, key: int, make: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the tensor of that key, made anew if it is not held."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = make()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._size += made.nbytes
            while self._size > self.capacity and len(self._kept) > 1:
                self._size -= self._kept.popitem(last=False)[1].nbytes
        return made

    def held(self, key: int) -> torch.Tensor | None:
        """Return the tensor of that key, if it is held."""
        with self._lock:
            return self._kept.get(key)

    def __getstate__(self) -> dict[str, int]:
        """Return what another process gets: the capacity, not the tensors."""
        return {"capacity": self.capacity}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["capacity"])  # type: ignore[misc]  # a fresh, empty store


# systems let a process map some 65,000 files
_MOST_MAPPED: Final = 8192
_THREADS: Final = 8


class ImageStore:
    """
    Gives pictures of series, made when they are first asked for.

    Parameters
    ----------
    maker : ImageLoader
        Makes them, or takes them from its cache.
    series : sequence of Series
        Where there is a cache, their files are looked at once, here.
    capacity : int
        Bytes of pictures to keep in memory; what is mapped from a cache does not count.
    """

    def __init__(self, maker: ImageLoader, series: Sequence[Series], capacity: int) -> None:
        self.maker = maker
        self.capacity = capacity
        self._series = tuple(series)
        self._memory = MemoryImageStore(capacity)
        self._mapped: OrderedDict[int, RenderedImages] = OrderedDict()
        self._lock = Lock()
        self._states: dict[int, States | None] = {}
        self._addresses: list[Address | None] = self._found() if maker.cache else [None] * len(series)

    def _found(self) -> list[Address | None]:
        with ThreadPoolExecutor(_THREADS) as pool:
            self._states = dict(enumerate(pool.map(states_of, self._series)))
            return list(pool.map(self.maker.address, self._series))

    def state(self, source: int) -> States | None:
        """Return how the files of a series were when pictures of them were made last; now, if none were."""
        return self._states[source] if source in self._states else states_of(self._series[source])

    def taken(self, source: int, picture: int | None = None) -> torch.Tensor:
        """
        Return one picture (1, 1 or 3, H, W) of a series, or all, in the type that they are kept in.

        Raises
        ------
        MedimgError
            If the series can't be read.
        """
        if self._addresses[source] is None:
            planes = self._memory.get(source, lambda: self.maker.made(self._opened(source), None).planes)
            return RenderedImages(planes, (), ()).taken(picture)
        try:
            return self._from_cache(source).taken(picture)
        except DamagedError:
            with self._lock:
                self._mapped.pop(source, None)
            made = self.maker.remade(self._opened(source), self._addresses[source])
            return self._keep(source, made).taken(picture)

    def _from_cache(self, source: int) -> RenderedImages:
        with self._lock:
            if source in self._mapped:
                self._mapped.move_to_end(source)
                return self._mapped[source]
        held = self._memory.held(source)
        if held is not None:
            return RenderedImages(held, (), ())
        return self._keep(source, self.maker.pictures(self._opened(source), self._addresses[source]))

    def _keep(self, source: int, pictures: RenderedImages) -> RenderedImages:
        """Hold pictures for the next time: the mapping, or in memory where the cache could not take them."""
        if pictures.checksums is None:
            self._memory.get(source, lambda: pictures.planes)
            return pictures
        with self._lock:
            self._mapped[source] = pictures
            if len(self._mapped) > _MOST_MAPPED:
                self._mapped.popitem(last=False)
        return pictures

    def _opened(self, source: int) -> ResolvedSource:
        if self._addresses[source] is None:
            self._states[source] = states_of(self._series[source])
        return ResolvedSource.of(self._series[source])

    def fill(self, sources: Sequence[int], workers: int | None, progress: bool | None) -> None:
        """
        Make all pictures of some series that are not in the cache yet.

        Raises
        ------
        MedimgError
            If one can't be read.
        """
        from tqdm import tqdm

        disable = None if progress is None else not progress
        filled = ordered_map(self._filled, sources, workers, initializer=share_cores)
        for _ in tqdm(
            filled, "caching", len(sources), unit="series", disable=disable, delay=1.0, leave=False
        ):
            pass

    def _filled(self, source: int) -> None:
        self.maker.pictures(self._opened(source), self._addresses[source])

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process gets: no pictures, but where they are."""
        names = ("maker", "capacity", "_series", "_memory", "_addresses")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._states = {}
        self._mapped = OrderedDict()
        self._lock = Lock()
