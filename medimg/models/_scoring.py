"""Raw sources: read, and scored as a whole or slice by slice."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import torch

from medimg.core.volume import Volume
from medimg.data.image_loader import ResolvedSource
from medimg.errors import MedimgError
from medimg.io.series import Policies, Series
from medimg.io.sources import is_buffer
from medimg.models.backbones.heads import head_logits
from medimg.models.pooling import pool_embeddings, slice_weights
from medimg.models.probabilities import model_probabilities
from medimg.models.training_distribution import ImageFacts
from medimg.preprocessing.render import render_series

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from medimg.models.classifier import TransferClassifier
    from medimg.preprocessing.render import Rendered

__all__ = [
    "PredictSource",
    "ScoredSource",
    "bag_embeddings",
    "by_series",
    "by_slice",
    "resolve_sources",
    "vectors_probabilities",
]

#: One image or series to predict on.
PredictSource: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Series | Volume
)


@dataclass(slots=True, eq=False)
class ScoredSource:
    """
    One source and what was found of it.

    Attributes
    ----------
    name, series_uid : str
        What it is called, and its series.
    uids, slices : tuple
        SOP Instance UID and index in the volume of each of its pictures.
    error : str
        Why it can't be read; "" where it can.
    proba : list of numpy.ndarray
        Probabilities (n, K), in parts: one row for each picture, or one for all.
    weights : numpy.ndarray or None
        (pictures,): how much each counts in the series.
    outlying : list of numpy.ndarray
        In the same parts as the probabilities: how unusual each is, where that can be told.
    unlike : dict
        In what the source is unlike the training data, and what it has instead.
    """

    name: str
    series_uid: str = ""
    uids: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()
    error: str = ""
    proba: list[NDArray[np.float64]] = field(default_factory=list)
    weights: NDArray[np.float64] | None = None
    outlying: list[NDArray[np.float64]] = field(default_factory=list)
    unlike: dict[str, str] = field(default_factory=dict)
    _embeddings: list[Tensor] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every picture has its probabilities."""
        return sum(map(len, self.proba)) == len(self.slices)

    def add(
        self, embeddings: Tensor, proba: NDArray[np.float64], outlying: NDArray[np.float64] | None
    ) -> None:
        """Take the results of the next pictures."""
        self._embeddings.append(embeddings)
        self.proba.append(proba)
        if outlying is not None:
            self.outlying.append(outlying)

    def weigh(self, model: TransferClassifier) -> None:
        """Say how much each picture counts, and let the embeddings go."""
        if self._embeddings:
            weights = slice_weights(torch.cat(self._embeddings), model.pool, model.attention)
            self.weights = (weights.double() / weights.double().sum()).cpu().numpy()
        self._embeddings = []


def resolve_sources(
    model: TransferClassifier, sources: Iterable[PredictSource], on_error: str
) -> Iterator[tuple[ScoredSource, Tensor]]:
    """
    Read sources one after the other, each with its pictures (N, 1 or 3, H, W), not normalized yet.

    Raises
    ------
    MedimgError
        If one can't be read, unless ``on_error="collect"``: then there are no pictures of it.
    """
    for number, source in enumerate(sources):
        name = _name(source, number)
        try:
            rendered, unlike = _rendered(model, source)
        except MedimgError as error:
            if on_error == "raise":
                error.add_note(f"while predicting on source {number}, counted from 0")
                raise
            yield ScoredSource(name, error=f"{type(error).__name__}: {error}"), torch.empty(0)
            continue
        scored = ScoredSource(
            name, rendered.series_uid, rendered.sop_instance_uids, rendered.slices, unlike=unlike
        )
        yield scored, rendered.planes
        del rendered  # its pictures are gone before the next are made


def _rendered(model: TransferClassifier, source: PredictSource) -> tuple[Rendered, dict[str, str]]:
    """Return pictures, and in what their source is unlike the training data."""
    ranges = model.training_ranges
    if ranges is None:
        return model.preprocess.render(source), {}
    opened = ResolvedSource.resolve(source)
    unlike = ranges.unlike(ImageFacts.of(opened.image, tags=bool(ranges.body_parts)))
    if isinstance(opened.image, Volume):
        return model.preprocess.render(opened.image), unlike
    return render_series(model.preprocess, opened.image, Policies(), None, opened.finish), unlike


def _name(source: PredictSource, number: int) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Series):
        return source.path
    if isinstance(source, Volume):
        return f"volume {number}"
    return f"<bytes {number}>" if is_buffer(source) else f"source {number}"


def by_series(
    model: TransferClassifier,
    sources: Iterable[tuple[ScoredSource, Tensor]],
    device: torch.device,
    batch_size: int,
) -> Iterator[ScoredSource]:
    """Score each source as one."""
    for scored, planes in sources:
        if not scored.error:
            parts = (model.preprocess.normalize(part) for part in torch.split(planes, batch_size))
            embeddings = bag_embeddings(model, parts, device)
            scored.proba = [vectors_probabilities(model, embeddings)]
            outlying = _outlying(model, embeddings)
            if outlying is not None:
                scored.outlying = [outlying.mean(keepdims=True)]
        yield scored


def bag_embeddings(model: TransferClassifier, parts: Iterable[Tensor], device: torch.device) -> Tensor:
    """Pass the slices of one series in parts (n, 3, H, W) that fit into memory, then pool: (1 or N, F)."""
    embeddings = torch.cat([model.embed(part.to(device)) for part in parts])
    if model.pool == "none":
        return embeddings
    return pool_embeddings(embeddings[None], None, model.pool, model.attention)


def vectors_probabilities(model: TransferClassifier, vectors: Tensor) -> NDArray[np.float64]:
    """Return (1, K): without pooling, the mean of the slices' probabilities stands for the series."""
    rows = model_probabilities(model, head_logits(model.head, vectors))
    mean: NDArray[np.float64] = rows.mean(axis=0, keepdims=True)
    return mean


def _outlying(model: TransferClassifier, vectors: Tensor) -> NDArray[np.float64] | None:
    """Return how unusual embeddings are, if it is known what is usual."""
    outliers = model.calibration.outliers if model.calibration is not None else None
    return None if outliers is None else outliers.percentiles(vectors.float().cpu().numpy())


def by_slice(
    model: TransferClassifier,
    sources: Iterable[tuple[ScoredSource, Tensor]],
    device: torch.device,
    batch_size: int,
) -> Iterator[ScoredSource]:
    """Score each slice as a bag of its own; batches reach across sources, so that few pictures pass alone."""
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
                _score(model, parts, device)
                parts, room = [], batch_size
        while pending and pending[0].is_complete:
            yield _weighed(model, pending.popleft())
        del planes, rest
    if parts:
        _score(model, parts, device)
    yield from (_weighed(model, scored) for scored in pending)


def _weighed(model: TransferClassifier, scored: ScoredSource) -> ScoredSource:
    scored.weigh(model)
    return scored


def _score(model: TransferClassifier, parts: list[tuple[ScoredSource, Tensor]], device: torch.device) -> None:
    images = torch.cat([model.preprocess.normalize(part) for _, part in parts]).to(device)
    embeddings = model.embed(images)
    proba = model_probabilities(model, head_logits(model.head, embeddings))
    outlying = _outlying(model, embeddings)
    start = 0
    for scored, part in parts:
        end = start + len(part)
        some = None if outlying is None else outlying[start:end]
        scored.add(embeddings[start:end], proba[start:end], some)
        start = end
