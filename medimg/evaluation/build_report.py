"""The report of probabilities, whatever they come from: what evaluating and scoring have in common."""

from __future__ import annotations

import hashlib
import platform
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg import __version__
from medimg._tables import make_table
from medimg.core.content_hash import keyed_hash
from medimg.errors import DatasetError
from medimg.evaluation.aggregation import Unit, make_units
from medimg.evaluation.report.cautions import ClassCount, describe_constant_predictions, list_cautions
from medimg.evaluation.report.data_flow import count_data_flow
from medimg.evaluation.report.example_images import choose_images
from medimg.evaluation.report.report import Metrics, Report
from medimg.evaluation.subgroups import list_small_subgroups, score_subgroups
from medimg.metrics.classification import Support
from medimg.metrics.curves import compute_curves
from medimg.metrics.intervals import IntervalMethod, check_intervals, estimate_metrics
from medimg.metrics.units import THRESHOLD, ScoredUnits

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.data.protocols import Model, ScoredDataset
    from medimg.evaluation.report.example_images import GetPixels

__all__ = ["NOT_CHECKED", "ReportSettings", "build_report"]

#: Of a model that was made elsewhere.
NOT_CHECKED: Final = (
    "It is not known which images the model was trained on: whether any of these, or others of the same "
    "patients, are among them was not checked."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSettings:
    """Settings of the scores; DatasetError if one is out of range."""

    unit: Unit
    ci: float
    ci_method: IntervalMethod
    n_resamples: int
    seed: int
    salt: str | None

    def __post_init__(self) -> None:
        check_intervals(self.ci, self.n_resamples, self.ci_method, self.seed)
        _make_key(self.salt)


def build_report(
    dataset: ScoredDataset,
    probabilities: NDArray[np.float64],
    settings: ReportSettings,
    *,
    groups: Mapping[str, Sequence[str]],
    facts: Mapping[str, Any],
    thresholds: tuple[float, ...] | None = None,
    notes: Sequence[str] = (),
    get_pixels: GetPixels | None = None,
    explained_by: Model | None = None,
) -> Report:
    """
    Score probabilities (n, K) of a dataset; `groups` are those of each item by subgroup.

    `facts` is what is known of the model, for the provenance; `get_pixels` gives the image of an item, and
    without it there are no examples.
    """
    hash_patient = keyed_hash(_make_key(settings.salt))
    units = make_units(dataset, probabilities, settings.unit, thresholds)
    classes, task = tuple(dataset.classes), dataset.task
    support = Support.count(units.truth, task, classes)
    intervals: dict[str, Any] = {
        "ci": settings.ci,
        "n_resamples": settings.n_resamples,
        "seed": settings.seed,
        "method": settings.ci_method,
    }
    metrics = estimate_metrics(units, support, **intervals)
    table = score_subgroups(groups, units, task, classes, **intervals) if groups else None
    subjects = tuple(map(hash_patient, units.patient_names))
    counts = _count_classes(units, classes)
    cautions = list_cautions(
        counts=counts,
        n_patients=units.n_patients,
        n_unknown=getattr(dataset, "n_unknown_patients", 0),
        metrics=metrics,
        n_resamples=settings.n_resamples,
    )
    example_images = (
        ()
        if get_pixels is None
        else choose_images(
            dataset, units, subjects, get_pixels=get_pixels, seed=settings.seed, explained_by=explained_by
        )
    )
    return Report(
        metrics=Metrics(metrics),
        confusion=_count_confusion(units, task),
        classes=classes,
        task=task,
        unit=settings.unit,
        n_units=len(units),
        n_patients=units.n_patients,
        n_images=len(dataset),
        predictions=_tabulate_predictions(units, subjects, classes, task),
        counts=counts,
        notes=(
            *notes,
            *cautions,
            *describe_constant_predictions(units.predicted, classes, task),
            *([] if table is None else list_small_subgroups(table)),
        ),
        provenance={
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
            "data": count_data_flow(dataset, units),
            "evaluation": {
                "unit": settings.unit,
                "item": "series" if dataset.unit == "series" else "image",
                "ci": float(settings.ci),
                "ci_method": settings.ci_method,
                "n_resamples": int(settings.n_resamples),
                "seed": int(settings.seed),
                "threshold": THRESHOLD,
                "operating_points": None if thresholds is None else list(thresholds),
            },
            "versions": _list_versions(),
        },
        example_images=example_images,
        subgroups=table,
        curves=compute_curves(units.truth, units.probabilities, support),
    )


def _count_classes(units: ScoredUnits, classes: tuple[str, ...]) -> tuple[ClassCount, ...]:
    return tuple(
        ClassCount(
            name=name,
            patients=len(np.unique(units.patient[units.truth[:, k]])),
            units=int(units.truth[:, k].sum()),
            images=int(units.n_items[units.truth[:, k]].sum()),
        )
        for k, name in enumerate(classes)
    )


def _list_versions() -> dict[str, str]:
    names = ("torch", "torchvision", "numpy", "scikit-learn")
    return {"medimg": __version__, "python": platform.python_version()} | {
        name: metadata.version(name) for name in names
    }


def _count_confusion(units: ScoredUnits, task: str) -> NDArray[np.int64]:
    """Return the confusion matrix (K, K), or one of each label (K, 2, 2)."""
    from sklearn.metrics import confusion_matrix

    n_classes = units.truth.shape[1]
    if task == "multiclass":
        pair = units.truth.argmax(axis=1), units.predicted.argmax(axis=1)
        return np.asarray(confusion_matrix(*pair, labels=list(range(n_classes))), dtype=np.int64)
    matrices = [
        confusion_matrix(units.truth[:, k], units.predicted[:, k], labels=[0, 1]) for k in range(n_classes)
    ]
    return np.asarray(np.stack(matrices), dtype=np.int64)


def _make_key(salt: object) -> bytes:
    """Return the key that patients are hashed with, so that their identifiers don't give the subjects."""
    if salt is None:
        return secrets.token_bytes(32)
    if not isinstance(salt, str) or not salt:
        raise DatasetError(
            "salt must be a secret text of at least one character, or None for a random one; found "
            f"{'an empty text' if salt == '' else f'a {type(salt).__name__}'}"
        )
    return hashlib.sha256(salt.encode()).digest()


def _tabulate_predictions(
    units: ScoredUnits, subjects: tuple[str, ...], classes: tuple[str, ...], task: str
) -> pd.DataFrame:

    columns: dict[str, Any] = {
        "subject": [subjects[p] for p in units.patient],
        "item": units.first_item,
        "n_images": units.n_items,
    }
    if task == "multiclass":
        columns["label"] = [classes[k] for k in units.truth.argmax(axis=1)]
        columns["predicted"] = [classes[k] for k in units.predicted.argmax(axis=1)]
    else:
        columns |= {f"label_{name}": units.truth[:, k].astype(int) for k, name in enumerate(classes)}
        columns |= {f"predicted_{name}": units.predicted[:, k].astype(int) for k, name in enumerate(classes)}
    columns |= {f"p_{name}": units.probabilities[:, k] for k, name in enumerate(classes)}
    return make_table(columns)
