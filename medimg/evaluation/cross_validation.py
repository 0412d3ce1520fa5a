"""Cross-validation by patient: of heads on embeddings from a single forward pass, or of fine-tuned models."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray
    from torch import nn

    from medimg.core.progress import Progress
    from medimg.data.dataset import ImageDataset
    from medimg.evaluation._fold_training import FoldTraining, TrainedFold
    from medimg.evaluation.report.report import Report
    from medimg.evaluation.subgroups import Subgroups
    from medimg.models.classifier import TransferClassifier
    from medimg.models.ensemble import Ensemble
    from medimg.training.class_weights import Balance
    from medimg.training.fine_tune import FineTuneArguments
    from medimg.training.history import FitResult
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
    Result of :func:`medimg.cross_validate`: scores of models on patients that they were not fitted on.

    Attributes
    ----------
    metrics : dict of str to Estimate
        Metrics of all out-of-fold probabilities together, with intervals that resample patients; names as
        in :class:`medimg.Report`.
    fold_metrics : tuple of dict of str to float
        Metrics of each fold.
    settings : tuple of float
        C, number of neighbors, or best epoch, chosen in the training part of each fold.
    probabilities : numpy.ndarray
        Out-of-fold probabilities, (n, K) float64, in the order of the dataset.
    folds : numpy.ndarray
        Fold in which each item was held out, (n,) int64.
    method, unit : str
        Method of the head, or "fine_tune", and unit of the scores.
    classes : tuple of str
        Names of the classes.
    n_units, n_patients : int
        Number of units and of patients.
    seconds : float
        Duration, including the embedding.
    samples : numpy.ndarray
        AUROC of each resample of the patients, (R,).
    report : Report or None
        Report of the out-of-fold probabilities of fine-tuned models; None for heads on embeddings, of which
        ``medimg.score(dataset.labels, result.probabilities, images=dataset)`` makes one.
    fits : tuple of FitResult
        Training of each fold: history, best epoch, and checkpoint if there is an output folder.
    models : tuple of TransferClassifier
        Model of each fold, if they were to be kept.
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
    report: Report | None = field(default=None, repr=False)
    fits: tuple[FitResult, ...] = field(default=(), repr=False)
    models: tuple[TransferClassifier, ...] = field(default=(), repr=False)

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

    def ensemble(self, *, backbone: nn.Module | None = None) -> Ensemble:
        """
        Return the fine-tuned models of all folds as one model.

        Every patient of the dataset was a training patient of most of its members: evaluate it on others.
        The metrics of the cross-validation are those of its members one by one.

        Parameters
        ----------
        backbone : nn.Module, optional
            Network of models that were built from a network itself, if they are read from the output folder.

        Returns
        -------
        Ensemble
            Of ``models`` if they were kept, else of the checkpoints in the output folder.

        Raises
        ------
        TrainingError
            If there are no models: heads on embeddings, or fine-tuning with neither ``keep_models=True`` nor
            ``output=``.
        CheckpointError
            If a checkpoint is damaged or missing, or another run has replaced it since.
        """
        from medimg.errors import TrainingError
        from medimg.evaluation._fold_training import load_fold_model
        from medimg.models.ensemble import Ensemble

        if self.models:
            return Ensemble(self.models)
        if not self.fits or any(fit.checkpoint is None for fit in self.fits):
            raise TrainingError(
                "the models of the folds were not kept; expected fine-tuned ones: pass fine_tune=, and "
                "keep_models=True or output="
            )
        return Ensemble([load_fold_model(fit, backbone=backbone) for fit in self.fits])

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
    fine_tune: bool | FineTuneArguments = False,
    folds: int = 5,
    C: float | Sequence[float] | None = None,
    neighbors: int | Sequence[int] | None = None,
    inner_folds: int = 3,
    balance: Balance = "loss",
    val_fraction: float = 0.15,
    calibrate: bool = True,
    unit: Unit | None = None,
    subgroups: Subgroups | None = None,
    ci: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    keep_models: bool = False,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    progress: Progress = "auto",
) -> CrossValidation:
    """
    Cross-validate a new head on a model's backbone, or fine-tuning of the model, with folds of patients.

    A head needs a single forward pass over the images. With `fine_tune` a copy of the model is trained for
    each fold, on patients outside of it, and predicts the patients in it. The model must not have been
    trained on any of these patients, and is not changed.

    Parameters
    ----------
    model : TransferClassifier
        Model whose backbone, pooling and preprocessing are used; its head is not.
    dataset : ImageDataset
        Labeled images with the model's preprocessing and classes.
    method : {"logistic", "sgd", "knn"}
        Head: the first two as in :func:`medimg.fit_head`; "knn" is a baseline, the fraction of each class
        among the nearest training items by cosine similarity of standardized embeddings.
    fine_tune : bool or mapping
        Whether models are fine-tuned instead: True, or arguments of :func:`medimg.fine_tune` by name, such as
        ``{"epochs": 5, "lr": 3e-4}``. `seed`, `cache`, `workers` and `progress` are those given here, and so
        are `balance` and `batch_size` unless they are among the arguments.
    folds : int
        Number of stratified folds; every patient is in one.
    C, neighbors : number or sequence of numbers, optional
        Inverse regularization strength of the linear methods, k of "knn": one value, or several candidates,
        chosen for each fold by inner folds of its training part.
    inner_folds : int
        Number of inner folds.
    balance : {"loss", "sampler"} or None
        "loss" gives classes equal weight; "knn" ignores it. "sampler" is for fine-tuning.
    val_fraction : float
        Fraction of the patients outside each fold that select the epoch and calibrate the model, for
        fine-tuning; 0 trains on all of them, keeps the last epoch and does not calibrate.
    calibrate : bool
        Whether the fine-tuned model of each fold is calibrated on its validation patients, by
        :func:`medimg.calibrate`, so that probabilities of different folds are comparable. The class weights
        of the training are thereby undone.
    unit : {"patient", "series", "image"}, optional
        Unit of the scores, as in :func:`medimg.evaluate`; each item by default.
    subgroups : mapping, str or sequence of str, optional
        Groups of patients that the report of fine-tuned models scores separately, such as "site"; see
        :func:`medimg.evaluate`.
    ci : float
        Confidence level of the intervals, in (0, 1).
    n_resamples : int
        Number of bootstrap resamples of the patients.
    seed : int
        Seed for folds, resampling and training: fold 1 is ``medimg.kfold(dataset, folds, seed=seed)[0]``, its
        training part divided by ``medimg.split(…, seed=seed)``, and trained with this seed.
    output : path-like, optional
        Folder for fine-tuned models, with a folder for each fold, ``fold_1`` and so on: the files of
        :func:`medimg.fine_tune`, of which ``best.safetensors`` is the model that predicted, and the fold's
        result. One with the results of an earlier cross-validation is refused, unless that goes on
        (`resume`) or is to be replaced (`overwrite`).
    resume : bool
        Whether to continue the interrupted cross-validation of `output`: finished folds are not trained
        again, and the one under way continues after its last epoch. Settings and data must be the same.
    overwrite : bool
        Whether to replace an earlier cross-validation in `output`, whose results of folds are removed once
        the first fold trains.
    keep_models : bool
        Whether the result has the fine-tuned models, which are otherwise dropped fold by fold.
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
        If there are fewer patients than folds, a series is assigned to two patients, a class has too few
        patients to be in all subsets, or the model was trained on images of `dataset`.
    TrainingError, DatasetError
        If the dataset does not match the model, a class has no example or too few patients, a setting is
        invalid or would have no effect, or the output folder has another cross-validation, or the results
        of an earlier one.
    CheckpointError
        If a result to resume from is damaged.

    Notes
    -----
    Intervals reflect the variability between patients for the models of these folds, not the variability due
    to the choice of folds. A fine-tuned model depends on no image of its fold: class weights, statistics of
    batches, the best epoch and the calibration are those of the patients outside.

    Examples
    --------
    >>> found = medimg.cross_validate(model, dataset, cache="features")  # doctest: +SKIP
    >>> found.metrics["auroc"]  # doctest: +SKIP
    Estimate(value=0.993, low=0.990, high=0.995, dropped=0)
    >>> tuned = medimg.cross_validate(model, dataset, fine_tune={"epochs": 5}, output="cv")  # doctest: +SKIP
    >>> tuned.report.to_html("cv.html")  # doctest: +SKIP
    """
    from medimg.data.splits.kfold import assign_folds, check_folds
    from medimg.errors import TrainingError
    from medimg.evaluation._fold_training import FoldTraining
    from medimg.training.checks import check_data
    from medimg.training.fit_head import check_balance, check_pooling, embed_items
    from medimg.training.linear_probe import ProbeSearch

    started = time.perf_counter()
    check_data(model, dataset, None)
    scoring = ScoringConfig(unit=unit or default_unit(dataset), ci=ci, n_resamples=n_resamples, seed=seed)
    tuning: dict[str, Any] = {
        "val_fraction": val_fraction,
        "calibrate": calibrate,
        "output": output,
        "resume": resume,
        "overwrite": overwrite,
        "keep_models": keep_models,
    }
    if fine_tune is not False:
        probing_only = {"method": method, "C": C, "neighbors": neighbors, "inner_folds": inner_folds}
        _check_unused(probing_only, "with fine_tune")
        loading = {"batch_size": batch_size, "workers": workers, "progress": progress}
        training = FoldTraining.make(
            fine_tune,
            balance=balance,
            cache=cache,
            loading=loading,
            seed=check_whole_number("seed", seed),
            **tuning,
        )
        return _validate_trained_folds(
            model, dataset, training, scoring, folds=folds, subgroups=subgroups, started=started
        )
    _check_unused({**tuning, "subgroups": subgroups}, "without fine_tune")
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
    check_pooling(model)
    check_folds(dataset, folds)
    check_units(dataset, scoring.unit)
    fold = assign_folds(np.asarray(dataset.labels), dataset.patients, dataset.task, folds, seed)
    data = embed_items(model, dataset, cache=cache, batch_size=batch_size, workers=workers, progress=progress)
    return validate_folds(data, dataset, fold, probing, scoring, started=started)


def _check_unused(given: Mapping[str, Any], where: str) -> None:
    """Raise TrainingError for an argument that would have no effect."""
    from inspect import signature

    from medimg.errors import TrainingError

    parameters = signature(cross_validate).parameters
    unused = [name for name, value in given.items() if not _is_equal(value, parameters[name].default)]
    if unused:
        raise TrainingError(f"{unused[0]}= has no effect {where}: leave it out")


def _is_equal(value: object, other: object) -> bool:
    """Whether values are of one type and equal, of which arrays and tables are none."""
    return value is other or (type(value) is type(other) and bool(value == other))


def _validate_trained_folds(
    model: TransferClassifier,
    dataset: ImageDataset,
    training: FoldTraining,
    scoring: ScoringConfig,
    *,
    folds: int,
    subgroups: Subgroups | None,
    started: float,
) -> CrossValidation:
    """Fine-tune a model without each fold, predict that fold, and score the out-of-fold probabilities."""
    from medimg.data.leakage.check_leaks import check_types
    from medimg.data.splits.kfold import assign_folds, check_folds
    from medimg.evaluation.subgroups import find_subgroups

    check_types(dataset)
    check_folds(dataset, folds)
    check_units(dataset, scoring.unit)
    groups = find_subgroups(dataset, subgroups)
    fold = assign_folds(np.asarray(dataset.labels), dataset.patients, dataset.task, folds, scoring.seed)
    trained = training.run(model, dataset, fold)
    probabilities = np.zeros((len(fold), len(dataset.classes)))
    for one in trained:
        probabilities[one.held_out] = one.probabilities
    scored = _score(
        probabilities,
        dataset,
        fold,
        scoring,
        settings=[float(one.fit.best_epoch) for one in trained],
        method="fine_tune",
        classes=tuple(dataset.classes),
        started=started,
    )
    return replace(
        scored,
        report=_make_report(
            model,
            dataset,
            probabilities,
            training=training,
            trained=trained,
            scoring=scoring,
            groups=groups,
        ),
        fits=tuple(one.fit for one in trained),
        models=tuple(one.model for one in trained if one.model is not None),
        seconds=time.perf_counter() - started,
    )


def _make_report(
    model: TransferClassifier,
    dataset: ImageDataset,
    probabilities: NDArray[np.float64],
    *,
    training: FoldTraining,
    trained: Sequence[TrainedFold],
    scoring: ScoringConfig,
    groups: Mapping[str, Sequence[str]],
) -> Report:
    """Return the report of out-of-fold probabilities (n, K)."""
    from medimg.evaluation.build_report import ReportSettings, build_report
    from medimg.evaluation.evaluate import describe_model
    from medimg.evaluation.report.example_images import to_pixels

    count = len(trained)
    settings = training.describe()
    facts = describe_model(model)
    # the model given is only what all folds start from
    facts["model"] = {name: value for name, value in facts["model"].items() if name != "digest"}
    facts["ranges"] = None
    facts["training"] = {"folds": count, **settings}
    facts["calibration"] = {"folds": count} if settings["calibrate"] else None
    return build_report(
        dataset,
        probabilities,
        ReportSettings(
            unit=scoring.unit,
            ci=scoring.ci,
            ci_method="bootstrap",
            n_resamples=scoring.n_resamples,
            seed=scoring.seed,
            salt=None,
        ),
        groups=groups,
        facts=facts,
        notes=[
            f"Out-of-fold predictions of {count} models, each fine-tuned without the patients that it "
            "predicts: the scores are those of this way of training, not of one model.",
            *dict.fromkeys(note for one in trained for note in one.notes),
        ],
        get_pixels=lambda item: to_pixels(dataset[item][0], model.preprocess),
    )


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
    return _score(
        probabilities,
        dataset,
        fold,
        scoring,
        settings=settings,
        method=probing.method,
        classes=probing.classes,
        started=started,
    )


def _score(
    probabilities: NDArray[np.float64],
    dataset: ImageDataset,
    fold: NDArray[np.int64],
    scoring: ScoringConfig,
    *,
    settings: Sequence[float],
    method: str,
    classes: tuple[str, ...],
    started: float,
) -> CrossValidation:
    """Score out-of-fold probabilities (n, K)."""
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
        method=method,
        unit=scoring.unit,
        classes=classes,
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
