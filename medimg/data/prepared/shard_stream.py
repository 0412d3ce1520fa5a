"""The order in which the images of shards in object storage are used, and fetching ahead of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from medimg.data.prepared.reader import PreparedReader
from medimg.data.prepared.shard_cache import ShardCache
from medimg.errors import MedimgError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

__all__ = ["ShardStream"]

#: Shards that are shuffled together at most; more than that would be no better mixed.
_MOST_TOGETHER: Final = 64
#: Shards that are fetched ahead if all have room, and at once.
_AHEAD: Final = 8
_FETCHERS: Final = 4


class ShardStream:
    """
    Shards of the items of a dataset.

    If not all have room in the cache, :meth:`arrange` orders items so that only some shards are needed at a
    time. :meth:`follow` fetches shards before they are needed.
    """

    def __init__(self, readers: Sequence[object]) -> None:
        self._shards: list[tuple[ShardCache, str]] = []
        numbers: dict[tuple[int, str], int] = {}
        groups = []
        for reader in readers:
            number = -1
            if isinstance(reader, PreparedReader) and isinstance(reader.shards, ShardCache):
                key = (id(reader.shards), reader.images.shard)
                number = numbers.setdefault(key, len(numbers))
                if number == len(self._shards):
                    self._shards.append((reader.shards, reader.images.shard))
            groups.append(number)
        #: (n,) number of each item's shard; -1 for items without one
        self._groups = np.array(groups, np.int64)
        caches = {id(cache): cache.window for cache, _ in self._shards}
        windows = [window for window in caches.values() if window is not None]
        #: shards that are shuffled together; None if all have room
        self.window = min(_MOST_TOGETHER, max(1, min(windows) // len(caches))) if windows else None

    def __bool__(self) -> bool:
        return bool(self._shards)

    def arrange(self, items: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Return items (n,), which are in random order, so that those of some shards follow one another.

        The shards are in random order; items of as many as `window` states, and a share of those without a
        shard, stay in the order that they are in.
        """
        if self.window is None:
            return items
        count = -(-len(self._shards) // self.window)
        order = torch.randperm(len(self._shards), generator=generator) // self.window
        groups = torch.from_numpy(self._groups)[items]
        anywhere = torch.randint(count, groups.shape, generator=generator)
        turns = torch.where(groups < 0, anywhere, order[groups])
        return items[torch.argsort(turns, stable=True)]

    def follow(self, items: Sequence[int]) -> Iterator[int]:
        """Yield items, and fetch the shards of later ones meanwhile."""
        shards, starts = self._list_shards(items)
        ahead = self.window or _AHEAD
        begun = asked = 0
        pool = ThreadPoolExecutor(_FETCHERS, "medimg-shards")
        try:
            for position, item in enumerate(items):
                while begun < len(starts) and starts[begun] <= position:
                    begun += 1
                while asked < min(begun + ahead, len(shards)):
                    pool.submit(self._fetch, shards[asked])
                    asked += 1
                yield item
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _list_shards(self, items: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the shards of items in the order of use, and the position of the first item of each."""
        found, first = np.unique(self._groups[np.asarray(items, np.int64)], return_index=True)
        found, first = found[found >= 0], first[found >= 0]
        order = np.argsort(first)
        return found[order].tolist(), first[order].tolist()

    def _fetch(self, number: int) -> None:
        cache, shard = self._shards[number]
        # whoever needs the shard meets the error, too
        with suppress(MedimgError):
            cache.fetch(shard)

    def count_pure(self, labels: npt.NDArray[np.int64]) -> tuple[int, int]:
        """Return how many shards have items of one label (n,) only, and how many there are."""
        pairs = np.unique(np.stack([self._groups, labels])[:, self._groups >= 0], axis=1)
        _, counts = np.unique(pairs[0], return_counts=True)
        return int((counts == 1).sum()), len(counts)
