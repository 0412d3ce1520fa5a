"""Prediction on datasets, and on image sources with the model's preprocessing."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import torch

from medimg import __version__
from medimg._validation import check_batch_size, check_choice, check_item_unit, check_processes
from medimg.core.progress import Progress, progress_bar
from medimg.data.dataloader import make_evaluation_loader, worker_errors
from medimg.errors import MedimgWarning, PreprocessError, TrainingError
from medimg.io.sources import is_one_source
from medimg.models._source_scores import (
    PredictSource,
    embed_bag,
    mean_probabilities,
    resolve_sources,
    score_series,
    score_slices,
)
from medimg.models.data_checks import check_dataset, check_source
from medimg.models.digest import SHOWN, members_digest, model_digest, parameters_digest
from medimg.models.input_checks import check_floating
from medimg.models.module_mode import module_mode
from medimg.models.probabilities import model_probabilities
from medimg.models.test_time_augmentation import make_views
from medimg.models.training_images import note_renderer

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.data.protocols import LabeledDataset
    from medimg.models._source_scores import ScoredSource
    from medimg.models.classifier import TransferClassifier
    from medimg.models.test_time_augmentation import ViewChoice

__all__ = ["PredictionTable", "predict", "predict_proba"]

_EXAMPLES: Final = 3


class PredictionTable:
    """A table with a row per source or slice, and per source that can't be read if errors are collected."""

    def __init__(self, model: TransferClassifier, unit: str, *, collects: bool, provenance: bool) -> None:
        self._model = model
        self._unit = unit
        self._collects = collects
        self._provenance = provenance
        self._sources = 0
        self._undecided = 0
        self._unlike: dict[str, list[str]] = {}

    def to_pandas(self, sources: Iterable[ScoredSource]) -> pd.DataFrame:
        """Return the table; warn of out-of-distribution images, and of those outside the calibration."""
        import pandas as pd

        model = self._model
        attrs = {
            "model": model_digest(model)[:SHOWN],
            "recipe": model.preprocess.fingerprint,
            "medimg": __version__,
        }
        rows = [row for scored in sources for row in self._rows(scored)]
        columns = self._columns()
        if self._provenance:
            columns += ["model", "recipe"]
            rows = [row | {name: attrs[name] for name in ("model", "recipe")} for row in rows]
        frame = pd.DataFrame(rows, columns=columns)
        if self._unit == "image" and self._collects:
            # integers, some of which are missing
            frame["slice"] = frame["slice"].astype("Int64")
        frame.attrs |= attrs
        self._warn()
        return frame

    def _columns(self) -> list[str]:
        model, calibration = self._model, self._model.calibration
        by_slice = self._unit == "image"
        columns = {
            "source": True,
            "series_uid": True,
            "sop_instance_uid": by_slice,
            "slice": by_slice,
            "predicted": True,
            "flagged": calibration is not None and self._has_flags(),
            "set": calibration is not None and calibration.coverage is not None,
            **{f"p_{name}": True for name in model.classes},
            "weight": by_slice,
            "ood": calibration is not None and calibration.outliers is not None,
            "unlike": model.training_ranges is not None,
            "error": self._collects,
        }
        return [name for name, wanted in columns.items() if wanted]

    def _has_flags(self) -> bool:
        """Whether there is a threshold per class against the rest, by which no single class is predicted."""
        calibration, model = self._model.calibration, self._model
        return calibration is not None and model.task == "multiclass" and len(calibration.points) > 1

    def _rows(self, scored: ScoredSource) -> Iterator[dict[str, Any]]:
        self._sources += 1
        common = {"source": scored.name, "series_uid": scored.series_uid, "error": scored.error or None}
        if scored.error:
            yield common
            return
        for fact, value in scored.unlike.items():
            self._unlike.setdefault(fact, []).append(value)
        model, by_slice = self._model, self._unit == "image"
        common["unlike"] = "; ".join(f"{fact} {value}" for fact, value in scored.unlike.items())
        proba = np.concatenate(scored.proba)
        decisions = self._decision_columns(scored, proba)
        for n, scores in enumerate(proba):
            row = common | {name: values[n] for name, values in decisions.items()}
            row |= {f"p_{name}": float(p) for name, p in zip(model.classes, scores, strict=True)}
            if by_slice and scored.weights is not None:
                row |= {
                    "sop_instance_uid": scored.uids[n],
                    "slice": scored.slices[n],
                    "weight": float(scored.weights[n]),
                }
            yield row

    def _decision_columns(self, scored: ScoredSource, proba: NDArray[np.float64]) -> dict[str, Any]:
        """Return the columns of decisions, by the calibration if that is for the unit."""
        model, calibration = self._model, self._model.calibration
        found: dict[str, Any] = {"predicted": plain_text(model, proba)}
        if calibration is None:
            return found
        # a single image is both a slice and a series
        fits = calibration.unit == self._unit or len(scored.slices) == 1
        if scored.ood and (fits or model.pool == "none"):
            found["ood"] = np.concatenate(scored.ood).tolist()
        if not fits:
            self._undecided += bool(calibration.points) or calibration.coverage is not None
            return found
        if self._has_flags():
            found["flagged"] = calibration.flagged(proba, model.classes)
        elif calibration.points:
            found["predicted"] = calibration.decided(proba, model.classes, model.task)
        if calibration.coverage is not None:
            found["set"] = calibration.sets(proba, model.classes, model.task)
        return found

    def _warn(self) -> None:
        ranges, calibration = self._model.training_ranges, self._model.calibration
        for fact, values in self._unlike.items():
            shown = ", ".join(sorted(set(values))[:_EXAMPLES])
            expected = ranges.describe(fact) if ranges is not None else ""
            warnings.warn(
                f"{len(values)} of {self._sources} images are out of distribution in {fact}: {shown}; the "
                f"model was trained on {expected}; predictions on these images are not validated",
                MedimgWarning,
                stacklevel=5,
            )
        if self._undecided and calibration is not None:
            warnings.warn(
                f"{self._undecided} of {self._sources} images have no prediction set and no operating point: "
                f"the model was calibrated on unit={calibration.unit!r}, and they are predicted by "
                f"unit={self._unit!r}; calibrate on such a dataset, or predict by that unit",
                MedimgWarning,
                stacklevel=5,
            )


