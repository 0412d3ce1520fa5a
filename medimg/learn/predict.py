"""Prediction: on data sets, and on raw images by the model's own recipe."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from medimg.core.volume import Volume
from medimg.errors import PreprocessError, TrainingError
from medimg.io.series import Series
from medimg.io.sources import is_buffer
from medimg.learn.checks import whole_number
from medimg.learn.loaders import evaluation_loader
from medimg.learn.scores import model_probabilities
from medimg.learn.scoring import (
    PredictSource,
    bag_embeddings,
    by_series,
    by_slice,
    opened_sources,
    vectors_probabilities,
)
from medimg.learn.tables import PredictionTable

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.learn.classifier import TransferClassifier
    from medimg.learn.loaders import LabeledImages

__all__ = ["PredictSource", "evaluating", "predict", "predict_proba"]


def predict_proba(
    model: TransferClassifier,
    dataset: LabeledImages,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = False,
) -> NDArray[np.float64]:
    """Predict on every item of a data set; see :meth:`medimg.TransferClassifier.predict_proba`."""
    from tqdm import tqdm

    if not hasattr(dataset, "preprocess"):
        raise TrainingError(
            f"predict_proba takes an ImageDataset; found a {type(dataset).__name__}: images in files are for "
            "model.predict(sources)"
        )
    if dataset.preprocess.fingerprint != model.preprocess.fingerprint:
        raise PreprocessError(
            f"the data set is made by recipe {dataset.preprocess.fingerprint}, the model was trained on "
            f"{model.preprocess.fingerprint}: use dataset.with_preprocess(model.preprocess)"
        )
    size, processes = _checked_size(batch_size), max(0, whole_number("num_workers", num_workers))
    check_calibration(model)
    bags = dataset.unit == "series"
    loader = evaluation_loader(dataset, batch_size=1 if bags else size, num_workers=processes)
    with evaluating(model) as device:
        rows = []
        for batch in tqdm(loader, desc="predicting", unit="batch", disable=not progress):
            if bags:
                parts = torch.split(batch.images[0], size)
                rows.append(vectors_probabilities(model, bag_embeddings(model, parts, device)))
            else:
                rows.append(model_probabilities(model, model(batch.images.to(device))))
    return np.concatenate(rows)


def predict(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    *,
    unit: str = "series",
    batch_size: int = 32,
    on_error: str = "raise",
    provenance: bool = False,
    progress: bool = False,
) -> pd.DataFrame:
    """Predict on raw images; see :meth:`medimg.TransferClassifier.predict`."""
    from tqdm import tqdm

    if unit not in ("series", "slice"):
        raise TrainingError(f'unit is "series" or "slice"; found {unit!r}')
    if on_error not in ("raise", "collect"):
        raise TrainingError(f'on_error is "raise" or "collect"; found {on_error!r}')
    size = _checked_size(batch_size)
    check_calibration(model)
    given = tqdm(_as_list(sources), desc="predicting", unit="source", disable=not progress)
    score = by_slice if unit == "slice" else by_series
    with evaluating(model) as device:
        found = score(model, opened_sources(model, given, on_error), device, size)
        rows = PredictionTable(model, unit, collects=on_error == "collect", provenance=provenance)
        return rows.frame(found)


def check_calibration(model: TransferClassifier) -> None:
    """
    Refuse a calibration that was fitted to other parameters.

    Raises
    ------
    TrainingError
        It says what to do.
    """
    if model.calibration is not None:
        model.calibration.check_model(model)


@contextmanager
def evaluating(model: TransferClassifier) -> Iterator[torch.device]:
    """Put a model into evaluation mode without gradients, give its device, and set the mode back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module, mode in modes.items():
            module.training = mode


def _checked_size(batch_size: int) -> int:
    size = whole_number("batch_size", batch_size)
    if size < 1:
        raise TrainingError(f"batch_size is a positive number; found {batch_size!r}")
    return size


def _as_list(sources: PredictSource | Iterable[PredictSource]) -> list[PredictSource]:
    if isinstance(sources, str | os.PathLike | Series | Volume) or is_buffer(sources):
        return [cast("PredictSource", sources)]
    given: object = sources
    if not isinstance(given, Iterable):
        raise TrainingError(
            f"can't predict on a {type(given).__name__}; expected a path, bytes, a file object, a Series, "
            "a Volume, or several"
        )
    return list(cast("Iterable[PredictSource]", sources))
