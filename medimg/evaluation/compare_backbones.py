"""Choosing a backbone: each one's embeddings, cross-validated by the same folds of patients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg._validation import check_whole_number
from medimg.errors import DatasetError, MedimgError
from medimg.evaluation.aggregation import check_units
from medimg.evaluation.cross_validation import Scoring, default_unit, validate_folds
from medimg.metrics.bootstrap import Estimate, interval

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    import torch
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from medimg.data.dataset import ImageDataset
    from medimg.evaluation.aggregation import Unit
    from medimg.evaluation.cross_validation import CrossValidation
    from medimg.models.backbones.weights import WeightsChoice
    from medimg.models.classifier import TransferClassifier
    from medimg.training.linear_probe import ProbeSearch

__all__ = ["Candidate", "Comparison", "compare"]

_TIMED_S: Final = 1.0
_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """
    One backbone.

    Attributes
    ----------
    backbone : str
        Its name.
    scores : CrossValidation or None
        Of a head on its embeddings; None where it failed.
    images_per_second : float
        Embedded by the network from pictures in memory; NaN where it failed.
    parameters, megabytes : float
        Millions of parameters, and the size of them and its statistics, without the head.
    reason : str
        Why it failed; empty where it did not.
    """

    backbone: str
    scores: CrossValidation | None = None
    images_per_second: float = float("nan")
    parameters: float = float("nan")
    megabytes: float = float("nan")
    reason: str = ""


@set_module("medimg")
@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """
    Several backbones on one data set.

    Attributes
    ----------
    candidates : tuple of Candidate
        Best first, those that failed last.
    ci : float
        Share of the resamples of patients between the ends of each interval.
    device : str
        What they were timed on.
    """

    candidates: tuple[Candidate, ...]
    ci: float
    device: str

    @property
    def best(self) -> Candidate:
        """
        The one with the highest AUROC.

        Raises
        ------
        DatasetError
            If all failed.
        """
        if self.candidates[0].scores is None:
            raise DatasetError(f"no backbone could be scored; the first says: {self.candidates[0].reason}")
        return self.candidates[0]

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row for each backbone.

        Columns are ``backbone``; ``auroc``, ``low`` and ``high``; ``behind``, ``behind_low`` and
        ``behind_high``: what it lacks to the best on the same patients, with its interval over the same
        resamples; ``balanced_accuracy`` (multiclass); ``f1_macro``; ``images_per_second``; ``parameters``
        (millions); ``megabytes``; and ``reason`` of those that failed.
        """
        import pandas as pd

        best = self.candidates[0].scores
        return pd.DataFrame([_row(one, best, self.ci) for one in self.candidates])

    def plot(self, axes: Axes | None = None) -> Axes:
        """
        Draw the AUROC, with its interval, against the images per second.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Where to; a new figure by default.

        Returns
        -------
        matplotlib Axes
            ``axes.figure.savefig(path)`` writes it to a file.
        """
        from medimg.evaluation.report.plots import plot_speed

        return plot_speed(self.candidates, self.ci, self.device, axes)

    def __repr__(self) -> str:
        lines = [
            f"  {one.backbone}: AUROC {one.scores.metrics['auroc']}, {one.images_per_second:.3g} images/s"
            if one.scores is not None
            else f"  {one.backbone}: {one.reason}"
            for one in self.candidates
        ]
        return "\n".join([f"Comparison({len(self.candidates)} backbones)", *lines])