def plain_text(model: TransferClassifier, proba: NDArray[np.float64]) -> list[str]:
    """Return the most probable class of each row (n, K), or with "multilabel" the labels of at least 0.5."""
    if model.task == "multiclass":
        return [model.classes[k] for k in proba.argmax(axis=1)]
    return [";".join(name for name, p in zip(model.classes, row, strict=True) if p >= 0.5) for row in proba]


def predict_proba(
    model: TransferClassifier,
    dataset: LabeledDataset,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    tta: ViewChoice = None,
    progress: Progress = "auto",
) -> NDArray[np.float64]:
    """Predict on every item of a dataset; see :meth:`medimg.TransferClassifier.predict_proba`."""
    check_dataset("predict_proba", model, dataset, preprocess_error=PreprocessError)
    size, processes = check_batch_size(batch_size), check_processes(workers)
    check_calibration(model)
    note_renderer(model)
    views = make_views(tta, model)
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
    given = progress_bar(_as_list(sources), desc="predicting", unit="source", progress=progress)
    score = score_slices if unit == "image" else score_series
    views = make_views(tta, model)
    device = next(model.parameters()).device
    with module_mode(model, training=False), torch.inference_mode():
        scores = score(model, resolve_sources(model, given, on_error), device, size, views)
        table = PredictionTable(model, unit, collects=on_error == "collect", provenance=provenance)
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


def _as_list(sources: PredictSource | Iterable[PredictSource]) -> list[PredictSource]:
    """Return one source or several as a list."""
    if is_one_source(sources):
        return [cast("PredictSource", sources)]
    given: object = sources
    check_source(given, "predict", error=TrainingError)
    if not isinstance(given, Iterable):
        raise TrainingError(
            f"can't predict on a {type(given).__name__}; expected a path, bytes, a file object, a Series, a "
            "Volume, an image of another library, or several"
        )
    return list(cast("Iterable[PredictSource]", sources))
