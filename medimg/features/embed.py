"""Embeddings of datasets and of many image sources."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medimg._public import set_module
from medimg._validation import check_batch_size
from medimg.core.progress import Progress
from medimg.core.volume import Volume
from medimg.data.dataset import ImageDataset
from medimg.errors import MedimgError, PreprocessError
from medimg.executors.executor_map import check_executor
from medimg.features._executor_embedding import embed_items, embed_sources
from medimg.features._source_embedder import EmbeddedSource, SourceEmbedder, compute_rows
from medimg.features.dataset_features import Features, item_features
from medimg.features.extractor import feature_extractor
from medimg.models.backbones.heads import feature_count
from medimg.models.data_checks import check_dataset, check_model, check_source

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Executor

    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.errors import MedimgError
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["Embeddings", "embed"]


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
    executor: Executor | None = None,
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
        default 0, which reads in threads of this process; or number of sources that an executor works on at
        once.
    executor : concurrent.futures.Executor, optional
        Executor whose workers read the images and run the network, each source by itself; see
        :doc:`/scale`. They get the model once, and use the cache if they see its folder.
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
    ExecutorError
        If the executor can't run tasks, or an item of a dataset takes its workers down; of other sources such
        errors are collected.
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
    check_executor(executor)
    if isinstance(sources, ImageDataset):
        check_dataset("embed", model, sources, error=PreprocessError)
        if executor is not None:
            features = embed_items(
                model, sources, executor, cache=cache, size=size, workers=workers, progress=progress
            )
        else:
            features = item_features(
                model, sources, cache=cache, batch_size=size, workers=workers, progress=progress
            )
        return _dataset_embeddings(features, sources)
    check_source(sources, "embed")
    if executor is not None:
        found = embed_sources(
            model,
            sources,
            executor,
            cache=cache,
            size=size,
            workers=workers,
            reading=reading,
            progress=progress,
        )
        return _source_embeddings(found, feature_count(model))
    embedder = SourceEmbedder(model, sources, cache=cache, workers=workers, reading=reading)
    with feature_extractor(model) as network, closing(embedder.read(progress)) as read:
        try:
            found = list(compute_rows(embedder, read, network, size))
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
