"""Cached embedding of raw image sources."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medimg._public import set_module
from medimg._validation import check_batch_size
from medimg.core.parallel import ordered_map
from medimg.core.progress import progress_bar
from medimg.core.volume import Volume
from medimg.data.cache.keys import find_address
from medimg.data.dataset import ImageDataset
from medimg.data.image_loader import ImageLoader, ResolvedSource
from medimg.data.items import make_policies
from medimg.data.read_tensors import check_sources
from medimg.errors import MedimgError, PreprocessError
from medimg.features._cache import FLUSH_AFTER, FeatureCache, SeriesFeatures
from medimg.features.dataset_features import Features, item_features
from medimg.features.extractor import feature_extractor, rebatch
from medimg.models.backbones.heads import feature_count
from medimg.models.input_checks import check_finite
from medimg.preprocessing.torch_threads import share_cores

if TYPE_CHECKING:
    import os
    from collections.abc import Generator, Iterable, Iterator, Mapping

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.data.cache.keys import Address
    from medimg.errors import MedimgError
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["EmbeddedSource", "Embeddings", "SourceEmbedder", "embed"]


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddedSource:
    """
    One source on its way to embeddings.

    Attributes
    ----------
    images : Tensor or None
        (n, 3, H, W) that the network has not seen yet.
    missing : int
        Number n of these images.
    rows : numpy.ndarray or None
        (n, F) float32 embeddings.
    slices, sop_instance_uids : tuple
        Of each image.
    series_uid, patient : str
        Of the source.
    address : Address or None
        Where its embeddings are cached; None if they are not.
    error : MedimgError or None
        Why it could not be read.
    """

    images: Tensor | None = field(default=None, repr=False)
    missing: int = 0
    rows: NDArray[np.float32] | None = field(default=None, repr=False)
    slices: tuple[int, ...] = ()
    sop_instance_uids: tuple[str, ...] = field(default=(), repr=False)
    series_uid: str = ""
    patient: str = field(default="", repr=False)
    address: Address | None = None
    error: MedimgError | None = None


class SourceEmbedder:
    """
    Reads many sources, and loads and stores their embeddings.

    Parameters
    ----------
    model : TransferClassifier
        The network and the recipe.
    sources : iterable
        See :func:`medimg.embed`.
    cache : path-like or None
        Folder of the feature cache.
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
        self._loader = ImageLoader(model.preprocess, make_policies(reading))
        self._cache = FeatureCache.open(cache, model) if cache is not None else None
        self._unsaved: list[tuple[Address, SeriesFeatures]] = []
        self._unsaved_rows = 0

    def read(self, progress: bool | None) -> Generator[EmbeddedSource]:
        """Yield the sources in their order, with cached embeddings, or with images."""
        total = len(self._sources) if isinstance(self._sources, Sized) else None
        results = ordered_map(self._load, self._sources, self._workers, initializer=share_cores)
        with closing(results):
            yield from progress_bar(results, desc="embedding", unit="source", progress=progress, total=total)

    def add_rows(self, source: EmbeddedSource, rows: Tensor) -> EmbeddedSource:
        """Return a source with its embeddings, which will be cached."""
        if source.error is not None or source.rows is not None:
            return source
        array = rows.numpy()
        if self._cache is not None and source.address is not None:
            features = SeriesFeatures(array, source.slices, source.sop_instance_uids)
            self._unsaved.append((source.address, features))
            self._unsaved_rows += len(array)
            if self._unsaved_rows >= FLUSH_AFTER:
                self.flush()
        return replace(source, rows=array)

    def flush(self) -> None:
        """Write the embeddings that are not on disk yet."""
        if self._cache is not None:
            self._cache.store_series(self._unsaved)
        self._unsaved, self._unsaved_rows = [], 0

    def _load(self, source: Any) -> EmbeddedSource:
        try:
            resolved = ResolvedSource.resolve(source)
            image = resolved.image
            found = EmbeddedSource(
                series_uid="" if isinstance(image, Volume) else image.uid,
                patient="" if isinstance(image, Volume) else image.patient_id,
                address=self._find_address(resolved),
            )
            return self._load_cached(found, resolved) or self._read(found, resolved)
        except MedimgError as error:
            # the frames it was raised in hold pixels: too much to keep for each of many
            error.__context__ = error.__traceback__ = None
            return EmbeddedSource(error=error)
        except MemoryError:
            return EmbeddedSource(error=PreprocessError("no memory for the images of a source"))

    def _find_address(self, source: ResolvedSource) -> Address | None:
        if self._cache is None or isinstance(source.image, Volume):
            return None
        loader = self._loader
        return find_address(loader.recipe, source.image, loader.policies, dtype="float32", compare="samples")

    def _load_cached(self, found: EmbeddedSource, source: ResolvedSource) -> EmbeddedSource | None:
        if self._cache is None or found.address is None:
            return None
        features = self._cache.load_series(found.address, source.count(self._loader.recipe))
        return replace(found, **features._asdict()) if features else None

    def _read(self, found: EmbeddedSource, source: ResolvedSource) -> EmbeddedSource:
        tensor, rendered = self._loader.tensor(source)
        # files that changed while they were read would be cached under their former content
        address = found.address if found.address and self._find_address(source) == found.address else None
        return replace(
            found,
            images=tensor,
            missing=len(tensor),
            slices=rendered.slices,
            sop_instance_uids=rendered.sop_instance_uids,
            address=address,
        )


@set_module("medimg")
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


@set_module("medimg")
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
    size = check_batch_size(batch_size, error=PreprocessError)
    if isinstance(sources, ImageDataset):
        features = item_features(
            model, sources, cache=cache, batch_size=size, num_workers=num_workers, progress=progress
        )
        return _of_dataset(features, sources)
    embedder = SourceEmbedder(model, sources, cache=cache, workers=workers, reading=reading)
    with feature_extractor(model) as network, closing(embedder.read(progress)) as read:
        try:
            found = list(_compute_rows(embedder, read, network, size))
        finally:
            embedder.flush()
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


def _compute_rows(
    embedder: SourceEmbedder, read: Iterator[EmbeddedSource], network: Any, size: int
) -> Iterator[EmbeddedSource]:
    """Fill batches across sources, and yield each source once it has its rows."""
    waiting: deque[EmbeddedSource] = deque()
    rows: list[Tensor] = []
    done = 0

    def pending_images() -> Iterator[Tensor]:
        for one in read:
            waiting.append(replace(one, images=None))
            if one.images is not None:
                yield one.images

    for images in rebatch(pending_images(), size):
        rows.append(check_finite(network(images)))
        done += len(images)
        if done >= waiting[0].missing:
            block = torch.cat(rows)
            start = 0
            while waiting and start + waiting[0].missing <= len(block):
                one = waiting.popleft()
                yield embedder.add_rows(one, block[start : start + one.missing])
                start += one.missing
            rows, done = [block[start:]], len(block) - start
    # sources without images to compute may be last
    yield from (embedder.add_rows(one, torch.empty(0, 0)) for one in waiting)


def _of_sources(found: list[EmbeddedSource], features: int) -> Embeddings:
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
