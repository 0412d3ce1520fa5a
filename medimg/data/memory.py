"""Rendered pictures kept in memory, up to a bound."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

__all__ = ["PictureMemory"]


class PictureMemory:
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
