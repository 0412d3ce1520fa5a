"""Embeddings of a dataset, computed once and optionally cached on disk."""

from __future__ import annotations

from collections import deque
from contextlib import ExitStack, closing, nullcontext
from threading import Lock
from typing import TYPE_CHECKING, Final, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medimg._validation import check_batch_size, check_processes
from medimg.core.parallel import ordered_map
from medimg.core.progress import Progress, progress_bar
from medimg.data.dataloader import collate_indexed, load_items, worker_errors
from medimg.data.dataset import ImageDataset
from medimg.errors import PreprocessError
from medimg.features._cache import FLUSH_AFTER, DatasetFeatureCache
from medimg.features.extractor import feature_extractor, rebatch
from medimg.models.backbones.heads import feature_count
from medimg.models.data_checks import check_dataset
from medimg.models.input_checks import check_finite

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.preprocessing.preprocess import Preprocess

__all__ = ["EmbeddedDataset", "Features", "item_features"]

_READERS: Final = 2


class Features(NamedTuple):
    """
    Embeddings of a dataset: (total, F) float32 on the CPU, and offsets (n + 1,) int64.

    The rows of item i are ``offsets[i]:offsets[i + 1]``, one row if items are images.
    """

    embeddings: Tensor
    offsets: Tensor

    def pooled(self, pool: str) -> Tensor:
        """
        Return one row per item: the mean of its rows, or with "max" the maximum of each feature.

        Examples
        --------
        >>> features = Features(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 2, 3]))
        >>> features.pooled("mean").tolist(), features.pooled("max").tolist()
        ([[2.0], [5.0]], [[3.0], [5.0]])
        """
        if len(self.offsets) == len(self.embeddings) + 1:
            return self.embeddings
        reduce = "max" if pool == "max" else "mean"
        return torch.segment_reduce(self.embeddings, reduce, lengths=self.offsets.diff(), axis=0)


def item_features(
    model: TransferClassifier,
    dataset: LabeledDataset,
    *,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress = "auto",
) -> Features:
    """
    Compute the embeddings of all images of a dataset, each once, in the order of the dataset.

    With a cache folder, cached embeddings are used and new ones are stored; files that changed since they
    were read are not cached. Without worker processes the next images are read in threads while the network
    computes. With ``progress=None`` a progress bar is shown in an interactive terminal.

    Examples
    --------
    >>> features = item_features(model, train, cache="features")  # doctest: +SKIP
    >>> features.embeddings.shape  # doctest: +SKIP
    torch.Size([2547, 512])
    """
    check_dataset("embed", model, dataset, error=PreprocessError)
    size = check_batch_size(batch_size, error=PreprocessError)
    processes = check_processes(workers)
    cached = None
    if cache is not None and isinstance(dataset, ImageDataset):
        cached = DatasetFeatureCache(cache, model, dataset)
    found = cached.load() if cached else {}
    missing = [n for n in range(len(dataset)) if n not in found]
    collector = _RowCollector(cached)
    bar = progress_bar(
        desc="embedding", unit="item", progress=progress, total=len(dataset), initial=len(found)
    )
    with (
        bar,
        worker_errors(),
        feature_extractor(model) as network,
        closing(_read_images(dataset, missing, size, processes)) as parts,
    ):
        try:
            for images in rebatch(collector.expect(parts), size):
                collector.add(network(images))
                bar.update(len(found) + len(collector.done) - int(bar.n))
        finally:
            collector.flush()
    return join_items(found | collector.done, len(dataset), feature_count(model))


class _RowCollector:
    """Collects rows (n, F) from the network, and assigns them to items."""

    def __init__(self, cache: DatasetFeatureCache | None) -> None:
        self.done: dict[int, Tensor] = {}
        self._cache = cache
        self._expected: deque[tuple[int, int]] = deque()
        self._rows: list[Tensor] = []
        self._count = 0
        self._unsaved: dict[int, Tensor] = {}
        self._unsaved_rows = 0

    def expect(self, parts: Iterator[tuple[list[tuple[int, int]], Tensor]]) -> Iterator[Tensor]:
        """Record which items images are of, and how many each has; yield the images."""
        for items, images in parts:
            self._expected += items
            yield images

    def add(self, rows: Tensor) -> None:
        """Add the rows (n, F) of the next images."""
        self._rows.append(check_finite(rows))
        self._count += len(rows)
        if not self._expected or self._expected[0][1] > self._count:
            return
        block = torch.cat(self._rows) if len(self._rows) > 1 else self._rows[0]
        start = 0
        while self._expected and start + self._expected[0][1] <= len(block):
            item, count = self._expected.popleft()
            self.done[item] = self._unsaved[item] = block[start : start + count]
            start += count
        self._rows, self._count = [block[start:]], len(block) - start
        self._unsaved_rows += start
        if self._unsaved_rows >= FLUSH_AFTER:
            self.flush()

    def flush(self) -> None:
        """Write the features that are not on disk yet."""
        if self._cache and self._unsaved:
            self._cache.store(self._unsaved)
        self._unsaved, self._unsaved_rows = {}, 0


