"""Answers of the service, as they are in JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medimg import __version__
from medimg.models.digest import model_digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medimg.models.classifier import TransferClassifier

__all__ = ["Answer", "CalibrationFacts", "ModelFacts", "Prediction", "State"]


@dataclass(frozen=True, slots=True)
class CalibrationFacts:
    """How the probabilities of a model are calibrated."""

    method: str
    unit: str
    items: int
    patients: int
    temperature: list[float]
    coverage: float | None


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model that predicts; `digest` is the SHA-256 of all that its predictions depend on."""

    digest: str
    backbone: str
    classes: list[str]
    task: str
    pool: str
    recipe: str
    calibration: CalibrationFacts | None
    medimg: str

    @classmethod
    def of(cls, model: TransferClassifier) -> ModelFacts:
        """Describe a model; paths are left out."""
        found = model.calibration
        return cls(
            digest=model_digest(model),
            backbone=model.backbone_name,
            classes=list(model.classes),
            task=model.task,
            pool=model.pool,
            recipe=model.preprocess.fingerprint,
            calibration=None
            if found is None
            else CalibrationFacts(
                found.method,
                found.unit,
                found.items,
                found.patients,
                list(found.temperature),
                found.coverage,
            ),
            medimg=__version__,
        )


@dataclass(frozen=True, slots=True)
class Prediction:
    """A row of ``model.predict``; what does not apply, and what failed, is null."""

    source: str
    series_uid: str | None = None
    sop_instance_uid: str | None = None
    slice: int | None = None
    predicted: str | None = None
    probabilities: dict[str, float] | None = None
    flagged: str | None = None
    set: str | None = None
    weight: float | None = None
    ood: float | None = None
    unlike: str | None = None
    error: str | None = None

    @classmethod
    def of(cls, row: Mapping[Any, Any], classes: tuple[str, ...]) -> Prediction:
        """Return a row of a table of predictions."""
        names = ("sop_instance_uid", "slice", "predicted", "flagged", "set", "weight", "ood", "unlike")
        return cls(
            source=str(row["source"]),
            series_uid=row["series_uid"] or None,
            probabilities={name: float(row[f"p_{name}"]) for name in classes},
            **{name: _plain(row.get(name)) for name in names},
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """Predictions on the images of a request."""

    predictions: list[Prediction]
    warnings: list[str]
    model: ModelFacts


@dataclass(frozen=True, slots=True)
class State:
    """Whether the service is alive, or ready."""

    status: str


def _plain(value: Any) -> Any:
    """Return a value in types of JSON; null if it is missing."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and math.isnan(value) else value
