"""Paired comparison of two models: differences of their metrics with intervals and p-values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._public import set_module
from medimg._tables import make_table
from medimg.errors import DatasetError
from medimg.evaluation.aggregation import Unit, check_pair, check_units, get_thresholds, make_units
from medimg.evaluation.evaluate import as_model, list_training_overlap
from medimg.evaluation.report.cautions import list_cautions
from medimg.metrics.bootstrap import (
    ALL_AGREE,
    ONE_PATIENT,
    compute_interval,
    describe_ends,
    has_width,
    resample_metrics,
)
from medimg.metrics.classification import Support
from medimg.metrics.delong import compute_delong, find_delong_columns
from medimg.metrics.intervals import IntervalMethod, check_independent, check_intervals
from medimg.metrics.patient_counts import compute_metrics
from medimg.metrics.units import ScoredUnits
from medimg.models.data_checks import check_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pandas as pd
    import torch
    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.protocols import EvaluationDataset, Model
    from medimg.evaluation._external_model import Outputs

__all__ = ["Difference", "ModelComparison", "compare_metrics", "compare_models"]


_NO_VARIANCE = "DeLong’s variance is 0"
#: Below this, a difference is rounding.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Difference:
    """
    Difference of a metric between two models on the same units.

    Attributes
    ----------
    first, second : float
        Metric of each model; NaN if undefined.
    low, high : float
        Ends of the interval of ``value``, which differ; NaN if there is none.
    p : float
        Two-sided p-value of the null hypothesis of no difference; NaN if there is no interval, 1 if the two
        models agree in all resamples.
    dropped : int
        Number of resamples left out because the metric is undefined in them.
    method : str
        Method of the interval: ``"bootstrap"`` or ``"delong"``.
    reason : str
        Why there is no interval; "" if there is one, or the metric is undefined.

    Examples
    --------
    >>> print(Difference(0.91, 0.88, 0.01, 0.05, 0.004))
    +0.030 (+0.010 to +0.050), p = 0.004
    """

    first: float
    second: float
    low: float
    high: float
    p: float
    dropped: int = 0
    method: str = "bootstrap"
    reason: str = ""

    @property
    def value(self) -> float:
        """Metric of the first model minus that of the second."""
        return self.first - self.second

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "not defined"
        if math.isnan(self.low):
            return f"{self.value:+.3f}" + (f" (no interval: {self.reason})" if self.reason else "")
        p = "p < 0.001" if self.p < 0.001 else f"p = {self.p:.3f}"
        return f"{self.value:+.3f} ({' to '.join(describe_ends(self.low, self.high, '+'))}), {p}"


@set_module("medimg")
@dataclass(frozen=True, eq=False, repr=False)
class ModelComparison:
    """
    Result of :func:`medimg.compare_models`.

    Attributes
    ----------
    differences : mapping of str to Difference
        First model minus second, by name of the metric as in ``Report.metrics``.
    classes : tuple of str
        Names of the classes.
    unit : str
        Unit of the scores.
    n_units, n_patients : int
        Number of units and of patients.
    ci : float
        Confidence level of the intervals.
    notes : tuple of str
        Limitations: few patients, images that were used to choose an epoch or a calibration.
    """

    differences: Mapping[str, Difference]
    classes: tuple[str, ...]
    unit: str
    n_units: int
    n_patients: int
    ci: float
    notes: tuple[str, ...] = ()

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row per metric.

        Returns
        -------
        pandas.DataFrame
            Columns ``metric``, ``first``, ``second``, ``difference``, ``low``, ``high``, ``p``, ``dropped``,
            ``method`` and ``reason``.
        """
        rows = [
            (name, d.first, d.second, d.value, d.low, d.high, d.p, d.dropped, d.method, d.reason)
            for name, d in self.differences.items()
        ]
        columns = [
            "metric",
            "first",
            "second",
            "difference",
            "low",
            "high",
            "p",
            "dropped",
            "method",
            "reason",
        ]
        return make_table(rows, columns)

    def __repr__(self) -> str:
        shown = {name: d for name, d in self.differences.items() if "[" not in name}
        width = max(len(name) for name in shown)
        head = f"ModelComparison: {self.n_units} of unit {self.unit!r}, {self.n_patients} patients"
        column = f"  {'metric':<{width}}  first minus second ({self.ci * 100:g} % interval)"
        return "\n".join(
            [head, column, *(f"  {name:<{width}}  {d}" for name, d in shown.items()), *self.notes]
        )


