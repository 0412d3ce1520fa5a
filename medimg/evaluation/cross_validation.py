"""Cross-validation of a head on embeddings, from a single forward pass over the images."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from medimg._public import set_module
from medimg._validation import check_whole_number
from medimg.evaluation.aggregation import Unit, check_units, make_units
from medimg.metrics.bootstrap import Estimate, resample_metrics
from medimg.metrics.classification import Support
from medimg.metrics.intervals import check_intervals, compute_intervals
from medimg.metrics.patient_counts import compute_metrics
from medimg.metrics.units import ScoredUnits

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.linear_probe import LabeledEmbeddings, Method, ProbeSearch

__all__ = ["CrossValidation", "ScoringConfig", "cross_validate", "validate_folds"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringConfig:
    """Settings for scoring out-of-fold probabilities; DatasetError if one is out of range."""

    unit: Unit
    ci: float
    n_resamples: int
    seed: int

    def __post_init__(self) -> None:
        check_intervals(self.ci, self.n_resamples, seed=self.seed)


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class CrossValidation:
    """
    Result of :func:`medimg.cross_validate`: scores of heads on patients that they were not fitted on.

    Attributes
    ----------
    metrics : dict of str to Estimate
        Metrics of all out-of-fold probabilities together, with intervals that resample patients; names as
        in :class:`medimg.Report`.
    fold_metrics : tuple of dict of str to float
        Metrics of each fold.
    settings : tuple of float
        C, or number of neighbors, chosen in the training part of each fold.
    probabilities : numpy.ndarray
        Out-of-fold probabilities, (n, K) float64, in the order of the dataset.
    folds : numpy.ndarray
        Fold in which each item was held out, (n,) int64.
    method, unit : str
        Method of the head and unit of the scores.
    classes : tuple of str
        Names of the classes.
    n_units, n_patients : int
        Number of units and of patients.
    seconds : float
        Duration, including the embedding.
    samples : numpy.ndarray
        AUROC of each resample of the patients, (R,).
    """

    metrics: dict[str, Estimate]
    fold_metrics: tuple[dict[str, float], ...] = field(repr=False)
    settings: tuple[float, ...]
    probabilities: NDArray[np.float64] = field(repr=False)
    folds: NDArray[np.int64] = field(repr=False)
    method: str
    unit: str
    classes: tuple[str, ...]
    n_units: int
    n_patients: int
    seconds: float
    samples: NDArray[np.float64] = field(repr=False)

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row per metric: value, interval, and value in each fold.

        Columns are ``value``, ``low``, ``high``, ``fold_1``, ``fold_2`` and so on.
        """
        import pandas as pd

        rows = {
            name: {"value": e.value, "low": e.low, "high": e.high}
            | {f"fold_{n}": scores[name] for n, scores in enumerate(self.fold_metrics, 1)}
            for name, e in self.metrics.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        shown = [f"{name} {self.metrics[name]}" for name in ("auroc", "accuracy") if name in self.metrics]
        return (
            f"CrossValidation({self.method}, {len(self.settings)} folds of {self.n_patients} patients, "
            f"{', '.join(shown)})"
        )


@set_module("medimg")
def cross_validate(
    model: TransferClassifier,
    dataset: ImageDataset,
    *,
    method: Method = "logistic",
    folds: int = 5,
    C: float | Sequence[float] | None = None,
    neighbors: int | Sequence[int] | None = None,
    inner_folds: int = 3,
    balance: str | None = "loss",
    unit: Unit | None = None,
    ci: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress = "auto",
) -> CrossValidation:
    """
    Cross-validate a new head on a model's backbone, with folds of patients and a single forward pass.

    The backbone must not have been trained on any of these patients. The model is not changed.

    Parameters
    ----------
    model : TransferClassifier
        Model whose backbone, pooling and preprocessing are used; its head is not.
    dataset : ImageDataset
        Labeled images with the model's preprocessing and classes.
    method : {"logistic", "sgd", "knn"}
        Head: the first two as in :func:`medimg.fit_head`; "knn" is a baseline, the fraction of each class
        among the nearest training items by cosine similarity of standardized embeddings.
    folds : int
        Number of stratified folds; every patient is in one.
    C, neighbors : number or sequence of numbers, optional
        Inverse regularization strength of the linear methods, k of "knn": one value, or several candidates,
        chosen for each fold by inner folds of its training part.
    inner_folds : int
        Number of inner folds.
    balance : {"loss"} or None
        "loss" gives classes equal weight; "knn" ignores it.
    unit : {"patient", "series", "image"}, optional
        Unit of the scores, as in :func:`medimg.evaluate`; each item by default.
    ci : float
        Confidence level of the intervals, in (0, 1).
    n_resamples : int
        Number of bootstrap resamples of the patients.
    seed : int
        Seed for folds and resampling.
    cache : path-like, optional
        Folder for cached embeddings; see :func:`medimg.embed`.
    batch_size : int
        Number of images per forward pass.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    progress : "auto" or bool
        Whether to show a progress bar. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    CrossValidation

    Raises
    ------
    LeakageError
        If there are fewer patients than folds, or a series is assigned to two patients.
    TrainingError, DatasetError
        If the dataset does not match the model, a class has no example or too few patients, or a setting is
        invalid.

    Notes
    -----
    Intervals reflect the variability between patients for the heads of these folds, not the variability due
    to the choice of folds.

    Examples
    --------
    >>> found = medimg.cross_validate(model, dataset, cache="features")  # doctest: +SKIP
    >>> found.metrics["auroc"]  # doctest: +SKIP
    Estimate(value=0.993, low=0.990, high=0.995, dropped=0)
    """
    from medimg.data.splits.kfold import assign_folds, check_folds
    from medimg.errors import TrainingError
    from medimg.training.checks import check_data
    from medimg.training.fit_head import check_balance, check_pooling, embed_items
    from medimg.training.linear_probe import ProbeSearch

    started = time.perf_counter()
    check_data(model, dataset, None)
    unused, name = (C, "C") if method == "knn" else (neighbors, "neighbors")
    if unused is not None:
        raise TrainingError(
            f"{name}={unused!r} has no effect with method={method!r}: pass "
            f"{'neighbors' if method == 'knn' else 'C'}= instead"
        )
    probing = ProbeSearch(
        model.task,
        model.classes,
        method,
        neighbors if method == "knn" else C,
        inner_folds=inner_folds,
        balanced=check_balance(balance),
        seed=check_whole_number("seed", seed),
    )
    scoring = ScoringConfig(unit=unit or default_unit(dataset), ci=ci, n_resamples=n_resamples, seed=seed)
    check_pooling(model)
    check_folds(dataset, folds)
    check_units(dataset, scoring.unit)
    fold = assign_folds(np.asarray(dataset.labels), dataset.patients, dataset.task, folds, seed)
    data = embed_items(model, dataset, cache=cache, batch_size=batch_size, workers=workers, progress=progress)
    return validate_folds(data, dataset, fold, probing, scoring, started=started)


def default_unit(dataset: ImageDataset) -> Unit:
    """Return the unit that corresponds to an item of a dataset."""
    return "series" if dataset.unit == "series" else "image"


def validate_folds(
    data: LabeledEmbeddings,
    dataset: ImageDataset,
    fold: NDArray[np.int64],
    probing: ProbeSearch,
    scoring: ScoringConfig,
    *,
    started: float,
) -> CrossValidation:
    """Fit a head without each fold, predict that fold, and score the out-of-fold probabilities."""
    from medimg.data.splits.kfold import split_by_fold

    probabilities = np.zeros((len(fold), len(probing.classes)))
    settings = []
    for train, test in split_by_fold(fold):
        chosen = probing.fit(data.select(train))
        probabilities[test] = chosen.fit.probabilities(data.x[test])
        settings.append(chosen.setting)
    units = make_units(dataset, probabilities, scoring.unit)
    support = Support.count(units.truth, dataset.task, dataset.classes)
    values = compute_metrics(units.truth, units.predicted, units.probabilities, support)
    samples = resample_metrics(units, support, n_resamples=scoring.n_resamples, seed=scoring.seed)
    return CrossValidation(
        metrics=compute_intervals(values, samples, units, support, scoring.ci),
        fold_metrics=_score_folds(units, fold[units.first_item], dataset),
        settings=tuple(settings),
        probabilities=probabilities,
        folds=fold,
        method=probing.method,
        unit=scoring.unit,
        classes=probing.classes,
        n_units=len(units),
        n_patients=units.n_patients,
        seconds=time.perf_counter() - started,
        samples=samples["auroc"],
    )


def _score_folds(
    units: ScoredUnits, fold: NDArray[np.int64], dataset: ImageDataset
) -> tuple[dict[str, float], ...]:
    """Return the metrics of the units of each fold; `fold` is (n,)."""
    found = []
    for n in np.unique(fold):
        truth, predicted, proba = (
            values[fold == n] for values in (units.truth, units.predicted, units.probabilities)
        )
        support = Support.count(truth, dataset.task, dataset.classes)
        found.append(compute_metrics(truth, predicted, proba, support))
    return tuple(found)
