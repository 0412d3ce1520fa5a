"""Predictions by an executor: its workers have the model, and get whole series."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from medimg.core.progress import progress_bar
from medimg.data.dataset import ImageDataset
from medimg.errors import TrainingError, also
from medimg.models._source_scores import score_series, score_slices
from medimg.models.module_mode import module_mode
from medimg.models.prediction.scored_source import ScoredSource, lose_source, resolve_sources
from medimg.models.prediction.sent_model import map_with_model, raise_lost_part
from medimg.models.test_time_augmentation import make_views

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Executor

    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.errors import ExecutorError
    from medimg.models.classifier import TransferClassifier
    from medimg.models.prediction.scored_source import PredictSource
    from medimg.models.test_time_augmentation import ViewChoice

__all__ = ["predict_items", "score_sources"]


def score_sources(
    model: TransferClassifier,
    sources: Sequence[PredictSource],
    executor: Executor,
    *,
    unit: str,
    size: int,
    on_error: str,
    workers: int | None,
    tta: ViewChoice,
    progress: Progress,
) -> Iterator[ScoredSource]:
    """Yield the results of each source, scored by itself, in the order of the sources."""
    work = partial(_score_source, unit=unit, size=size, on_error=on_error, tta=tta)
    lost = partial(_lose_source, on_error=on_error)
    results = map_with_model(model, work, enumerate(sources), workers, executor, lost=lost)
    with closing(results):
        bar = progress_bar(results, desc="predicting", unit="source", progress=progress, total=len(sources))
        for scored in bar:
            yield from scored


def _score_source(
    model: TransferClassifier,
    task: tuple[int, PredictSource],
    *,
    unit: str,
    size: int,
    on_error: str,
    tta: ViewChoice,
) -> list[ScoredSource]:
    number, source = task
    score = score_slices if unit == "image" else score_series
    device = next(model.parameters()).device
    with module_mode(model, training=False), torch.inference_mode():
        read = resolve_sources(model, [source], on_error, first=number)
        return list(score(model, read, device, size, make_views(tta, model)))


def _lose_source(
    task: tuple[int, PredictSource], error: ExecutorError, *, on_error: str
) -> list[ScoredSource]:
    number, source = task
    return [lose_source(source, error, number, on_error)]


def predict_items(
    model: TransferClassifier,
    dataset: LabeledDataset,
    executor: Executor,
    *,
    size: int,
    workers: int | None,
    tta: ViewChoice,
    progress: Progress,
) -> NDArray[np.float64]:
    """Return the probabilities (n, K) of the items of a dataset, whole series at once."""
    if not isinstance(dataset, ImageDataset):
        raise also(TrainingError, TypeError)(
            f"executor= takes an ImageDataset, whose series can be sent; found a {type(dataset).__name__}: "
            "leave executor out, and pass workers= processes"
        )
    parts = dataset.split_by_source(size)
    work = partial(_predict_part, size=size, tta=tta)
    sent = (dataset.extract(part) for part in parts)
    results = map_with_model(model, work, sent, workers, executor, lost=raise_lost_part)
    found = np.empty((len(dataset), len(model.classes)))
    with closing(results):
        bar = progress_bar(results, desc="predicting", unit="part", progress=progress, total=len(parts))
        for part, rows in zip(parts, bar, strict=True):
            found[part] = rows
    return found


def _predict_part(
    model: TransferClassifier, part: ImageDataset, *, size: int, tta: ViewChoice
) -> NDArray[np.float64]:
    rows: Any = model.predict_proba(part, batch_size=size, tta=tta, progress=False)
    return cast("NDArray[np.float64]", rows)
