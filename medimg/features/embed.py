"""Sources on their way to embeddings: opened, looked for among what is kept, read if need be."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medimg.core.parallel import ordered_map
from medimg.core.volume import Volume
from medimg.data.cache.image_cache import ImageCache
from medimg.data.dataset import ImageDataset
from medimg.data.image_loader import ImageLoader, ResolvedSource
from medimg.data.items import checked_policies
from medimg.data.read_tensors import check_sources
from medimg.errors import MedimgError, PreprocessError
from medimg.features._cache import KEEP_AFTER, FeatureFile
from medimg.features.dataset_features import Features, checked_size, item_features
from medimg.features.extractor import extracting, network_digest, rebatch
from medimg.models._input_checks import checked_finite
from medimg.models.backbones.heads import feature_count
from medimg.preprocessing.torch_threads import share_cores

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Iterator, Mapping

    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.cache.keys import Address
    from medimg.features._cache import Entry
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["EmbeddingCache", "EmbeddingLookup", "Embeddings", "embed"]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingLookup:
    """
    What is known of one source.

    Attributes
    ----------
    pictures : Tensor or None
        (n, 3, H, W) that are still to be computed on.
    missing : int
        How many these were.
    rows : numpy.ndarray or None
        (n, F) float32 embeddings.
    slices, sop_instance_uids : tuple
        Of each picture.
    series_uid, patient : str
        Of the source.
    address : Address or None
        What tells its content; None where nothing is kept.
    error : MedimgError or None
        Why there is nothing.
    """

    pictures: Tensor | None = field(default=None, repr=False)
    missing: int = 0
    rows: NDArray[np.float32] | None = field(default=None, repr=False)
    slices: tuple[int, ...] = ()
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    series_uid: str = ""
    patient: str = field(default="", repr=False)
    address: Address | None = None
    error: MedimgError | None = None


class EmbeddingCache:
    """
    Many sources, and the embeddings of them that are kept.

    Parameters
    ----------
    model : TransferClassifier
        The network and the recipe.
    sources : iterable
        See :func:`medimg.embed`.
    cache : path-like or None
        Folder of what is kept.
    workers : int or None
        Threads.
    reading : mapping or None
        Policies.
    """

    def __init__(
        self,
        model: TransferClassifier,
        sources: Iterable[Source | Volume],
        *,
        cache: str | os.PathLike[str] | None,
        workers: int | None,
        reading: Mapping[str, str] | None,
    ) -> None:
        self._sources = check_sources(sources, model.preprocess, workers, "collect")
        self._workers = workers
        self._maker = ImageLoader(model.preprocess, checked_policies(reading))
        self._addressing = ImageCache(cache, dtype="float32") if cache is not None else None
        self._file: FeatureFile | None = None
        self._unkept: list[Entry] = []
        if self._addressing is not None:
            self._file = FeatureFile(self._addressing.folder, network_digest(model), feature_count(model))

    def read(self, progress: bool | None) -> Generator[EmbeddingLookup]:
        """Yield the sources in their order, read where their embeddings are not kept."""
        from tqdm import tqdm

        total = len(self._sources) if isinstance(self._sources, Sized) else None
        disable = None if progress is None else not progress
        results = ordered_map(self._found, self._sources, self._workers, initializer=share_cores)
        with closing(results):
            yield from tqdm(
                results, "embedding", total, unit="source", disable=disable, delay=1.0, leave=False
            )

    def completed(self, one: EmbeddingLookup, rows: Tensor) -> EmbeddingLookup:
        """Return a source with its rows, which are to be kept."""
        if one.error is not None or one.rows is not None:
            return one
        array = rows.numpy()
        if self._file is not None and one.address is not None:
            self._unkept += [self._file.entry(one.address, n, row) for n, row in enumerate(array)]
            self._unkept.append(self._file.names_entry(one.address, one.slices, one.sop_instance_uids))
            if len(self._unkept) >= KEEP_AFTER:
                self.keep()
        return replace(one, rows=array)

    def keep(self) -> None:
        """Write what is not on disk yet."""
        if self._file is not None:
            self._file.put(self._unkept)
        self._unkept = []

    def _found(self, source: Any) -> EmbeddingLookup:
        try:
            opened = ResolvedSource.of(source)
            image = opened.image
            known = EmbeddingLookup(
                series_uid="" if isinstance(image, Volume) else image.uid,
                patient="" if isinstance(image, Volume) else image.patient_id,
                address=self._address(opened),
            )
            return self._kept(known, opened) or self._read(known, opened)
        except MedimgError as error:
            # what it was raised in holds pixels: too much to keep of each of many
            error.__context__ = error.__traceback__ = None
            return EmbeddingLookup(error=error)
        except MemoryError:
            return EmbeddingLookup(error=PreprocessError("no memory for the pictures of a source"))

    def _address(self, opened: ResolvedSource) -> Address | None:
        if self._addressing is None or isinstance(opened.image, Volume):
            return None
        return self._addressing.address(self._maker.recipe, opened.image, self._maker.policies)

    def _kept(self, known: EmbeddingLookup, opened: ResolvedSource) -> EmbeddingLookup | None:
        if self._file is None or known.address is None:
            return None
        keys = [self._file.key(known.address, n) for n in range(opened.count(self._maker.recipe))]
        rows = self._file.get(keys)
        names = self._file.names(known.address)
        if names is None or len(rows) < len(keys) or {len(names[0]), len(names[1])} != {len(keys)}:
            return None
        array = np.stack([rows[key] for key in keys])
        return replace(known, rows=array, slices=names[0], sop_instance_uids=names[1])

    def _read(self, known: EmbeddingLookup, opened: ResolvedSource) -> EmbeddingLookup:
        tensor, rendered = self._maker.tensor(opened)
        # files that changed while they were read would be kept in the name of what they were
        address = known.address if known.address and self._address(opened) == known.address else None
        return replace(
            known,
            pictures=tensor,
            missing=len(tensor),
            slices=rendered.slices,
            sop_instance_uids=rendered.sop_instance_uids,
            address=address,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """
    What a backbone makes of pictures: a row for each.

    Attributes
    ----------
    array : numpy.ndarray
        (n, F) float32.
    items : numpy.ndarray
        (n,) int64: which item of the data set, or which source, a row is of; in ascending order.
    labels : numpy.ndarray or None
        (n,) int64 class indices, or (n, K) float32; None where the images have no labels.
    patients : tuple of str
        Patient of each row, for grouping; never shown. Empty where not known.
    series_uids : tuple of str
        Of each row.
    sop_instance_uids : tuple of str
        Of each row; "" where it has none, or a data set does not tell.
    slices : tuple of int
        Of each row: index of the slice in its volume; -1 where a data set does not tell.
    errors : mapping of int to MedimgError
        Why sources have no rows.
    """

    array: NDArray[np.float32] = field(repr=False)
    items: NDArray[np.int64] = field(repr=False)
    labels: NDArray[Any] | None = field(default=None, repr=False)
    patients: tuple[str, ...] = field(default=(), repr=False)
    series_uids: tuple[str, ...] = field(default=(), repr=False)
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    slices: tuple[int, ...] = field(default=(), repr=False)
    errors: Mapping[int, MedimgError] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.array)

    def pooled(self, how: Literal["mean", "max"] = "mean") -> Embeddings:
        """
        Return one row for each item that has any: the mean of its rows, or the greatest of each feature.

        Examples
        --------
        >>> rows = Embeddings(np.array([[1.0], [3.0], [5.0]], np.float32), np.array([0, 0, 4]))
        >>> rows.pooled("max").array.tolist(), rows.pooled().items.tolist()
        ([[3.0], [5.0]], [0, 4])
        """
        items, first = np.unique(self.items, return_index=True)
        offsets = torch.from_numpy(np.append(first, len(self)).astype(np.int64))
        rows = Features(torch.from_numpy(self.array), offsets).pooled(how)
        return replace(
            self,
            array=rows.numpy(),
            items=items,
            labels=None if self.labels is None else self.labels[first],
            patients=tuple(self.patients[n] for n in first) if self.patients else (),
            series_uids=tuple(self.series_uids[n] for n in first) if self.series_uids else (),
            sop_instance_uids=(),
            slices=(),
        )

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table: where each row is from, its label, and its features ``f0``, ``f1`` and so on.

        Several labels are ``label_0`` and so on. Patients are not in it.
        """
        import pandas as pd

        columns: dict[str, Any] = {"item": self.items}
        for name in ("series_uids", "sop_instance_uids", "slices"):
            values = getattr(self, name)
            if values:
                columns[name[:-1]] = list(values)
        if self.labels is not None and self.labels.ndim == 1:
            columns["label"] = self.labels
        elif self.labels is not None:
            columns |= {f"label_{k}": self.labels[:, k] for k in range(self.labels.shape[1])}
        features = pd.DataFrame(self.array, columns=[f"f{n}" for n in range(self.array.shape[1])])
        return pd.concat([pd.DataFrame(columns), features], axis=1)

    def __repr__(self) -> str:
        n, features = self.array.shape
        failed = f", {len(self.errors)} sources failed" if self.errors else ""
        return f"Embeddings({n}×{features} of {len(np.unique(self.items))} items{failed})"


