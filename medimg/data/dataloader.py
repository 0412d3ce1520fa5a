"""Data loaders: batches of items, bags of unequal length included."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medimg._public import set_module
from medimg.data.cache.images import decode_intensity, normalize_images
from medimg.data.items import ItemFacts
from medimg.data.protocols import LabeledDataset
from medimg.errors import DatasetError, MedimgError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from medimg.data.prepared.shard_stream import ShardStream
    from medimg.preprocessing.preprocess import Preprocess

__all__ = [
    "Batch",
    "EpochSampler",
    "PaddedBatch",
    "Share",
    "collate",
    "collate_indexed",
    "concat_batches",
    "epoch_seed",
    "find_stream",
    "load_items",
    "make_evaluation_loader",
    "make_training_loader",
    "normalize_stored",
    "pad_bags",
    "repeat_epochs",
    "worker_errors",
]


def epoch_seed(seed: int, epoch: int, purpose: int = 0) -> int:
    """
    Return a seed (63 bits, unsigned) for one purpose in one epoch, so that a resumed training draws the same.

    Examples
    --------
    >>> epoch_seed(0, 1) == epoch_seed(0, 1), epoch_seed(0, 1) == epoch_seed(1, 0)
    (True, False)
    """
    # torch allows negative seeds
    entropy = [seed % 2**64, epoch, purpose]
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]) >> 1


class Batch(NamedTuple):
    """A batch of items; the mask is None if all bags have the same length."""

    images: Tensor  # (B, C, H, W), or (B, N, C, H, W) with N of the longest bag, zero-padded
    labels: Tensor  # (B,) int64 or (B, K) float32
    mask: Tensor | None  # (B, N) bool: slices that are not padding
    indices: Tensor  # (B,) int64: indices in the dataset
    stored: bool = False  # images are as their dataset stores them, before normalization


@set_module("medimg")
class PaddedBatch(NamedTuple):
    """
    A batch of images, or of bags padded to one length; see :func:`medimg.collate`.

    Attributes
    ----------
    images : torch.Tensor
        (B, C, H, W) images, or (B, N, C, H, W) bags with N of the longest one, padded with zeros; in 3-D
        (B, C, D, H, W) volumes.
    labels : torch.Tensor or None
        (B,) int64 class indices, or (B, K) float32; None without labels.
    mask : torch.Tensor or None
        (B, N) bool, True for slices and False for padding; None if nothing is padded.
    """

    images: Tensor
    labels: Tensor | None
    mask: Tensor | None


def _find_faster(items: object, name: str) -> Any:
    """Return a method that gives what ``items[index]`` does; None if another class defines the latter."""
    for kind in type(items).__mro__:
        if name in vars(kind):
            return getattr(items, name)
        if vars(kind).keys() & {"__getitem__", "__getitems__"}:
            return None  # which changes items, or passes those of another dataset on
    return None


def load_items(items: Any, indices: Sequence[int], *, one_by_one: bool = False) -> list[tuple[Any, Any]]:
    """Return items, images with their labels; DatasetError if a dataset of the user's own fails on one."""
    several = None if one_by_one else _find_faster(items, "__getitems__")
    index: int | None = None
    try:
        if several is not None:
            return [(image, label) for image, label in several(indices)]
        found = []
        for index in indices:
            image, label = items[index]
            found.append((image, label))
    except (MedimgError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the user's own code raises
        which = f"item {index}" if index is not None else f"one of the items {', '.join(map(str, indices))}"
        raise DatasetError(
            f"{which} of the dataset {type(items).__qualname__} can't be loaded: {type(error).__name__}: "
            f"{error}; expected an image and its label"
        ) from error
    return found


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raise errors of worker processes with their own message; the cause has the traceback there."""
    try:
        yield
    except MedimgError as error:
        where, _, message = str(error).rpartition(f"{type(error).__module__}.{type(error).__qualname__}: ")
        if not (where.startswith("Caught ") and " in DataLoader worker process " in where):
            raise
        raise type(error)(message.strip()) from error


class _IndexedDataset(Dataset[tuple[Tensor, Any, int]]):
    """Items with their index, which identifies duplicates of distributed sampling; images may be `stored`."""

    def __init__(self, items: LabeledDataset, *, stored: bool = False) -> None:
        self.items = items
        self.stored = stored

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor, Any, int]:
        ((image, label),) = load_items(self.items, [index], one_by_one=True)
        return image, label, index

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Any, int]]:
        taken: Any = self.items
        found = taken._take_stored(indices) if self.stored else load_items(self.items, indices)
        return [(*item, index) for item, index in zip(found, indices, strict=True)]


class Share(NamedTuple):
    """Rank of this process, and the number of processes."""

    rank: int = 0
    world: int = 1


class EpochSampler(Sampler[int]):
    """
    Shuffled indices, in an order that depends only on the seed and the epoch's number.

    Batches of b items on each of w processes are together the batches of w·b items on one. Items left over
    when they are shared out are skipped in that epoch. With `odds` (n,), items are drawn with replacement, as
    many as there are. With a `stream` whose shards have no room together, only some are needed at a time.
    `offset` is the number of the epoch that :meth:`set_epoch` calls 0.

    Examples
    --------
    >>> sampler = EpochSampler(5, seed=0)
    >>> sorted(sampler) == [0, 1, 2, 3, 4]
    True
    """

    def __init__(
        self,
        count: int,
        seed: int,
        *,
        odds: Tensor | None = None,
        share: Share | None = None,
        offset: int = 0,
        stream: ShardStream | None = None,
    ) -> None:
        self._count = count
        self._seed = seed
        self._odds = odds
        self._share = share or Share()
        self._offset = offset
        self._stream = stream
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch, counted from the offset; Lightning calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._count // self._share.world

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(epoch_seed(self._seed, self._offset + self._epoch))
        if self._odds is None:
            order = torch.randperm(self._count, generator=generator)
        else:
            order = torch.multinomial(self._odds, self._count, replacement=True, generator=generator)
        if self._stream is not None:
            order = self._stream.arrange(order, generator)
        rank, world = self._share
        yield from _follow(self._stream, order[: len(self) * world][rank::world].tolist())


class _SharedSampler(Sampler[int]):
    """Indices in order, shared out to processes; the first ones are repeated to make the shares equal."""

    def __init__(self, count: int, share: Share, stream: ShardStream | None) -> None:
        self._count, self._share, self._stream = count, share, stream

    def __len__(self) -> int:
        return (self._count + self._share.world - 1) // self._share.world

    def __iter__(self) -> Iterator[int]:
        rank, world = self._share
        yield from _follow(self._stream, [i % self._count for i in range(rank, len(self) * world, world)])


def _follow(stream: ShardStream | None, indices: list[int]) -> Iterator[int]:
    return iter(indices) if stream is None else stream.follow(indices)


def find_stream(items: LabeledDataset) -> ShardStream | None:
    """Return the shards of a dataset that are fetched from object storage; None if there are none."""
    find = getattr(items, "find_stream", None)
    return None if find is None else find()


@set_module("medimg")
def collate(items: Sequence[tuple[Tensor, Any] | Tensor]) -> PaddedBatch:
    """
    Make a batch of series of unequal length: the ``collate_fn`` of a ``torch.utils.data.DataLoader``.

    Parameters
    ----------
    items : sequence of tuple, or of Tensor
        Images with their labels, as :class:`medimg.ImageDataset` gives them, or images alone, as a
        :class:`medimg.Preprocess` does: (C, H, W) images, (N, C, H, W) bags of any lengths N, (C, D, H, W)
        volumes, or embeddings (F,) or (N, F).

    Returns
    -------
    PaddedBatch
        ``(images, labels, mask)``, for ``model(images, mask)``.

    Raises
    ------
    DatasetError
        If there is no item, images are of several sizes, or only some have labels.

    Examples
    --------
    >>> batch = collate([(torch.ones(2, 3, 8, 8), 0), (torch.ones(3, 3, 8, 8), 1)])
    >>> tuple(batch.images.shape), batch.labels.tolist(), batch.mask.sum(dim=1).tolist()
    ((2, 3, 3, 8, 8), [0, 1], [2, 3])
    """
    pairs = [(item, None) if isinstance(item, Tensor) else item for item in items]
    try:
        images = [torch.as_tensor(image) for image, _ in pairs]
    except (TypeError, ValueError, RuntimeError):
        raise DatasetError(
            "expected items (image, label), or images, all of them tensors; found something else"
        ) from None
    if not images or 0 in {image.ndim for image in images}:
        raise DatasetError(f"expected one or more images; found {'a number' if images else 'none'}")
    # the length of bags may differ
    shapes = {tuple(image.shape[1 - image.ndim % 2 :]) for image in images}
    if len(shapes) > 1 or len({image.ndim for image in images}) > 1:
        raise DatasetError(
            f"a batch needs images of one size; found {', '.join(sorted(map(str, shapes)))}: use one recipe "
            "for all of them"
        )
    given = [label for _, label in pairs if label is not None]
    if 0 < len(given) < len(pairs):
        raise DatasetError(
            f"expected labels for all items of a batch, or none; found {len(given)} of {len(pairs)}"
        )
    try:
        labels = torch.stack([torch.as_tensor(label) for label in given]) if given else None
    except (TypeError, ValueError, RuntimeError):
        raise DatasetError(
            "labels must be class indices, or tensors of one length; found others: encode names as indices"
        ) from None
    stacked, mask = _pad_or_stack(images)
    return PaddedBatch(stacked, labels, mask)


def collate_indexed(items: Sequence[tuple[Tensor, Any, int]]) -> Batch:
    """Make a batch of items with their indices in a dataset; see :func:`collate`."""
    labels = torch.stack([torch.as_tensor(label) for _, label, _ in items])
    indices = torch.tensor([index for _, _, index in items])
    try:
        images, mask = _pad_or_stack([image for image, _, _ in items])
    except (TypeError, RuntimeError, AttributeError) as error:
        shapes = {str(tuple(getattr(image, "shape", ()))) for image, _, _ in items}
        raise DatasetError(
            f"a batch needs images of one size; found {', '.join(sorted(shapes))}: {error}"
        ) from error
    return Batch(images, labels, mask, indices)


def _collate_stored(recipe: Preprocess, items: Sequence[tuple[Tensor, Any, int]]) -> Batch:
    """Make a batch of stored images; those of several types or numbers of channels are normalized."""
    labels = torch.stack([torch.as_tensor(label) for _, label, _ in items])
    indices = torch.tensor([index for _, _, index in items])
    images = [image for image, _, _ in items]
    if len({(image.dtype, image.shape) for image in images}) == 1:
        return Batch(torch.stack(images), labels, None, indices, stored=True)
    return Batch(normalize_images(recipe, [image[None] for image in images]), labels, None, indices)


def normalize_stored(batch: Batch, recipe: Preprocess) -> Batch:
    """Normalize the images of a batch on their device, if they are as stored."""
    if not batch.stored:
        return batch
    return batch._replace(images=recipe.normalize(decode_intensity(batch.images)), stored=False)


def _pad_or_stack(images: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Stack images, or pad bags of unequal length, whose mask is returned."""
    # odd: an image (C, H, W) or its embedding (F,); even: a bag of them, or a volume, all of one length
    if images[0].ndim % 2 or len({len(image) for image in images}) == 1:
        return _stack(images), None
    return pad_bags(images)


def pad_bags(bags: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad bags (N, ...) of unequal lengths with zeros: (B, N, ...), and a mask (B, N) of the slices."""
    lengths = torch.tensor([len(bag) for bag in bags])
    most = int(lengths.max())
    rows = bags[0].new_zeros(len(bags), most, *bags[0].shape[1:])
    for row, bag in zip(rows, bags, strict=True):
        row[: len(bag)] = bag
    return rows, (torch.arange(most) < lengths[:, None]).to(bags[0].device)


def concat_batches(batches: Sequence[Batch]) -> tuple[Tensor, Tensor | None]:
    """Concatenate the images of several batches, and the mask of bags of unequal lengths."""
    shapes = {batch.images.shape[1:] for batch in batches}
    if len(shapes) == 1 and all(batch.mask is None for batch in batches):
        return torch.cat([batch.images for batch in batches]), None
    bags: list[Tensor] = []
    for batch in batches:
        if batch.mask is None:
            bags += batch.images
        else:
            bags += [bag[there] for bag, there in zip(batch.images, batch.mask, strict=True)]
    return pad_bags(bags)


def _stack(images: list[Tensor]) -> Tensor:
    """Stack images without copying them if they are contiguous in one block of memory."""
    first, size = images[0], images[0].numel()
    block = first.untyped_storage().data_ptr()
    in_a_row = all(
        image.is_contiguous()
        and image.shape == first.shape
        and image.dtype == first.dtype
        and image.untyped_storage().data_ptr() == block
        and image.storage_offset() == first.storage_offset() + n * size
        for n, image in enumerate(images)
    )
    if not in_a_row or first.requires_grad:
        return torch.stack(images)
    return first.as_strided((len(images), *first.shape), (size, *first.stride()))


def _choose_options(items: LabeledDataset, *, pin_memory: bool, stored: bool) -> dict[str, Any]:
    """Return how a loader takes, joins and pins items; what is on a GPU already can't be pinned."""
    if pin_memory and not isinstance(items, ItemFacts):
        ((image, _),) = load_items(items, [0], one_by_one=True)
        pin_memory = not isinstance(image, Tensor) or image.device.type == "cpu"
    stored = stored and _find_faster(items, "_take_stored") is not None and items.unit != "series"
    return {
        "dataset": _IndexedDataset(items, stored=stored),
        "collate_fn": partial(_collate_stored, items.preprocess) if stored else collate_indexed,
        "pin_memory": pin_memory,
    }


def make_training_loader(
    items: LabeledDataset,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool,
    sampler: EpochSampler,
    stored: bool = False,
) -> DataLoader[tuple[Tensor, Any, int]]:
    """
    Return shuffled batches, in the sampler's order.

    With `stored` images of an :class:`medimg.ImageDataset` are as they are stored, for `normalize_stored` on
    a GPU: a sixth of the bytes, for grayscale images in float16.

    A last batch of a single item is skipped, since batch normalization can't be trained on one.
    """
    count = len(sampler)
    return DataLoader(
        **_choose_options(items, pin_memory=pin_memory, stored=stored),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        drop_last=count > batch_size > 1 and count % batch_size == 1,
        # otherwise a loader draws from torch's global random state
        generator=torch.Generator(),
        persistent_workers=workers > 0,
    )


def repeat_epochs(loader: DataLoader[tuple[Tensor, Any, int]], sampler: EpochSampler) -> Iterator[Batch]:
    """Yield the batches of a loader forever, each epoch in its own order."""
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def make_evaluation_loader(
    items: LabeledDataset,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool = False,
    share: Share | None = None,
    stored: bool = False,
) -> DataLoader[tuple[Tensor, Any, int]]:
    """Return batches in the order of the dataset; each of several processes has as many."""
    return DataLoader(
        **_choose_options(items, pin_memory=pin_memory, stored=stored),
        batch_size=batch_size,
        sampler=_SharedSampler(len(items), share or Share(), find_stream(items)),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),
    )