@set_module("medimg")
def compare_models(
    first: Model | Callable[[Any], Any],
    second: Model | Callable[[Any], Any],
    dataset: EvaluationDataset,
    *,
    classes: Sequence[object] | None = None,
    outputs: Outputs | None = None,
    device: str | torch.device | None = None,
    unit: Unit = "patient",
    ci: float = 0.95,
    ci_method: IntervalMethod = "auto",
    n_resamples: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress = "auto",
    second_dataset: EvaluationDataset | None = None,
) -> ModelComparison:
    """
    Compare two models on the same images, with the same resamples of the patients for both.

    Parameters
    ----------
    first, second : TransferClassifier, nn.Module or callable
        Models to compare; they must have the same classes and task. Modules and functions of others are those
        of :func:`medimg.evaluate`.
    dataset : ImageDataset
        Images with labels that neither was trained on, preprocessed as for the first model.
    classes, outputs, device
        Classes, outputs and device of modules and functions; see :func:`medimg.evaluate`.
    unit : {"patient", "series", "image"}
        Unit of the scores; see :func:`medimg.evaluate`.
    ci : float
        Confidence level of the intervals, in (0, 1).
    ci_method : {"auto", "bootstrap", "delong"}
        Method of the intervals; see :func:`medimg.evaluate`. "auto" uses DeLong's covariance for the
        difference of two AUROC if each patient has one unit.
    n_resamples : int
        Number of bootstrap resamples of the patients; no p-value is below 2 / (n_resamples + 1).
    seed : int
        Seed for resampling.
    batch_size : int
        Number of images per forward pass.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    progress : "auto" or bool
        Whether to show progress bars. "auto": in a terminal or a notebook, after 1 s.
    second_dataset : ImageDataset, optional
        The same images, preprocessed as for the second model. By default derived from ``dataset``, which
        is possible if only mean and standard deviation differ, or if ``dataset`` is not a subset.

    Returns
    -------
    ModelComparison

    Raises
    ------
    DatasetError
        If a model does not match its dataset, the two datasets do not contain the same images, or a setting
        is out of range.
    LeakageError
        If a model was trained on some of the images; see :func:`medimg.evaluate`.
    TrainingError
        If a model's outputs are not probabilities.

    Notes
    -----
    The bootstrap p-value is twice the fraction of the differences at or beyond 0 on the rarer side, with one
    added to both counts [1]_; DeLong's is that of a normal distribution. They are not corrected for multiple
    metrics: prespecify the primary metric. Intervals of differences of calibration errors are reflected at
    the value, as the error of the better calibrated model increases more in resamples.

    References
    ----------
    .. [1] Davison AC, Hinkley DV. Bootstrap methods and their application. Cambridge 1997, section 4.2.

    Examples
    --------
    >>> found = medimg.compare_models(resnet, densenet, test)                 # doctest: +SKIP
    >>> print(found.differences["auroc"])                                     # doctest: +SKIP
    +0.012 (-0.004 to +0.028), p = 0.140
    """
    check_intervals(ci, n_resamples, ci_method, seed)
    other = dataset if second_dataset is None else second_dataset
    models = _as_models((first, second), (dataset, other), classes=classes, outputs=outputs, device=device)
    check_pair(models[0], dataset)
    check_model(models[1], error=DatasetError)
    other = _preprocess_as(dataset, models[1]) if second_dataset is None else second_dataset
    _check_same_images(dataset, other)
    pairs = ((models[0], dataset), (models[1], other))
    notes = []
    for which, (model, images) in zip(("first", "second"), pairs, strict=True):
        check_pair(model, images)
        check_units(images, unit)
        notes += [f"The {which} model: {note}" for note in list_training_overlap(model, images, "raise")]
    found = []
    for model, images in pairs:
        probabilities = model.predict_proba(images, batch_size=batch_size, workers=workers, progress=progress)
        found.append(make_units(images, probabilities, unit, get_thresholds(model)))
    classes = tuple(dataset.classes)
    support = Support.count(found[0].truth, dataset.task, classes)
    n_unknown = getattr(dataset, "n_unknown_patients", 0)
    cautions = list_cautions(
        counts=(),
        n_patients=found[0].n_patients,
        metrics={},
        n_resamples=n_resamples,
        n_unknown=n_unknown,
    )
    settings: dict[str, Any] = {"ci": ci, "n_resamples": n_resamples, "seed": seed, "method": ci_method}
    return ModelComparison(
        differences=compare_metrics(found[0], found[1], support, **settings),
        classes=classes,
        unit=unit,
        n_units=len(found[0]),
        n_patients=found[0].n_patients,
        ci=ci,
        notes=(*notes, *cautions),
    )


def _as_models(models: Sequence[Any], datasets: Sequence[EvaluationDataset], **given: Any) -> list[Model]:
    """Return models that say what they predict; what is given is for those that do not."""
    from medimg.evaluation._external_model import is_external

    foreign = [is_external(model) for model in models]
    found = []
    for model, data, is_foreign in zip(models, datasets, foreign, strict=True):
        # if none is, the first one refuses it
        used = given if is_foreign or not any(foreign) else dict.fromkeys(given)
        found.append(as_model(model, data, preprocess=None, saliency=False, **used))
    return found


