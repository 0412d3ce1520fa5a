"""Embeddings computed by an executor: its workers have the network, and get whole series."""

from __future__ import annotations

from collections.abc import Sized
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medimg.core.progress import progress_bar
from medimg.data.items import make_policies
from medimg.data.read_tensors import check_sources
from medimg.features._source_embedder import EmbeddedSource, SourceEmbedder, compute_rows
from medimg.features.dataset_features import Features, item_features, join_items
from medimg.features.extractor import feature_extractor
from medimg.models.backbones.heads import feature_count
from medimg.models.prediction.executor_scores import raise_lost_part, send_classifier
from medimg.models.prediction.sent_model import map_with_model

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Executor

    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.core.progress import Progress
    from medimg.core.volume import Volume
    from medimg.data.dataset import ImageDataset
    from medimg.errors import ExecutorError
    from medimg.io.read import Source
    from medimg.models.classifier import TransferClassifier

__all__ = ["embed_items", "embed_sources"]


def embed_sources(
    model: TransferClassifier,
    sources: Iterable[Source | Volume],
    executor: Executor,
    *,
    cache: str | os.PathLike[str] | None,
    size: int,
    workers: int | None,
    reading: Mapping[str, str] | None,
    progress: Progress,
) -> list[EmbeddedSource]:
    """Return the embeddings of sources, each computed by itself; their errors are collected."""
    given = check_sources(sources, model.preprocess, workers, "collect")
    make_policies(reading)
    work = partial(_embed_alone, cache=cache, reading=reading, size=size)
    total = len(given) if isinstance(given, Sized) else None
    results = map_with_model(send_classifier(model), work, given, workers, executor, lost=_lose_source)
    with closing(results):
        return list(progress_bar(results, desc="embedding", unit="source", progress=progress, total=total))


def _embed_alone(
    model: TransferClassifier,
    source: Any,
    *,
    cache: str | os.PathLike[str] | None,
    reading: Mapping[str, str] | None,
    size: int,
) -> EmbeddedSource:
    """Return the embeddings of one source, computed by itself."""
    embedder = SourceEmbedder(model, [source], cache=cache, workers=1, reading=reading)
    with feature_extractor(model) as network, closing(embedder.read(progress=False)) as read:
        (found,) = compute_rows(embedder, read, network, size)
        embedder.flush()
    return found


def _lose_source(source: object, error: ExecutorError) -> EmbeddedSource:
    return EmbeddedSource(error=error)


def embed_items(
    model: TransferClassifier,
    dataset: ImageDataset,
    executor: Executor,
    *,
    cache: str | os.PathLike[str] | None,
    size: int,
    workers: int | None,
    progress: Progress,
) -> Features:
    """Compute the embeddings of the items of a dataset by an executor, whole series at once."""
    parts = list(dataset.split_by_source(size))
    work = partial(_embed_part, cache=cache, size=size)
    sent = (dataset.extract(part) for part in parts)
    results = map_with_model(send_classifier(model), work, sent, workers, executor, lost=raise_lost_part)
    bar = progress_bar(results, desc="embedding", unit="part", progress=progress, total=len(parts))
    found: dict[int, Tensor] = {}
    with closing(results):
        for part, (rows, lengths) in zip(parts, bar, strict=True):
            pieces = torch.split(torch.from_numpy(np.require(rows, requirements="W")), lengths)
            found.update(zip(part, pieces, strict=True))
    return join_items(found, len(dataset), feature_count(model))


def _embed_part(
    model: TransferClassifier, part: ImageDataset, *, cache: str | os.PathLike[str] | None, size: int
) -> tuple[NDArray[np.float32], list[int]]:
    """Return the embeddings (n, F) of the images of a part of a dataset, and the number of each item."""
    features = item_features(model, part, cache=cache, batch_size=size, workers=0, progress=False)
    return features.embeddings.numpy(), features.offsets.diff().tolist()
