"""Scores of image sources per series or per slice."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import torch

from medimg.models.backbones.heads import head_logits
from medimg.models.pooling import pool_embeddings, slice_weights
from medimg.models.probabilities import model_probabilities

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier
    from medimg.models.prediction.scored_source import ScoredSource
    from medimg.models.test_time_augmentation import View

__all__ = ["embed_bag", "mean_probabilities", "score_series", "score_slices"]


def score_series(
    model: TransferClassifier,
    sources: Iterable[tuple[ScoredSource, Tensor]],
    device: torch.device,
    batch_size: int,
    views: Sequence[View],
) -> Iterator[ScoredSource]:
    """Score each source as a whole, by the mean over views, the first of which is the image itself."""
    for scored, planes in sources:
        if not scored.error:
            pieces = torch.split(planes, batch_size)
            several = [
                embed_bag(model, (view(model.preprocess.normalize(part)) for part in pieces), device)
                for view in views
            ]
            scored.proba = [np.mean([mean_probabilities(model, one) for one in several], axis=0)]
            ood = _ood_percentiles(model, several[0])
            if ood is not None:
                scored.ood = [ood.mean(keepdims=True)]
        yield scored


def embed_bag(model: TransferClassifier, parts: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return the pooled embedding (1, F) of a series in parts (n, C, H, W); without pooling (N, F)."""
    embeddings = torch.cat([model.embed(part.to(device)) for part in parts])
    if model.pool == "none":
        return embeddings
    return pool_embeddings(embeddings[None], None, model.pool, model.attention)


def mean_probabilities(model: TransferClassifier, embeddings: Tensor) -> NDArray[np.float64]:
    """Return the mean (1, K) of the probabilities of embeddings (n, F)."""
    rows = model_probabilities(model, head_logits(model.head, embeddings))
    mean: NDArray[np.float64] = rows.mean(axis=0, keepdims=True)
    return mean


def _ood_percentiles(model: TransferClassifier, embeddings: Tensor) -> NDArray[np.float64] | None:
    """Return the out-of-distribution scores (n,) of embeddings (n, F); None if the model has no detector."""
    outliers = model.calibration.outliers if model.calibration is not None else None
    return None if outliers is None else outliers.percentiles(embeddings.float().cpu().numpy())


def score_slices(
    model: TransferClassifier,
    sources: Iterable[tuple[ScoredSource, Tensor]],
    device: torch.device,
    batch_size: int,
    views: Sequence[View],
) -> Iterator[ScoredSource]:
    """Score each slice as a bag of its own; batches extend across sources, so that few images pass alone."""
    pending: deque[ScoredSource] = deque()
    parts: list[tuple[ScoredSource, Tensor]] = []
    room = batch_size
    for scored, planes in sources:
        pending.append(scored)
        rest = planes
        while len(rest):
            parts.append((scored, rest[:room]))
            rest, room = rest[room:], room - len(parts[-1][1])
            if room == 0:
                _score_batch(model, parts, device, views)
                parts, room = [], batch_size
        while pending and pending[0].is_complete:
            yield _set_weights(pending.popleft(), model)
        del planes, rest
    if parts:
        _score_batch(model, parts, device, views)
    yield from (_set_weights(scored, model) for scored in pending)


def _score_batch(
    model: TransferClassifier,
    parts: list[tuple[ScoredSource, Tensor]],
    device: torch.device,
    views: Sequence[View],
) -> None:
    """Add the results of a batch to its sources."""
    images = torch.cat([model.preprocess.normalize(part) for _, part in parts]).to(device)
    several = [model.embed(view(images)) for view in views]
    proba = np.mean([model_probabilities(model, head_logits(model.head, one)) for one in several], axis=0)
    embeddings = several[0]
    ood = _ood_percentiles(model, embeddings)
    start = 0
    for scored, part in parts:
        end = start + len(part)
        some = None if ood is None else ood[start:end]
        scored.add(embeddings[start:end], proba[start:end], some)
        start = end


def _set_weights(scored: ScoredSource, model: TransferClassifier) -> ScoredSource:
    """Compute the weights of the images of a source, and release their embeddings."""
    if scored.embeddings:
        weights = slice_weights(torch.cat(scored.embeddings), model.pool, model.attention)
        scored.weights = (weights.double() / weights.double().sum()).cpu().numpy()
    scored.embeddings = []
    return scored