def _row(one: Candidate, best: CrossValidation | None, ci: float) -> dict[str, Any]:
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    scores, behind = nothing, nothing
    more: dict[str, float] = {}
    if one.scores is not None and best is not None:
        scores = one.scores.metrics["auroc"]
        lacks = best.metrics["auroc"].value - scores.value
        differences = best.samples - one.scores.samples
        behind = interval(lacks, differences, ci, n_patients=one.scores.n_patients)
        more = {
            name: one.scores.metrics[name].value
            for name in ("balanced_accuracy", "f1_macro")
            if name in one.scores.metrics
        }
    return {
        "backbone": one.backbone,
        "auroc": scores.value,
        "low": scores.low,
        "high": scores.high,
        "behind": behind.value,
        "behind_low": behind.low,
        "behind_high": behind.high,
        **more,
        "images_per_second": one.images_per_second,
        "parameters": one.parameters,
        "megabytes": one.megabytes,
        "reason": one.reason,
    }


@set_module("medimg")
def compare(
    backbones: Sequence[str],
    dataset: ImageDataset,
    *,
    weights: WeightsChoice | Mapping[str, WeightsChoice] = "DEFAULT",
    folds: int = 5,
    C: float | Sequence[float] | None = None,
    inner_folds: int = 3,
    balance: str | None = "loss",
    pool: str = "mean",
    unit: Unit | None = None,
    ci: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    cache: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    num_workers: int = 0,
    device: str | torch.device | None = None,
    accept_license: bool = False,
    progress: bool = False,
) -> Comparison:
    """
    Compare backbones by the head that logistic regression fits on their embeddings.

    Each one takes the data set's pictures, normalized as its own weights ask for; all are cross-validated by
    the same folds of patients. One that can't be had, or takes no such pictures, is a row with the reason.

    Parameters
    ----------
    backbones : sequence of str
        Names, as :class:`medimg.TransferClassifier` takes them.
    dataset : ImageDataset
        Read once; its recipe, except for mean and standard deviation, is that of all.
    weights : str, path, None, or mapping of str to these
        As :class:`medimg.TransferClassifier` takes them; a mapping gives each backbone's, "DEFAULT" for those
        that it does not name.
    folds, C, inner_folds, balance, unit, ci, n_resamples, seed
        As :func:`medimg.cross_validate` takes them.
    pool : {"mean", "max"}
        How bags are pooled.
    cache : path-like, optional
        A folder where embeddings are kept; see :func:`medimg.embed`.
    batch_size, num_workers : int
        Pictures at once; processes that read.
    device : str or torch.device, optional
        Where to compute; the CPU by default.
    accept_license : bool
        Whether weights under a license of their own may be used.
    progress : bool
        Whether to show progress bars.

    Returns
    -------
    Comparison

    Raises
    ------
    DatasetError
        If no backbone is named, or folds can't be.
    LeakageError
        If there are fewer patients than folds.
    TrainingError
        If a setting is unsound, or a class has no example.

    Notes
    -----
    Images per second are those of the network alone, from pictures in memory, in batches of `batch_size`.
    Several backbones compared on one data set: the best one's score is a little too high for what it will be
    on other patients.

    Examples
    --------
    >>> found = medimg.compare(["resnet18", "densenet121"], dataset, cache="features")  # doctest: +SKIP
    >>> found.to_pandas()[["backbone", "auroc", "images_per_second"]]  # doctest: +SKIP
    """
    from medimg.data.splits.kfold import assign_folds, check_folds
    from medimg.training.fit_head import check_balance
    from medimg.training.linear_probe import ProbeSearch
    from medimg.training.losses import check_labels

    names = _checked_names(backbones)
    probing = ProbeSearch(
        dataset.task,
        dataset.classes,
        "logistic",
        C,
        inner_folds=inner_folds,
        balanced=check_balance(balance),
        seed=check_whole_number("seed", seed),
    )
    scoring = Scoring(unit or default_unit(dataset), ci, n_resamples, seed)
    check_labels(dataset.labels, dataset.classes, dataset.task)
    check_folds(dataset, folds)
    check_units(dataset, scoring.unit)
    fold = assign_folds(np.asarray(dataset.labels), dataset.patients, dataset.task, folds, seed)
    options: dict[str, Any] = {"batch_size": batch_size, "num_workers": num_workers, "progress": progress}
    trial = _Trial(dataset, fold, probing, scoring, {"cache": cache, **options}, pool, accept_license, device)
    found = [trial.of(name, _weights_of(weights, name)) for name in names]
    ranked = sorted(found, key=lambda one: -_auroc(one))
    return Comparison(tuple(ranked), ci, str(device or "cpu"))


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """What all backbones have in common."""

    dataset: ImageDataset
    fold: NDArray[np.int64]
    probing: ProbeSearch
    scoring: Scoring
    options: dict[str, Any] = field(repr=False)
    pool: str
    accept_license: bool
    device: Any

    def of(self, name: str, weights: WeightsChoice) -> Candidate:
        """Try one backbone."""
        import torch

        from medimg.training.checks import check_data
        from medimg.training.fit_head import embed_items

        started = time.perf_counter()
        try:
            model = self._model(name, weights)
            dataset = self.dataset.with_preprocess(model.preprocess)
            check_data(model, dataset, None)
            data = embed_items(model, dataset, **self.options)
            scores = validate_folds(data, dataset, self.fold, self.probing, self.scoring, started=started)
        except MedimgError as error:
            return Candidate(name, reason=f"{type(error).__name__}: {error}")
        except (MemoryError, torch.OutOfMemoryError):
            return Candidate(name, reason="memory does not suffice: lower batch_size")
        state = model.backbone.state_dict().values()
        return Candidate(
            name,
            scores,
            _images_per_second(model, self.options["batch_size"]),
            sum(p.numel() for p in model.backbone.parameters()) / _MEGA,
            sum(value.nbytes for value in state) / _MEGA,
        )

    def _model(self, name: str, weights: WeightsChoice) -> TransferClassifier:
        from medimg.models.backbones.architecture import check_backbone, default_recipe
        from medimg.models.backbones.weights import resolve_weights
        from medimg.models.classifier import TransferClassifier

        check_backbone(name)
        source = resolve_weights(name, weights, accept_license=self.accept_license)
        asked = default_recipe(name, source)
        model = TransferClassifier(
            name,
            classes=self.dataset.classes,
            weights=weights,
            preprocess=self.dataset.preprocess.replace(mean=asked.mean, std=asked.std),
            task=self.dataset.task,
            pool=self.pool,  # type: ignore[arg-type]  # what is none of the choices is refused there
            accept_license=self.accept_license,
            progress=self.options["progress"],
        )
        return model if self.device is None else model.to(self.device)


