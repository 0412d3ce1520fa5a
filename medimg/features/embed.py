"""Embeddings of datasets and of many image sources."""

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
from medimg.core.progress import Progress, progress_bar
from medimg.core.volume import Volume
from medimg.data.cache.keys import find_address
from medimg.data.dataset import ImageDataset
from medimg.data.image_loader import ImageLoader
from medimg.data.items import make_policies
from medimg.data.patients import normalize_patient
from medimg.data.read_tensors import check_sources
from medimg.data.resolved_source import ResolvedSource
from medimg.errors import MedimgError, PreprocessError
from medimg.features._cache import FLUSH_AFTER, FeatureCache, SeriesFeatures
from medimg.features.dataset_features import Features, item_features
from medimg.features.extractor import feature_extractor, rebatch
from medimg.models.backbones.heads import feature_count
from medimg.models.data_checks import check_dataset, check_model, check_source
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
    One source with images (n, C, H, W) to embed, or with embeddings (n, F) float32, or with an error.

    `missing` is the number of images to embed; `address` is the cache key, None if it is not cached.
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
    """Reads many sources in threads, and loads and stores their embeddings."""

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

    def read(self, progress: Progress) -> Generator[EmbeddedSource]:
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
                patient="" if isinstance(image, Volume) else normalize_patient(image.patient_id),
                address=self._find_address(resolved),
            )
            return self._load_cached(found, resolved) or self._read(found, resolved)
        except MedimgError as error:
            # its frames have references to pixels, too many for many errors
            error.__context__ = error.__traceback__ = None
            return EmbeddedSource(error=error)
        except MemoryError:
            return EmbeddedSource(error=PreprocessError("not enough memory for the images of a source"))

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
        # files that changed during reading would be cached under the hash of their former contents
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
    Feature vectors, one row per image.

    Attributes
    ----------
    array : numpy.ndarray
        (n, F) float32.
    items : numpy.ndarray
        (n,) int64 index of the dataset item or source of each row, ascending.
    labels : numpy.ndarray or None
        (n,) int64 class indices, or (n, K) float32; None for sources without labels.
    patients : tuple of str
        Patient of each row, for grouping; not part of any repr or table. Empty if unknown.
    series_uids : tuple of str
        Series Instance UID of each row.
    sop_instance_uids : tuple of str
        SOP Instance UID of each row, "" if it has none; empty for a dataset.
    slices : tuple of int
        Slice index of each row in its volume; empty for a dataset.
    errors : mapping of int to MedimgError
        Errors of the sources that could not be read, by their index.
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
        Return one row per item: the mean of its rows, or with "max" the maximum of each feature.

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
        Return a table with item, UIDs, slice, label and the features ``f0``, ``f1``, … of each row.

        Several labels are ``label_0``, ``label_1``, …. Patients are not included.
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
    reading: Mapping[str, str] | None = None,
    progress: Progress = "auto",
) -> Embeddings:
    """
    Compute the embeddings of all images of a dataset or of many sources, in bounded memory.

    Parameters
    ----------
    model : TransferClassifier
        Model whose backbone (in evaluation mode) and preprocessing are used.
    sources : ImageDataset, or iterable of str, Path, bytes, list, Series, Volume, or image of another library
        Dataset, or sources as for :func:`medimg.read_tensors`, such as the :class:`SeriesIndex` of
        :func:`medimg.scan`; at most ``workers + 2`` sources are in memory at once, and errors are collected.
    cache : path-like, optional
        Folder for a cache of embeddings. Its keys cover the contents of the files, the preprocessing, the
        reading policies, and the network with its weights, so that any change computes new embeddings. Bytes,
        open files and volumes are not cached. The folder does not identify patients; keep it as private as
        the images.
    batch_size : int
        Number of images per batch.
    workers : int, optional
        Number of threads that read sources, all cores by default; for a dataset number of processes, by
        default 0, which reads in threads of this process.
    reading : mapping, optional
        Policies and values of :func:`medimg.read` for sources; a dataset has its own.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    Embeddings
        Rows in the order of the sources.

    Raises
    ------
    PreprocessError
        If the dataset has another preprocessing, or `sources` is one source and not a collection.
    TrainingError
        If embeddings are not finite.
    MedimgError
        If an item of a dataset can't be read.

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
    check_model(model, error=PreprocessError)
    if isinstance(sources, ImageDataset):
        check_dataset("embed", model, sources, error=PreprocessError)
        features = item_features(
            model, sources, cache=cache, batch_size=size, workers=workers, progress=progress
        )
        return _dataset_embeddings(features, sources)
    check_source(sources, "embed")
    embedder = SourceEmbedder(model, sources, cache=cache, workers=workers, reading=reading)
    with feature_extractor(model) as network, closing(embedder.read(progress)) as read:
        try:
            found = list(_compute_rows(embedder, read, network, size))
        finally:
            embedder.flush()
    return _source_embeddings(found, feature_count(model))


def _dataset_embeddings(features: Features, dataset: ImageDataset) -> Embeddings:
    """Return the embeddings of a dataset with labels, patients and series."""
    counts = features.offsets.diff().numpy()
    items = np.repeat(np.arange(len(counts)), counts)
    patients, uids = dataset.patients, dataset.series_uids
    return Embeddings(
        array=features.embeddings.numpy(),
        items=items,
        labels=dataset.labels[items] if dataset.is_labeled else None,
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


def _source_embeddings(found: list[EmbeddedSource], features: int) -> Embeddings:
    """Return the embeddings of sources with UIDs, slices and errors."""
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
