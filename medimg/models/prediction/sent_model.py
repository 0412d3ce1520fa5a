"""Models on the workers of an executor: read once in each process, from a file that is sent if need be."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast

from medimg.executors.executor_map import SMALL_RESULTS
from medimg.executors.worker_warnings import map_with_warnings
from medimg.io.files.atomic import hash_file, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from pathlib import Path

    from medimg.errors import ExecutorError

__all__ = ["ModelSender", "map_with_model"]

_Model = TypeVar("_Model")
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Models that a process keeps, those used last.
_MOST_LOADED: Final = 2
_loaded: OrderedDict[tuple[str, object], Any] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class ModelSender(Generic[_Model]):
    """
    How a model gets to workers.

    Attributes
    ----------
    name : str
        Name of its file.
    write : callable
        Writes the file, in the caller's process.
    load : callable
        Reads it, in a worker.
    options : hashable
        What else makes one loaded model another one than the next, such as its device.
    within : callable
        Makes the context that each task runs in.
    """

    name: str
    write: Callable[[Path], object]
    load: Callable[[Path], _Model]
    options: object
    within: Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class _SentModel(Generic[_Model]):
    """A model by its file; `data` are the bytes for a worker that can't see it."""

    path: Path
    sha256: str
    options: object
    load: Callable[[Path], _Model]
    data: bytes | None = None

    def get(self) -> _Model | None:
        """Return the model, read once in this process; None if its file is not visible here."""
        key = (self.sha256, self.options)
        with _lock:
            if key not in _loaded:
                model = self._read()
                if model is None:
                    return None
                _loaded[key] = model
                while len(_loaded) > _MOST_LOADED:
                    _loaded.popitem(last=False)
            _loaded.move_to_end(key)
            return cast("_Model", _loaded[key])

    def _read(self) -> _Model | None:
        if self.data is None:
            return self.load(self.path) if self.path.exists() else None
        with temporary_folder() as folder:
            path = folder / self.path.name
            path.write_bytes(self.data)
            return self.load(path)


class _Missing:
    """The answer of a worker that can't see the file of the model."""


def map_with_model(
    sender: ModelSender[_Model],
    work: Callable[[_Model, _Item], _Result],
    items: Iterable[_Item],
    workers: int | None,
    executor: Executor,
    *,
    lost: Callable[[_Item, ExecutorError], _Result],
) -> Generator[_Result]:
    """Yield the results of `work` on a model and each item, in the order of the items, by an executor."""
    waiting: deque[_Item] = deque()

    def note() -> Iterator[_Item]:
        for item in items:
            waiting.append(item)
            yield item

    def start(sent: _SentModel[_Model], some: Iterable[_Item], count: int | None) -> Generator[Any]:
        return map_with_warnings(
            executor, partial(_run, sent, work), some, lost=lost, within=sender.within, workers=count,
            ahead=SMALL_RESULTS,
        )  # fmt: skip

    with temporary_folder() as folder:
        path = folder / sender.name
        sender.write(path)
        sent = _SentModel(path, hash_file(path), sender.options, sender.load)
        whole: _SentModel[_Model] | None = None
        with closing(start(sent, note(), workers)) as results:
            for result in results:
                item = waiting.popleft()
                if not isinstance(result, _Missing):
                    yield result
                    continue
                whole = whole or replace(sent, data=path.read_bytes())
                yield from start(whole, [item], 1)


def _run(
    sent: _SentModel[_Model], work: Callable[[_Model, _Item], _Result], item: _Item
) -> _Result | _Missing:
    model = sent.get()
    return _Missing() if model is None else work(model, item)