class _Groups(Dataset[Tensor]):
    """Images of several items at once: (n, C, H, W), or all of one bag."""

    def __init__(self, dataset: LabeledDataset, groups: Sequence[Sequence[int]]) -> None:
        self.dataset = dataset
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, number: int) -> Tensor:
        group = self.groups[number]
        if self.dataset.unit == "series":
            bag: Tensor = load_items(self.dataset, group[:1], one_by_one=True)[0][0]
            return bag
        items = load_items(self.dataset, group)
        return collate_indexed(
            [(image, 0, item) for (image, _), item in zip(items, group, strict=True)]
        ).images


def _read_images(
    dataset: LabeledDataset, items: Sequence[int], size: int, workers: int
) -> Generator[tuple[list[tuple[int, int]], Tensor]]:
    """Yield images (n, C, H, W), and their items with the number of images of each."""
    bags = dataset.unit == "series"
    step = 1 if bags else size
    groups = _Groups(dataset, [items[start : start + step] for start in range(0, len(items), step)])
    with ExitStack() as stack:
        results: Iterator[Tensor]
        if workers:
            # without a generator of its own, a loader draws from torch's global random state
            loader = DataLoader(groups, batch_size=None, num_workers=workers, generator=torch.Generator())
            results = iter(loader)
        else:
            results = stack.enter_context(closing(_read_ahead(groups, items)))
        for group, images in zip(groups.groups, results, strict=True):
            yield ([(group[0], len(images))] if bags else [(item, 1) for item in group]), images


def _read_ahead(groups: _Groups, items: Sequence[int]) -> Generator[Tensor]:
    """Read in threads while the network computes; images of one series one after the other."""
    uids = getattr(groups.dataset, "series_uids", ())
    shared = len({uids[item] for item in items}) < len(items) if uids else True
    lock = Lock() if shared else nullcontext()

    def read(number: int) -> Tensor:
        with lock:
            return groups[number]

    return ordered_map(read, range(len(groups)), _READERS if shared else None)


def join_items(found: dict[int, Tensor], count: int, features: int) -> Features:
    """Return the rows (n, F) of items as one tensor with offsets."""
    lengths = torch.tensor([len(found[item]) for item in range(count)], dtype=torch.int64)
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    # a copy, so that no larger block of rows stays in memory
    embeddings = torch.cat([torch.empty(0, features), *(found[item] for item in range(count))])
    return Features(embeddings, offsets)


class EmbeddedDataset:
    """Items of a dataset as embeddings; item i has the rows ``offsets[i]:offsets[i + 1]`` of (total, F)."""

    def __init__(self, images: LabeledDataset, embeddings: Tensor, offsets: Tensor) -> None:
        self._images = images
        self._labels = images.labels
        self._embeddings = embeddings
        self._offsets: list[int] = offsets.tolist()
        self._bags = images.unit == "series"
        self._several = images.task == "multilabel"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self._images.classes

    @property
    def task(self) -> str:
        """``"multiclass"`` or ``"multilabel"``."""
        return self._images.task

    @property
    def unit(self) -> str:
        """Unit of an item: ``"image"`` or ``"series"``."""
        return self._images.unit

    @property
    def preprocess(self) -> Preprocess:
        """Preprocessing of the images."""
        return self._images.preprocess

    @property
    def labels(self) -> NDArray[np.generic]:
        """Labels of the items."""
        return self._labels

    @property
    def patients(self) -> tuple[str, ...]:
        """Patient of each item."""
        return self._images.patients

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return the embedding (F,), or those of a bag (N, F), and the label."""
        start, end = self._offsets[index], self._offsets[index + 1]
        rows = self._embeddings[start:end] if self._bags else self._embeddings[start]
        label = self._labels[index]
        return rows, Tensor(label) if self._several else int(label)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int | Tensor]]:
        """Return several items."""
        return [self[index] for index in indices]
