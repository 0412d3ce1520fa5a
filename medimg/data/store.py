"""The pictures of a data set: mapped from a cache on disk, or kept in memory up to a bound."""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

from medimg.data.making import Opened
from medimg.data.memory import PictureMemory
from medimg.data.pictures import DamagedError, Pictures
from medimg.data.states import states_of
from medimg.data.threads import in_order

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from medimg.data.entries import Address
    from medimg.data.making import Maker
    from medimg.data.states import States
    from medimg.io.series import Series

__all__ = ["PictureStore"]

# systems let a process map some 65,000 files
_MOST_MAPPED: Final = 8192
_THREADS: Final = 8


class PictureStore:
    """
    Gives pictures of series, made when they are first asked for.

    Parameters
    ----------
    maker : Maker
        Makes them, or takes them from its cache.
    series : sequence of Series
        Where there is a cache, their files are looked at once, here.
    capacity : int
        Bytes of pictures to keep in memory; what is mapped from a cache does not count.
    """

    def __init__(self, maker: Maker, series: Sequence[Series], capacity: int) -> None:
        self.maker = maker
        self.capacity = capacity
        self._series = tuple(series)
        self._memory = PictureMemory(capacity)
        self._mapped: OrderedDict[int, Pictures] = OrderedDict()
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
            return Pictures(planes, (), ()).taken(picture)
        try:
            return self._from_cache(source).taken(picture)
        except DamagedError:
            with self._lock:
                self._mapped.pop(source, None)
            made = self.maker.remade(self._opened(source), self._addresses[source])
            return self._keep(source, made).taken(picture)

    def _from_cache(self, source: int) -> Pictures:
        with self._lock:
            if source in self._mapped:
                self._mapped.move_to_end(source)
                return self._mapped[source]
        held = self._memory.held(source)
        if held is not None:
            return Pictures(held, (), ())
        return self._keep(source, self.maker.pictures(self._opened(source), self._addresses[source]))

    def _keep(self, source: int, pictures: Pictures) -> Pictures:
        """Hold pictures for the next time: the mapping, or in memory where the cache could not take them."""
        if pictures.checksums is None:
            self._memory.get(source, lambda: pictures.planes)
            return pictures
        with self._lock:
            self._mapped[source] = pictures
            if len(self._mapped) > _MOST_MAPPED:
                self._mapped.popitem(last=False)
        return pictures

    def _opened(self, source: int) -> Opened:
        if self._addresses[source] is None:
            self._states[source] = states_of(self._series[source])
        return Opened.of(self._series[source])

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
        filled = in_order(self._filled, sources, workers)
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