def compare_metrics(
    first: ScoredUnits,
    second: ScoredUnits,
    support: Support,
    *,
    ci: float,
    n_resamples: int,
    seed: int,
    method: str,
) -> dict[str, Difference]:
    """Return the difference of every metric by name, of the same units as two models score them."""
    check_independent(first, method)
    values = [compute_metrics(u.truth, u.predicted, u.probabilities, support) for u in (first, second)]
    pairs = {name: (value, values[1][name]) for name, value in values[0].items()}
    nan = float("nan")
    if first.n_patients < 2:
        return {
            name: Difference(*pair, nan, nan, nan, reason="" if math.isnan(sum(pair)) else ONE_PATIENT)
            for name, pair in pairs.items()
        }
    samples = [resample_metrics(u, support, n_resamples=n_resamples, seed=seed) for u in (first, second)]
    found = {
        name: _compare_resampled(pair, _subtract_samples(name, pair, samples), ci, first.n_patients)
        for name, pair in pairs.items()
    }
    if method != "bootstrap":
        for name, k in find_delong_columns(first, support).items():
            found[name] = _compare_by_delong(first, second, k, ci)
    return found


def _subtract_samples(
    name: str, pair: tuple[float, float], samples: list[dict[str, NDArray[np.float64]]]
) -> NDArray[np.float64]:
    """Return differences of resamples (R,); of calibration errors reflected, as these increase by chance."""
    found = samples[0][name] - samples[1][name]
    return 2 * (pair[0] - pair[1]) - found if name.startswith("ece") else found


def _compare_resampled(
    pair: tuple[float, float], samples: NDArray[np.float64], ci: float, n: int
) -> Difference:
    ends = compute_interval(pair[0] - pair[1], samples, ci, n_patients=n)
    if math.isnan(ends.low):
        p = 1.0 if ends.reason == ALL_AGREE and abs(ends.value) < _ROUNDING else float("nan")
        return Difference(*pair, ends.low, ends.high, p, ends.dropped, reason=ends.reason)
    kept = samples[~np.isnan(samples)]
    rarer = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    return Difference(*pair, ends.low, ends.high, min(1.0, 2 * (rarer + 1) / (len(kept) + 1)), ends.dropped)


def _compare_by_delong(first: ScoredUnits, second: ScoredUnits, k: int, ci: float) -> Difference:
    scores = np.stack([first.probabilities[:, k], second.probabilities[:, k]])
    areas, covariance = compute_delong(first.truth[:, k], scores)
    value = float(areas[0] - areas[1])
    spread = math.sqrt(max(float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]), 0.0))
    half = NormalDist().inv_cdf((1 + ci) / 2) * spread
    if not has_width(-half, half):
        # two models that rank all units in the same way; else both have an AUROC of 0 or 1
        nan = float("nan")
        p = 1.0 if abs(value) < _ROUNDING else nan
        pair = float(areas[0]), float(areas[1])
        return Difference(*pair, nan, nan, p, method="delong", reason=_NO_VARIANCE)
    p = math.erfc(abs(value) / spread / math.sqrt(2))
    return Difference(
        float(areas[0]),
        float(areas[1]),
        max(value - half, -1.0),
        min(value + half, 1.0),
        p,
        method="delong",
    )


def _preprocess_as(dataset: Any, model: Model) -> Any:
    """Return the dataset preprocessed as for a model; DatasetError if it is a subset."""
    if dataset.preprocess.fingerprint == model.preprocess.fingerprint or not hasattr(
        dataset, "with_preprocess"
    ):
        return dataset
    try:
        return dataset.with_preprocess(model.preprocess)
    except DatasetError:
        raise DatasetError(
            "the two models differ in preprocessing, and this dataset is a subset, whose preprocessing can't "
            "be changed: pass second_dataset=, the same subset of a dataset with "
            "preprocess=second.preprocess"
        ) from None


def _check_same_images(dataset: EvaluationDataset, other: EvaluationDataset) -> None:
    same = (
        len(dataset) == len(other)
        and np.array_equal(np.asarray(dataset.labels), np.asarray(other.labels))
        and tuple(dataset.patients) == tuple(other.patients)
        and tuple(dataset.sources) == tuple(other.sources)
        and dataset.unit == other.unit
    )
    if not same:
        raise DatasetError(
            f"the two datasets, of {len(dataset)} and {len(other)} items, do not contain the same images in "
            "the same order, as a paired comparison needs: they may differ in preprocessing only"
        )