def embed(
    model: TransferClassifier,
    sources: ImageDataset | Iterable[Source | Volume],
    *,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    num_workers: int = 0,
    reading: Mapping[str, str] | None = None,
    progress: bool | None = None,
) -> Embeddings:
    """
    Compute the embedding of every picture of a data set, or of a whole archive in bounded memory.

    Parameters
    ----------
    model : TransferClassifier
        Its backbone computes, in evaluation mode, and its recipe makes the pictures.
    sources : ImageDataset, or iterable of str, Path, bytes, list, Series or Volume
        A data set; or what :func:`medimg.read_tensors` takes, such as the :class:`SeriesIndex` of
        :func:`medimg.scan`: at most ``workers + 2`` of these are in memory at once, and errors are collected.
    cache : path-like, optional
        A folder where embeddings are kept, so that no picture passes twice through the same network. They are
        found by what the files hold, the recipe, the way of reading, and the network with its weights: what
        changes any of these gives new ones. Bytes, open files and volumes are not kept. The folder holds
        nothing that names a patient; keep it as private as the images themselves all the same.
    batch_size : int
        Pictures at once.
    workers : int, optional
        Threads that read sources; all cores by default.
    num_workers : int
        Processes that read a data set; none by default, it is read in threads then.
    reading : mapping, optional
        Policies and values of :func:`medimg.read` for sources; a data set has its own.
    progress : bool, optional
        Whether to show a progress bar; by default where a person watches.

    Returns
    -------
    Embeddings
        In the order of the sources.

    Raises
    ------
    PreprocessError
        If the data set's recipe is not the model's, or `sources` is one source and no collection.
    TrainingError
        If embeddings are not finite.
    MedimgError
        If an item of a data set can't be read.

    Examples
    --------
    >>> from medimg import Preprocess, TransferClassifier, Volume
    >>> from medimg.core.geometry import image_affine
    >>> model = TransferClassifier(
    ...     "squeezenet1_1", classes=["a", "b"], weights=None, preprocess=Preprocess(size=32)
    ... )
    >>> volume = Volume(np.zeros((1, 4, 64, 64), np.int16), image_affine((2.0, 1.0, 1.0)), "CT", "HU")
    >>> found = embed(model, [volume, "nowhere", volume])
    >>> found, found.items.tolist(), found.errors.keys()
    (Embeddings(8×512 of 2 items, 1 sources failed), [0, 0, 0, 0, 2, 2, 2, 2], dict_keys([1]))
    """
    size = checked_size(batch_size)
    if isinstance(sources, ImageDataset):
        features = item_features(
            model, sources, cache=cache, batch_size=size, num_workers=num_workers, progress=progress
        )
        return _of_dataset(features, sources)
    archive = EmbeddingCache(model, sources, cache=cache, workers=workers, reading=reading)
    with extracting(model) as network, closing(archive.read(progress)) as read:
        try:
            found = list(_computed(archive, read, network, size))
        finally:
            archive.keep()
    return _of_sources(found, feature_count(model))


