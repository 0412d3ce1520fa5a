"""What tells the pictures of a data set: digests of their files, the recipe and the way of reading."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from medimg.data.states import states_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from medimg.data.cache import PictureCache
    from medimg.data.dataset import ImageDataset
    from medimg.data.entries import Address
    from medimg.data.states import States

__all__ = ["Contents"]

_THREADS: Final = 8


class Contents:
    """
    The content of each item of a data set, as it is when this is made.

    Parameters
    ----------
    dataset : ImageDataset
        Its files are opened, and not decoded.
    cache : PictureCache
        Tells how files are compared; nothing is kept in it.
    """

    def __init__(self, dataset: ImageDataset, cache: PictureCache) -> None:
        self._items = dataset._items
        self._store = dataset._store
        self._series = [item.series for item in dataset._labeled]
        self._recipe = dataset.preprocess
        sources = sorted({item.source for item in self._items})
        maker = self._store.maker

        def looked_at(source: int) -> tuple[States | None, Address | None]:
            series = self._series[source]
            return states_of(series), cache.address(self._recipe, series, maker.policies)

        with ThreadPoolExecutor(_THREADS) as pool:
            self._found = dict(zip(sources, pool.map(looked_at, sources), strict=True))

    def __len__(self) -> int:
        return len(self._items)

    def address(self, item: int) -> Address | None:
        """Return what tells the series of an item; None where its files can't tell it."""
        return self._found[self._items[item].source][1]

    def pictures(self, item: int) -> Sequence[int]:
        """Return which pictures of its series an item shows."""
        picture = self._items[item].picture
        if picture is not None:
            return (picture,)
        return range(self._recipe.count(self._series[self._items[item].source]))

    def settled(self, items: Iterable[int]) -> set[int]:
        """Return those items whose files have not changed since they were looked at, or read before."""
        of_source: dict[int, list[int]] = {}
        for item in items:
            of_source.setdefault(self._items[item].source, []).append(item)
        return {item for source, some in of_source.items() if self._is_settled(source) for item in some}

    def _is_settled(self, source: int) -> bool:
        before = self._found[source][0]
        return before is not None and before == states_of(self._series[source]) == self._store.state(source)
