"""Prediction on datasets, and on image sources with the model's preprocessing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import torch

from medimg._validation import check_batch_size, check_choice, check_item_unit, check_processes
from medimg.core.progress import Progress, progress_bar
from medimg.data.dataloader import make_evaluation_loader, worker_errors
from medimg.errors import PreprocessError, TrainingError
from medimg.executors.executor_map import check_executor
from medimg.models._source_scores import embed_bag, mean_probabilities, score_series, score_slices
from medimg.models.data_checks import check_dataset
from medimg.models.digest import members_digest, model_digest, parameters_digest
from medimg.models.input_checks import check_floating
from medimg.models.module_mode import module_mode
from medimg.models.prediction.executor_scores import predict_items, score_sources
from medimg.models.prediction.prediction_table import PredictionTable
from medimg.models.prediction.scored_source import list_sources, resolve_sources
from medimg.models.probabilities import model_probabilities
from medimg.models.test_time_augmentation import make_views
from medimg.models.training_images import note_renderer

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pandas as pd
    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.models.prediction.scored_source import PredictSource
    from medimg.models.test_time_augmentation import ViewChoice

__all__ = ["check_calibration", "predict", "predict_proba"]


def predict_proba(
    model: TransferClassifier,
    dataset: LabeledDataset,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    executor: Executor | None = None,
    tta: ViewChoice = None,
    progress: Progress = "auto",
) -> NDArray[np.float64]:
    """Predict on every item of a dataset; see :meth:`medimg.TransferClassifier.predict_proba`."""
    check_dataset("predict_proba", model, dataset, preprocess_error=PreprocessError)
    size = check_batch_size(batch_size)
    check_calibration(model)
    note_renderer(model)
    views = make_views(tta, model)
    check_executor(executor)
    if executor is not None:
        return predict_items(model, dataset, executor, size=size, workers=workers, tta=tta, progress=progress)
    processes = check_processes(workers)
    bags = dataset.unit == "series"
    loader = make_evaluation_loader(dataset, batch_size=1 if bags else size, workers=processes)
    device = next(model.parameters()).device
    with module_mode(model, training=False), torch.inference_mode(), worker_errors():
        rows = []
        for batch in progress_bar(loader, desc="predicting", unit="batch", progress=progress):
            if bags:
                parts = torch.split(batch.images[0], size)
                several = [embed_bag(model, map(view, parts), device) for view in views]
                rows.append(np.mean([mean_probabilities(model, one) for one in several], axis=0))
            else:
                images = batch.images.to(device)
                logits = [model(view(images)) for view in views]
                rows.append(np.mean([model_probabilities(model, one) for one in logits], axis=0))
    return np.concatenate(rows)


def predict(
    model: TransferClassifier,
    sources: PredictSource | Iterable[PredictSource],
    *,
    unit: str = "series",
    batch_size: int = 32,
    on_error: str = "raise",
    provenance: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    tta: ViewChoice = None,
    progress: Progress = "auto",
) -> pd.DataFrame:
    """Predict on image sources; see :meth:`medimg.TransferClassifier.predict`."""
    unit = check_item_unit(unit, error=TrainingError)
    check_choice("on_error", on_error, ("raise", "collect"))
    size = check_batch_size(batch_size)
    check_floating(model)
    check_calibration(model)
    note_renderer(model)
    views = make_views(tta, model)
    check_executor(executor)
    given = list_sources(sources)
    device = next(model.parameters()).device
    with module_mode(model, training=False), torch.inference_mode():
        if executor is not None:
            scores = score_sources(
                model, given, executor, unit=unit, size=size, on_error=on_error, workers=workers, tta=tta,
                progress=progress,
            )  # fmt: skip
        else:
            bar = progress_bar(given, desc="predicting", unit="source", progress=progress)
            score = score_slices if unit == "image" else score_series
            scores = score(model, resolve_sources(model, bar, on_error), device, size, views)
        calibration, collects = model.calibration, on_error == "collect"
        ood = calibration is not None and calibration.outliers is not None
        digest = model_digest(model)
        table = PredictionTable(model, digest, unit, ood=ood, collects=collects, provenance=provenance)
        return table.to_pandas(scores)


def check_calibration(model: TransferClassifier) -> None:
    """Refuse a model whose parameters, or calibrations of members, were changed after it was calibrated."""
    for member in getattr(model, "members", ()):
        check_calibration(member)
    found = model.calibration
    if found is None:
        return
    changed = ""
    if parameters_digest(model) != found.parameters_sha256:
        changed = "the model's parameters or their type"
    elif found.members_sha256 and members_digest(model) != found.members_sha256:
        changed = "calibrations of the ensemble's members"
    if changed:
        raise TrainingError(
            f"{changed} were changed after calibration, so the calibration no longer holds: use "
            "medimg.calibrate(model, val) again, or set model.calibration = None"
        )
