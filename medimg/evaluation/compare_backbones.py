"""Comparison of backbones by linear probes on their embeddings, with the same folds of patients."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from medimg._public import set_module
from medimg._validation import check_whole_number
from medimg.errors import DatasetError, MedimgError, TrainingError
from medimg.evaluation.aggregation import check_units
from medimg.evaluation.cross_validation import ScoringConfig, default_unit, validate_folds
from medimg.metrics.bootstrap import Estimate, compute_interval

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd
    import torch
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from medimg.core.progress import Progress
    from medimg.data.dataset import ImageDataset
    from medimg.evaluation.aggregation import Unit
    from medimg.evaluation.cross_validation import CrossValidation
    from medimg.models.backbones.weights import WeightsChoice
    from medimg.models.classifier import TransferClassifier
    from medimg.preprocessing.preprocess import RecipeFields
    from medimg.training.linear_probe import ProbeSearch

__all__ = ["Candidate", "Comparison", "compare"]

_TIMED_S: Final = 1.0
_MEGA: Final = 1e6


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """
    A backbone in a :class:`medimg.Comparison`.

    Attributes
    ----------
    backbone : str
        Name of the backbone.
    scores : CrossValidation or None
        Scores of a head on its embeddings; None if it failed.
    images_per_second : float
        Speed of embedding images in memory; NaN if it failed.
    parameters, megabytes : float
        Millions of parameters, and the size of parameters and buffers, without the head.
    reason : str
        Reason for the failure; empty if it did not fail.
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
    Result of :func:`medimg.compare`.

    Attributes
    ----------
    candidates : tuple of Candidate
        Backbones, best first, those that failed last.
    ci : float
        Confidence level of the intervals.
    device : str
        Device on which speed was measured.
    """

    candidates: tuple[Candidate, ...]
    ci: float
    device: str

    @property
    def best(self) -> Candidate:
        """
        Backbone with the highest AUROC.

        Raises
        ------
        DatasetError
            If all failed.
        """
        if self.candidates[0].scores is None:
            raise DatasetError(f"no backbone could be scored; first error: {self.candidates[0].reason}")
        return self.candidates[0]

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row per backbone.

        Columns are ``backbone``; ``auroc``, ``low`` and ``high``; ``behind``, ``behind_low`` and
        ``behind_high``: the gap to the best backbone on the same patients, with its interval over the same
        resamples, missing for the best itself; ``balanced_accuracy`` (multiclass); ``f1_macro``;
        ``images_per_second``; ``parameters`` (millions); ``megabytes``; and ``reason`` of those that failed.
        """
        import pandas as pd

        best = self.candidates[0].scores
        return pd.DataFrame([_make_row(one, best, self.ci) for one in self.candidates])

    def plot(self, axes: Axes | None = None) -> Axes:
        """
        Draw the AUROC, with its compute_interval, against the images per second.

        Parameters
        ----------
        axes : matplotlib Axes, optional
            Axes to draw on; a new figure by default.

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


def _make_row(one: Candidate, best: CrossValidation | None, ci: float) -> dict[str, Any]:
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    scores, behind = nothing, nothing
    more: dict[str, float] = {}
    if one.scores is not None and best is not None:
        scores = one.scores.metrics["auroc"]
        lacks = best.metrics["auroc"].value - scores.value
        differences = best.samples - one.scores.samples
        behind = compute_interval(lacks, differences, ci, n_patients=one.scores.n_patients)
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
    workers: int | None = None,
    device: str | torch.device | None = None,
    accept_license: bool = False,
    progress: Progress = "auto",
) -> Comparison:
    """
    Compare backbones by logistic regression on their embeddings.

    Images are normalized as the weights of each backbone require; all backbones are cross-validated by the
    same folds of patients. A backbone that is not available, or does not accept such images, is a row with
    the reason.

    Parameters
    ----------
    backbones : sequence of str
        Names of backbones, as for :class:`medimg.TransferClassifier`.
    dataset : ImageDataset
        Labeled images, read once; all backbones use its preprocessing, except for mean and standard
        deviation.
    weights : str, path, None, or mapping of str to these
        Weights, as for :class:`medimg.TransferClassifier`; a mapping gives those of each backbone, "DEFAULT"
        for backbones not in it.
    folds, C, inner_folds, balance, unit, ci, n_resamples, seed
        Settings of :func:`medimg.cross_validate`.
    pool : {"mean", "max"}
        Pooling of series.
    cache : path-like, optional
        Folder for cached embeddings; see :func:`medimg.embed`.
    batch_size : int
        Number of images per forward pass.
    workers : int, optional
        Number of processes that read the images; by default they are read in this process.
    device : str or torch.device, optional
        Device to compute on; the CPU by default.
    accept_license : bool
        Whether weights under a license of their own may be used.
    progress : "auto" or bool
        Whether to show progress bars. "auto": in a terminal or a notebook, after 1 s.

    Returns
    -------
    Comparison

    Raises
    ------
    DatasetError
        If no backbone is given, or the folds are invalid.
    LeakageError
        If there are fewer patients than folds.
    TrainingError
        If a setting is invalid, or a class has no example.

    Notes
    -----
    Images per second are measured for the network alone, with images in memory, in batches of `batch_size`.
    Selecting the best of several backbones on one dataset is optimistic: its score on other patients will be
    slightly lower.

    Examples
    --------
    >>> found = medimg.compare(["resnet18", "densenet121"], dataset, cache="features")  # doctest: +SKIP
    >>> found.to_pandas()[["backbone", "auroc", "images_per_second"]]  # doctest: +SKIP
    """
    from medimg.data.splits.kfold import assign_folds, check_folds
    from medimg.models.backbones.architecture import backbone_names
    from medimg.models.backbones.registry import registered_names
    from medimg.models.data_checks import check_images
    from medimg.training.class_weights import check_labels
    from medimg.training.fit_head import check_balance
    from medimg.training.linear_probe import ProbeSearch

    names = _check_names(backbones)
    check_images(dataset, "the dataset", labels=True, error=DatasetError)
    probing = ProbeSearch(
        dataset.task,
        dataset.classes,
        "logistic",
        C,
        inner_folds=inner_folds,
        balanced=check_balance(balance),
        seed=check_whole_number("seed", seed),
    )
    scoring = ScoringConfig(unit=unit or default_unit(dataset), ci=ci, n_resamples=n_resamples, seed=seed)
    check_labels(dataset.labels, dataset.classes, dataset.task)
    check_folds(dataset, folds)
    check_units(dataset, scoring.unit)
    fold = assign_folds(np.asarray(dataset.labels), dataset.patients, dataset.task, folds, seed)
    options: dict[str, Any] = {"batch_size": batch_size, "workers": workers, "progress": progress}
    trial = _Trial(dataset, fold, probing, scoring, {"cache": cache, **options}, pool, accept_license, device)
    named = weights if isinstance(weights, Mapping) else dict.fromkeys(names, weights)
    # weights of backbones that are not compared this time are no mistake
    known = {*names, *backbone_names(), *registered_names()}
    others = [str(name) for name in named if name not in known and ":" not in str(name)]
    if others:
        raise TrainingError(
            f"weights= names {', '.join(map(repr, others))}, which are no backbones; expected some of "
            f"{', '.join(map(repr, names))}: correct the names"
        )
    found = [trial.run(name, named.get(name, "DEFAULT")) for name in names]
    ranked = sorted(found, key=_rank)
    return Comparison(tuple(ranked), ci, str(device or "cpu"))


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """Data and settings that all backbones share."""

    dataset: ImageDataset
    fold: NDArray[np.int64]
    probing: ProbeSearch
    scoring: ScoringConfig
    options: dict[str, Any] = field(repr=False)
    pool: str
    accept_license: bool
    device: Any

    def run(self, name: str, weights: WeightsChoice) -> Candidate:
        """Cross-validate a backbone and measure its speed."""
        import torch

        from medimg.training.checks import check_data
        from medimg.training.fit_head import embed_items

        started = time.perf_counter()
        try:
            model = self._build_model(name, weights)
            dataset = self.dataset.with_preprocess(model.preprocess)
            check_data(model, dataset, None)
            data = embed_items(model, dataset, **self.options)
            scores = validate_folds(data, dataset, self.fold, self.probing, self.scoring, started=started)
        except MedimgError as error:
            return Candidate(name, reason=f"{type(error).__name__}: {error}")
        except (MemoryError, torch.OutOfMemoryError):
            return Candidate(name, reason="not enough memory: use a smaller batch_size")
        state = model.backbone.state_dict().values()
        return Candidate(
            name,
            scores,
            _measure_speed(model, self.options["batch_size"]),
            sum(p.numel() for p in model.backbone.parameters()) / _MEGA,
            sum(value.nbytes for value in state) / _MEGA,
        )

    def _build_model(self, name: str, weights: WeightsChoice) -> TransferClassifier:
        from medimg.models.backbones.architecture import default_recipe, find_backbone, resolve_weights
        from medimg.models.classifier import TransferClassifier

        network = find_backbone(name)
        source = resolve_weights(network, weights, accept_license=self.accept_license)
        asked = default_recipe(network, source)
        fields: RecipeFields = {"mean": asked.mean, "std": asked.std}
        if asked.n_channels != self.dataset.preprocess.n_channels:
            fields["channels"] = asked.channels
        model = TransferClassifier(
            name,
            classes=self.dataset.classes,
            weights=weights,
            preprocess=self.dataset.preprocess.replace(**fields),
            task=self.dataset.task,
            pool=self.pool,  # type: ignore[arg-type]  # what is none of the choices is refused there
            accept_license=self.accept_license,
            progress=self.options["progress"],
        )
        return model if self.device is None else model.to(self.device)


def _measure_speed(model: TransferClassifier, batch_size: int) -> float:
    """Return images per second of a network on images in memory, after one batch that is not counted."""
    import torch

    from medimg.features.extractor import feature_extractor

    images = torch.rand(batch_size, *model.preprocess.image_shape, generator=torch.Generator().manual_seed(0))
    times: list[float] = []
    with feature_extractor(model) as network:
        network(images)
        began = time.perf_counter()
        while not times or time.perf_counter() - began < _TIMED_S:
            before = time.perf_counter()
            network(images)
            times.append(time.perf_counter() - before)
    return batch_size / float(np.median(times))


def _check_names(backbones: object) -> tuple[str, ...]:
    if isinstance(backbones, str) or not isinstance(backbones, list | tuple) or not backbones:
        raise DatasetError(f"backbones must be a list of names, such as ['resnet18']; found {backbones!r}")
    names = tuple(dict.fromkeys(backbones))
    if not all(isinstance(name, str) for name in names):
        raise DatasetError(f"backbones must be a list of names; found {backbones!r}")
    return names


def _rank(one: Candidate) -> float:
    """Return a key that sorts by descending AUROC, undefined and failed ones last."""
    value = float("nan") if one.scores is None else one.scores.metrics["auroc"].value
    return float("inf") if np.isnan(value) else -value
