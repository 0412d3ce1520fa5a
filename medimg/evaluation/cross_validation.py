"""Cross-validation of a head on embeddings: one pass over the images, whatever the number of folds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._public import set_module
from medimg._validation import check_whole_number
from medimg.evaluation.aggregation import Unit, check_units, make_units
from medimg.metrics.bootstrap import Estimate, resample
from medimg.metrics.classification import Support
from medimg.metrics.estimate import estimate
from medimg.metrics.intervals import check_intervals, resample_metrics, with_exact
from medimg.metrics.units import ScoredUnits

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from medimg.data.dataset import ImageDataset
    from medimg.models.classifier import TransferClassifier
    from medimg.training.linear_probe import LabeledEmbeddings, Method, ProbeSearch

__all__ = ["CrossValidation", "Scoring", "cross_validate", "validate_folds"]


@dataclass(frozen=True, slots=True)
class Scoring:
    """
    How out-of-fold probabilities are scored; see :func:`medimg.cross_validate`.

    Raises
    ------
    DatasetError
        If a number is out of range.
    """

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
    Scores of heads on patients that they were not fitted on.

    Attributes
    ----------
    metrics : dict of str to Estimate
        Of all out-of-fold probabilities together, with intervals that resample patients; names as in
        :class:`medimg.Report`.
    fold_metrics : tuple of dict of str to float
        The same metrics of each fold.
    settings : tuple of float
        Of each fold: the C, or the number of neighbors, that its training part chose.
    probabilities : numpy.ndarray
        (n, K) float64: out-of-fold, in the order of the data set.
    folds : numpy.ndarray
        (n,) int64: which fold an item was held out in.
    method, unit : str
        As asked for.
    classes : tuple of str
        Names of the classes.
    n_units, n_patients : int
        How many were scored.
    seconds : float
        How long it took, embedding included.
    samples : numpy.ndarray
        (R,) AUROC of each resample of the patients.
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
        Return a table: a row for each metric, with its value, interval, and value in each fold.

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
    num_workers: int = 0,
    progress: bool = False,
) -> CrossValidation:
    """
    Cross-validate a new head on a model's backbone, patient by patient; the images pass once.

    The backbone has to be one that none of these patients was trained on. The model is left as it is.

    Parameters
    ----------
    model : TransferClassifier
        Its backbone, pooling and recipe are used; its head is not.
    dataset : ImageDataset
        Made by the model's own recipe, of its classes.
    method : {"logistic", "sgd", "knn"}
        The first two as :func:`medimg.fit_head` has them; "knn", as a baseline: the share of each class among
        the nearest training items, by the angle between standardized embeddings.
    folds : int
        Stratified; every patient is in one.
    C, neighbors : number or sequence of numbers, optional
        The penalty's inverse for the linear methods, k for "knn": one, or several to choose from. Chosen for
        each fold by inner folds of its training part alone.
    inner_folds : int
        To choose by.
    balance : {"loss"} or None
        Whether classes weigh alike; "knn" does not heed it.
    unit : {"patient", "series", "image"}, optional
        What is scored, as in :func:`medimg.evaluate`; by default each item.
    ci : float
        Share of the resamples of patients between the ends of each interval.
    n_resamples : int
        How many resamples.
    seed : int
        Of folds and resamples.
    cache : path-like, optional
        A folder where embeddings are kept; see :func:`medimg.embed`.
    batch_size, num_workers : int
        Pictures at once; processes that read.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    CrossValidation

    Raises
    ------
    LeakageError
        If there are fewer patients than folds, or one series stands under two patients.
    TrainingError, DatasetError
        If data and model don't fit, a class has no example, or too few patients, or a setting is unsound.

    Notes
    -----
    Intervals tell how much the scores depend on who was in the data, for heads of these folds; not how much
    they depend on the choice of folds.

    Examples
    --------
    >>> found = medimg.cross_validate(model, dataset, cache="features")  # doctest: +SKIP
    >>> found.metrics["auroc"]  # doctest: +SKIP
    Estimate(value=0.993, low=0.990, high=0.995, dropped=0)
    """
    from medimg.data.splits.kfold import assign_folds, check_folds
    from medimg.training.checks import check_data
    from medimg.training.fit_head import check_balance, check_pooling, embed_items
    from medimg.training.linear_probe import ProbeSearch

    started = time.perf_counter()
    probing = ProbeSearch(
        model.task,
        model.classes,
        method,
        neighbors if method == "knn" else C,
        inner_folds=inner_folds,
        balanced=check_balance(balance),
        seed=check_whole_number("seed", seed),
    )
    scoring = Scoring(unit or default_unit(dataset), ci, n_resamples, seed)
    check_pooling(model)
    check_data(model, dataset, None)
    check_folds(dataset, folds)
    check_units(dataset, scoring.unit)
    fold = assign_folds(np.asarray(dataset.labels), dataset.patients, dataset.task, folds, seed)
    data = embed_items(
        model, dataset, cache=cache, batch_size=batch_size, num_workers=num_workers, progress=progress
    )
    return validate_folds(data, dataset, fold, probing, scoring, started=started)


def default_unit(dataset: ImageDataset) -> Unit:
    """Return the unit that is an item of a data set."""
    return "series" if dataset.unit == "series" else "image"


def validate_folds(
    data: LabeledEmbeddings,
    dataset: ImageDataset,
    fold: NDArray[np.int64],
    probing: ProbeSearch,
    scoring: Scoring,
    *,
    started: float,
) -> CrossValidation:
    """Fit on all folds but one, predict on that one, in turns; score what comes out."""
    from medimg.data.splits.kfold import split_by_fold

    probabilities = np.zeros((len(fold), len(probing.classes)))
    settings = []
    for train, test in split_by_fold(fold):
        chosen = probing.fit(data.select(train))
        probabilities[test] = chosen.fit.probabilities(data.x[test])
        settings.append(chosen.setting)
    units = make_units(dataset, probabilities, scoring.unit)
    metrics, samples = _metrics(units, dataset, scoring)
    return CrossValidation(
        metrics=metrics,
        fold_metrics=_by_fold(units, fold[units.first_item], dataset),
        settings=tuple(settings),
        probabilities=probabilities,
        folds=fold,
        method=probing.method,
        unit=scoring.unit,
        classes=probing.classes,
        n_units=len(units),
        n_patients=units.n_patients,
        seconds=time.perf_counter() - started,
        samples=samples,
    )


def _metrics(
    units: ScoredUnits, dataset: ImageDataset, scoring: Scoring
) -> tuple[dict[str, Estimate], NDArray[np.float64]]:
    support = Support.of(units.truth, dataset.task, dataset.classes)
    values = estimate(units.truth, units.predicted, units.probabilities, support)
    samples = resample(units, support, n_resamples=scoring.n_resamples, seed=scoring.seed)
    found = resample_metrics(values, samples, scoring.ci, units.n_patients)
    return with_exact(found, units, support, scoring.ci), samples["auroc"]


def _by_fold(
    units: ScoredUnits, fold: NDArray[np.int64], dataset: ImageDataset
) -> tuple[dict[str, float], ...]:
    found: list[dict[str, Any]] = []
    for n in np.unique(fold):
        truth, predicted, proba = (
            values[fold == n] for values in (units.truth, units.predicted, units.probabilities)
        )
        support = Support.of(truth, dataset.task, dataset.classes)
        found.append(estimate(truth, predicted, proba, support))
    return tuple(found)
