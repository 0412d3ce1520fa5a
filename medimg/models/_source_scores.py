"""Reading of image sources, and their scores per series or per slice."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

import numpy as np
import torch

from medimg.core.volume import Volume
from medimg.data.image_loader import ResolvedSource
from medimg.errors import MedimgError, MedimgWarning
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

    from medimg.interop.image_object import AnyImage
    from medimg.models.classifier import TransferClassifier
    from medimg.models.test_time_augmentation import View
    from medimg.preprocessing.render import Rendered

__all__ = [
    "PredictSource",
    "ScoredSource",
    "embed_bag",
    "mean_probabilities",
    "resolve_sources",
    "score_series",
    "score_slices",
]

#: One image or series to predict on.
PredictSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Series | Volume | AnyImage"
)


@dataclass(slots=True, eq=False)
class ScoredSource:
    """
    Results of one source: per image UID and slice, and in parts probabilities (n, K) and OOD scores (n,).

    There is one row of probabilities per image, or one for the whole source; `weights` (images,) are the
    contributions of the images; `unlike` has the out-of-distribution facts by name; `error` is "" if none.
    """

    name: str
    series_uid: str = ""
    uids: tuple[str, ...] = ()
    slices: tuple[int, ...] = ()
    error: str = ""
    proba: list[NDArray[np.float64]] = field(default_factory=list)
    weights: NDArray[np.float64] | None = None
    ood: list[NDArray[np.float64]] = field(default_factory=list)
    unlike: dict[str, str] = field(default_factory=dict)
    _embeddings: list[Tensor] = field(default_factory=list)

    @property
    def is_complete(self) -> bool:
        """Whether every image has its probabilities."""
        return sum(map(len, self.proba)) == len(self.slices)

    def add(self, embeddings: Tensor, proba: NDArray[np.float64], ood: NDArray[np.float64] | None) -> None:
        """Add the results of the next images."""
        self._embeddings.append(embeddings)
        self.proba.append(proba)
        if ood is not None:
            self.ood.append(ood)

    def with_weights(self, model: TransferClassifier) -> ScoredSource:
        """Compute the weights of the images, and release their embeddings."""
        if self._embeddings:
            weights = slice_weights(torch.cat(self._embeddings), model.pool, model.attention)
            self.weights = (weights.double() / weights.double().sum()).cpu().numpy()
        self._embeddings = []
        return self


def resolve_sources(
    model: TransferClassifier, sources: Iterable[PredictSource], on_error: str
) -> Iterator[tuple[ScoredSource, Tensor]]:
    """
    Yield the series of sources one after another with their images (N, 1 or 3, H, W), not normalized.

    With ``on_error="collect"`` a source or series that can't be read has an error and no images.
    """
    for number, source in enumerate(sources):
        name = _source_name(source, number)
        try:
            images, lost = ResolvedSource.resolve_all(source)
        except MedimgError as error:
            yield _fail(name, error, number, on_error)
            continue
        for image in images:
            if len(images) > 1 and isinstance(image.image, Series):
                name = image.image.path
            try:
                rendered, unlike = _render_source(model, image)
            except MedimgError as error:
                yield _fail(name, error, number, on_error)
                continue
            scored = ScoredSource(
                name, rendered.series_uid, rendered.sop_instance_uids, rendered.slices, unlike=unlike
            )
            yield scored, rendered.planes
            del rendered  # free its images before the next ones are rendered
        yield from _report_lost(_source_name(source, number), lost, on_error)


def _report_lost(
    name: str, lost: list[tuple[str, MedimgError]], on_error: str
) -> Iterator[tuple[ScoredSource, Tensor]]:
    """Yield the files of a folder that can't be read, or warn of them, as reading a series does."""
    if on_error == "collect":
        yield from (_fail(path, error, 0, on_error) for path, error in lost)
    elif lost:
        warnings.warn(
            f"{len(lost)} unreadable file(s) of {name} skipped, the first: {lost[0][1]}",
            MedimgWarning,
            stacklevel=2,
        )


def _fail(name: str, error: MedimgError, number: int, on_error: str) -> tuple[ScoredSource, Tensor]:
    """Return a source with its error and no images; raise the error unless errors are collected."""
    if on_error == "raise":
        error.add_note(f"while predicting on source {number}, counted from 0")
        raise error
    return ScoredSource(name, error=f"{type(error).__name__}: {error}"), torch.empty(0)


def _render_source(model: TransferClassifier, source: ResolvedSource) -> tuple[Rendered, dict[str, str]]:
    """Return the images of a source, and its out-of-distribution facts."""
    ranges = model.training_ranges
    facts = None if ranges is None else ImageFacts.of(source.image, tags=bool(ranges.body_parts))
    unlike = {} if ranges is None or facts is None else ranges.unlike(facts)
    if isinstance(source.image, Volume):
        return model.preprocess.render(source.image), unlike
    return render_series(model.preprocess, source.image, Policies(), None, source.finish), unlike


def _source_name(source: PredictSource, number: int) -> str:
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    if isinstance(source, Series):
        return source.path
    if isinstance(source, Volume):
        return f"volume {number}"
    return f"<bytes {number}>" if is_buffer(source) else f"source {number}"


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
            yield pending.popleft().with_weights(model)
        del planes, rest
    if parts:
        _score_batch(model, parts, device, views)
    yield from (scored.with_weights(model) for scored in pending)


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