def _of_dataset(features: Features, dataset: ImageDataset) -> Embeddings:
    counts = features.offsets.diff().numpy()
    items = np.repeat(np.arange(len(counts)), counts)
    patients, uids = dataset.patients, dataset.series_uids
    return Embeddings(
        array=features.embeddings.numpy(),
        items=items,
        labels=dataset.labels[items],
        patients=tuple(patients[n] for n in items),
        series_uids=tuple(uids[n] for n in items),
    )


def _computed(
    archive: EmbeddingCache, read: Iterator[EmbeddingLookup], network: Any, size: int
) -> Iterator[EmbeddingLookup]:
    """Fill batches across sources, and yield each source once its rows are there."""
    waiting: deque[EmbeddingLookup] = deque()
    rows: list[Tensor] = []
    done = 0

    def pictures() -> Iterator[Tensor]:
        for one in read:
            waiting.append(replace(one, pictures=None))
            if one.pictures is not None:
                yield one.pictures

    for images in rebatch(pictures(), size):
        rows.append(checked_finite(network(images)))
        done += len(images)
        if done >= waiting[0].missing:
            block = torch.cat(rows)
            start = 0
            while waiting and start + waiting[0].missing <= len(block):
                one = waiting.popleft()
                yield archive.completed(one, block[start : start + one.missing])
                start += one.missing
            rows, done = [block[start:]], len(block) - start
    # what has no pictures to compute may be last
    yield from (archive.completed(one, torch.empty(0, 0)) for one in waiting)


def _of_sources(found: list[EmbeddingLookup], features: int) -> Embeddings:
    arrays = [one.rows for one in found if one.rows is not None]
    counts = [0 if one.rows is None else len(one.rows) for one in found]
    return Embeddings(
        array=np.concatenate([np.empty((0, features), np.float32), *arrays]),
        items=np.repeat(np.arange(len(found)), counts),
        patients=tuple(one.patient for one, n in zip(found, counts, strict=True) for _ in range(n))
        if any(one.patient for one in found)
        else (),
        series_uids=tuple(one.series_uid for one, n in zip(found, counts, strict=True) for _ in range(n)),
        sop_instance_uids=tuple(uid for one in found for uid in one.sop_instance_uids),
        slices=tuple(n for one in found for n in one.slices),
        errors={n: one.error for n, one in enumerate(found) if one.error is not None},
    )