def _images_per_second(model: TransferClassifier, batch_size: int) -> float:
    """Time a network on pictures in memory, after one batch that is not counted."""
    import torch

    from medimg.features.extractor import feature_extractor

    pictures = torch.rand(batch_size, 3, *model.preprocess.hw, generator=torch.Generator().manual_seed(0))
    times: list[float] = []
    with feature_extractor(model) as network:
        network(pictures)
        began = time.perf_counter()
        while not times or time.perf_counter() - began < _TIMED_S:
            before = time.perf_counter()
            network(pictures)
            times.append(time.perf_counter() - before)
    return batch_size / float(np.median(times))


def _checked_names(backbones: object) -> tuple[str, ...]:
    if isinstance(backbones, str) or not isinstance(backbones, list | tuple) or not backbones:
        raise DatasetError(f"backbones is a list of names, such as ['resnet18']; found {backbones!r}")
    names = tuple(dict.fromkeys(backbones))
    if not all(isinstance(name, str) for name in names):
        raise DatasetError(f"backbones is a list of names; found {backbones!r}")
    return names


def _weights_of(weights: Any, name: str) -> Any:
    return weights.get(name, "DEFAULT") if isinstance(weights, Mapping) else weights


def _auroc(one: Candidate) -> float:
    value = float("nan") if one.scores is None else one.scores.metrics["auroc"].value
    return float("-inf") if np.isnan(value) else value
