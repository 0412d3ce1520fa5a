"""Classifiers on embeddings, with their setting selected by patient-wise folds within the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, get_args

import numpy as np

from medimg._validation import check_choice, check_number, check_whole_number
from medimg.core.progress import progress_bar
from medimg.data.splits.kfold import assign_folds, count_patients_by_class, split_by_fold
from medimg.errors import TrainingError
from medimg.metrics.validation_scores import mean_auroc
from medimg.models.module_mode import with_gradients
from medimg.training._logistic_regression import LinearProbe, log_loss
from medimg.training.class_weights import class_weights

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from medimg.core.progress import Progress

__all__ = ["STRENGTHS", "LabeledEmbeddings", "Method", "ProbeResult", "ProbeSearch"]

Method: TypeAlias = Literal["logistic", "sgd", "knn"]

#: Default values of C.
STRENGTHS: Final = tuple(float(f"{c:.3g}") for c in np.logspace(-4, 2, 13))
#: Default numbers of neighbors.
NEIGHBORS: Final = (1, 3, 5, 11, 21, 51)
_PATIENCE: Final = 2


class Predictor(Protocol):
    """A fitted classifier of embeddings."""

    def probabilities(self, x: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Return probabilities (n, K) of embeddings (n, F)."""


@dataclass(frozen=True, slots=True, eq=False)
class LabeledEmbeddings:
    """Embeddings (n, F) float32 with labels, (n,) class indices or (n, K) indicators, and patients (n,)."""

    x: NDArray[np.float32]
    labels: NDArray[Any]
    patients: Sequence[str]

    def select(self, indices: NDArray[np.int64]) -> LabeledEmbeddings:
        """Return the items at some indices."""
        return LabeledEmbeddings(self.x[indices], self.labels[indices], [self.patients[n] for n in indices])


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """Fitted classifier, its setting (C or k), and the held-out ``loss`` and ``auroc`` of each setting."""

    fit: Predictor
    setting: float
    tried: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ProbeSearch:
    """Fit and selection of a probe; the arguments are those of :func:`medimg.cross_validate`."""

    task: str
    classes: tuple[str, ...]
    method: str = "logistic"
    #: C or number of neighbors, or several to select from.
    setting: float | Sequence[float] | None = None
    inner_folds: int = 3
    #: Whether classes are weighted inversely to their frequency, in fitting and selection.
    balanced: bool = False
    #: Seed for inner folds and the order of batches.
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        check_whole_number("inner_folds", self.inner_folds, least=2)
        self.settings()

    @property
    def name(self) -> str:
        """Name of the setting."""
        return "k" if self.method == "knn" else "C"

    def settings(self) -> tuple[float, ...]:
        """Return the values to select from, in ascending order; raise TrainingError if one isn't positive."""
        if self.setting is None:
            return tuple(map(float, NEIGHBORS)) if self.method == "knn" else STRENGTHS
        given = self.setting if isinstance(self.setting, list | tuple | np.ndarray) else (self.setting,)
        values = sorted({check_number(self.name, value, above=0) for value in given})
        if not values:
            raise TrainingError(f"{self.name} must be a number above 0, or several; found {self.setting!r}")
        return tuple(values)

    @with_gradients
    def fit(
        self,
        data: LabeledEmbeddings,
        held_out: LabeledEmbeddings | None = None,
        *,
        progress: Progress = False,
    ) -> ProbeResult:
        """
        Select the setting by held-out data or else by inner folds, and fit on all `data`.

        Raises TrainingError if a class has too few patients for inner folds.
        """
        settings = self.settings()
        if len(settings) == 1 and held_out is None:
            return ProbeResult(next(self._fit_path(data, settings)), settings[0], ())
        tried = self._try_settings(data, held_out, settings, progress)
        chosen = self._select(tried)
        # warm-started from stronger penalties, as in the selection
        *_, fit = self._fit_path(data, [value for value in settings if value <= chosen])
        return ProbeResult(fit, chosen, tuple(tried))

    def _select(self, tried: Sequence[dict[str, Any]]) -> float:
        """
        Return the smallest setting whose loss is the lowest, or less than its standard error above it.

        The one-standard-error rule (Breiman et al., Classification and Regression Trees, 1984).
        """
        best = min(tried, key=lambda row: (row["loss"], row[self.name]))
        limit = best["loss"] + (best["standard_error"] if self.method != "knn" else 0.0)
        return float(min(row[self.name] for row in tried if row["loss"] <= limit))

    def _try_settings(
        self,
        data: LabeledEmbeddings,
        held_out: LabeledEmbeddings | None,
        settings: Sequence[float],
        progress: Progress,
    ) -> list[dict[str, Any]]:
        """Return a row of scores for each setting, in ascending order until the loss has risen."""
        if held_out is not None:
            parts = [(data, held_out)]
        else:
            folds = split_by_fold(self._assign_folds(data))
            parts = [(data.select(train), data.select(test)) for train, test in folds]
        truth = np.concatenate([test.labels for _, test in parts])
        patients = [patient for _, test in parts for patient in test.patients]
        weights = class_weights(data.labels, self.task, len(self.classes), self.balanced)
        tried: list[dict[str, Any]] = []
        paths = [self._fit_path(train, settings) for train, _ in parts]
        steps = zip(settings, zip(*paths, strict=True), strict=False)
        for setting, fits in progress_bar(
            steps, desc=f"selecting {self.name}", unit="value", progress=progress, total=len(settings)
        ):
            proba = np.concatenate(
                [fit.probabilities(test.x) for fit, (_, test) in zip(fits, parts, strict=True)]
            )
            area = mean_auroc(truth, proba, self.task)
            loss, error = log_loss(truth, proba, self.task, weights, patients)
            # neighbors give probabilities of 0, whose log loss is meaningless
            rank = -area if self.method == "knn" and area is not None else loss
            row = {"loss": rank, "log_loss": loss, "standard_error": error, "auroc": area}
            tried.append({self.name: setting, **row})
            if self.method != "knn" and _has_risen(tried):
                break
        return tried

    def _assign_folds(self, data: LabeledEmbeddings) -> NDArray[np.int64]:
        """Return the inner fold (n,) of each item."""
        counts = count_patients_by_class(data.labels, data.patients, self.task, len(self.classes))
        least = int(counts.min())
        if least < 2:
            name = self.classes[int(counts.argmin())]
            raise TrainingError(
                f"class {name!r} has {least} patient(s) in the training data, too few to select {self.name} "
                f"by inner folds: pass {self.name}="
            )
        folds = min(self.inner_folds, least)
        return assign_folds(data.labels, data.patients, self.task, folds, self.seed)

    def _fit_path(self, data: LabeledEmbeddings, settings: Iterable[float]) -> Iterator[Predictor]:
        """Yield a classifier for each setting."""
        if self.method == "knn":
            return _fit_neighbors(data, settings, self.task, len(self.classes))
        probe = LinearProbe(self.task, len(self.classes), self.method, self.balanced, self.seed)
        return iter(probe.path(data.x, data.labels, settings))


def _has_risen(tried: Sequence[dict[str, Any]]) -> bool:
    """Return whether the loss is past its minimum; it falls and rises once as C grows."""
    losses = [row["loss"] for row in tried]
    return len(losses) - 1 - int(np.argmin(losses)) >= _PATIENCE


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """k nearest neighbors by the cosine distance of standardized embeddings."""

    search: Any
    scaler: Any
    #: (n, K) labels of the training data.
    indicators: NDArray[np.float64]
    k: int

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the fraction of neighbors with each label, (n, K)."""
        near = self.search.kneighbors(self.scaler.transform(x), self.k, return_distance=False)
        return np.asarray(self.indicators[near].mean(axis=1))


def _fit_neighbors(
    data: LabeledEmbeddings, settings: Iterable[float], task: str, outputs: int
) -> Iterator[Neighbors]:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(scaler.fit_transform(data.x))
    indicators = data.labels[:, None] == np.arange(outputs) if task == "multiclass" else data.labels > 0.5
    for setting in settings:
        yield Neighbors(search, scaler, indicators.astype(np.float64), min(int(setting), len(data.x)))
