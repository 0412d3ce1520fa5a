"""Predictions by an executor: its workers have the model, and get whole series."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, cast

import numpy as np
import torch

from medimg.core.progress import progress_bar
from medimg.data.dataset import ImageDataset
from medimg.errors import ExecutorError, TrainingError, also
from medimg.models._source_scores import score_series, score_slices
from medimg.models.module_mode import module_mode
from medimg.models.prediction.scored_source import ScoredSource, lose_source, resolve_sources
from medimg.models.prediction.sent_model import ModelSender, map_with_model
from medimg.models.test_time_augmentation import make_views
from medimg.preprocessing.torch_threads import on_one_core

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Executor
    from pathlib import Path

    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.models.prediction.scored_source import PredictSource
    from medimg.models.test_time_augmentation import ViewChoice

__all__ = ["predict_items", "raise_lost_part", "score_sources", "send_classifier"]

_CPU: Final = torch.device("cpu")


def send_classifier(model: TransferClassifier) -> ModelSender[TransferClassifier]:
    """Return how a model gets to workers: as a checkpoint, and to the device of the model if there is one."""
    device = next(model.parameters()).device.type
    load = partial(_load_classifier, type(model).load, device)
    return ModelSender("model.safetensors", model.save, load, device, on_one_core)


def _load_classifier(
    load: Callable[[Path], TransferClassifier], device: str, path: Path
) -> TransferClassifier:
    return load(path).to(_find_device(device))


def _find_device(name: str) -> torch.device:
    """Return the device of the caller's model if this machine has it, else the CPU."""
    device = torch.device(name)
    found = getattr(torch, device.type, None)
    return torch.device(device.type) if device.type == "cpu" or (found and found.is_available()) else _CPU


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
    lost = partial(lose_source, on_error=on_error)
    results = map_with_model(send_classifier(model), work, enumerate(sources), workers, executor, lost=lost)
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
    results = map_with_model(send_classifier(model), work, sent, workers, executor, lost=raise_lost_part)
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


def raise_lost_part(part: ImageDataset, error: ExecutorError) -> NoReturn:
    """Raise the error of a part of a dataset, whose items must all be there."""
    names = tuple(dict.fromkeys(part.sources))
    more = f" or one of {len(names) - 1} more" if len(names) > 1 else ""
    raise ExecutorError(f"{names[0]}{more}: {error}") from error
