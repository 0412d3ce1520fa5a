"""Models on the workers of an executor: read once in each process, from a file that is sent if need be."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn, TypeVar, cast

import torch

from medimg.errors import ExecutorError
from medimg.io.files.atomic import hash_file, temporary_folder
from medimg.preprocessing.torch_threads import map_sources

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator
    from concurrent.futures import Executor
    from pathlib import Path

    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier

__all__ = ["map_with_model", "raise_lost_part"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: Models that a process keeps, those used last.
_MOST_LOADED: Final = 2
_loaded: OrderedDict[str, TransferClassifier] = OrderedDict()
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class _SentModel:
    """A model by its file; `data` are the bytes for a worker that can't see it."""

    path: Path
    sha256: str
    device: str
    load: Callable[[Path], TransferClassifier]
    data: bytes | None = None

    def get(self) -> TransferClassifier | None:
        """Return the model, read once in this process; None if its file is not visible here."""
        with _lock:
            model = _loaded.get(self.sha256)
            if model is None:
                model = self._read()
                if model is None:
                    return None
                _loaded[self.sha256] = model.to(_find_device(self.device))
                while len(_loaded) > _MOST_LOADED:
                    _loaded.popitem(last=False)
            _loaded.move_to_end(self.sha256)
            return _loaded[self.sha256]

    def _read(self) -> TransferClassifier | None:
        if self.data is None:
            return self.load(self.path) if self.path.exists() else None
        with temporary_folder() as folder:
            path = folder / self.path.name
            path.write_bytes(self.data)
            return self.load(path)


def _find_device(name: str) -> torch.device:
    """Return the device of the caller's model if this machine has it, else the CPU."""
    device = torch.device(name)
    found = getattr(torch, device.type, None)
    return torch.device(device.type) if device.type == "cpu" or (found and found.is_available()) else _CPU


_CPU: Final = torch.device("cpu")


@contextmanager
def _send_model(model: TransferClassifier) -> Iterator[_SentModel]:
    """Yield a model as the workers of an executor get it; its file is removed at the end."""
    with temporary_folder() as folder:
        path = folder / "model.safetensors"
        model.save(path)
        yield _SentModel(path, hash_file(path), next(model.parameters()).device.type, type(model).load)


class _Missing:
    """The answer of a worker that can't see the file of the model."""


def map_with_model(
    model: TransferClassifier,
    work: Callable[[TransferClassifier, _Item], _Result],
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

    with _send_model(model) as sent:
        whole: _SentModel | None = None
        results = map_sources(partial(_run, sent, work), note(), workers, executor, lost=lost, small=True)
        for result in results:
            item = waiting.popleft()
            if not isinstance(result, _Missing):
                yield result
                continue
            whole = whole or replace(sent, data=sent.path.read_bytes())
            again = map_sources(partial(_run, whole, work), [item], 1, executor, lost=lost)
            yield from cast("Generator[_Result]", again)


def raise_lost_part(part: ImageDataset, error: ExecutorError) -> NoReturn:
    """Raise the error of a part of a dataset, whose items must all be there."""
    names = tuple(dict.fromkeys(part.sources))
    more = f" or one of {len(names) - 1} more" if len(names) > 1 else ""
    raise ExecutorError(f"{names[0]}{more}: {error}") from error


def _run(
    sent: _SentModel, work: Callable[[TransferClassifier, _Item], _Result], item: _Item
) -> _Result | _Missing:
    model = sent.get()
    return _Missing() if model is None else work(model, item)
