"""Simple classifiers on embeddings, with their one setting chosen by patient-wise folds within the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, get_args

import numpy as np

from medimg._validation import check_choice, check_number, check_whole_number
from medimg.data.splits.kfold import assign_folds, count_patients_by_class, split_by_fold
from medimg.errors import TrainingError
from medimg.metrics.validation_scores import mean_auroc
from medimg.training._logistic_regression import LinearFit, LinearProbe, class_weights, log_loss

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["STRENGTHS", "Labeled", "Method", "ProbeResult", "ProbeSearch"]

Method: TypeAlias = Literal["logistic", "sgd", "knn"]

#: The values of C that are tried.
STRENGTHS: Final = tuple(float(f"{c:.3g}") for c in np.logspace(-4, 2, 13))
#: The numbers of neighbors that are tried.
NEIGHBORS: Final = (1, 3, 5, 11, 21, 51)
_PATIENCE: Final = 2


class Predictor(Protocol):
    """What gives probabilities of embeddings."""

    def probabilities(self, x: NDArray[np.float32], /) -> NDArray[np.float64]:
        """Return (n, K) for (n, F)."""


@dataclass(frozen=True, slots=True, eq=False)
class Labeled:
    """
    Embeddings with what is known of them.

    Attributes
    ----------
    x : numpy.ndarray
        (n, F) float32.
    labels : numpy.ndarray
        (n,) class indices or (n, K) indicators.
    patients : sequence of str
        (n,).
    """

    x: NDArray[np.float32]
    labels: NDArray[Any]
    patients: Sequence[str]

    def part(self, indices: NDArray[np.int64]) -> Labeled:
        """Return some of them."""
        return Labeled(self.x[indices], self.labels[indices], [self.patients[n] for n in indices])


@dataclass(frozen=True, slots=True, eq=False)
class ProbeResult:
    """
    A classifier, and how its setting was chosen.

    Attributes
    ----------
    fit : Predictor
        Fitted on all of the data.
    setting : float
        C, or the number of neighbors.
    tried : tuple of dict
        For each setting tried its ``loss`` and ``auroc`` on data held out; empty if it was given.
    """

    fit: Predictor
    setting: float
    tried: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class ProbeSearch:
    """
    How to fit and choose.

    Parameters
    ----------
    task : {"multiclass", "multilabel"}
        What labels are.
    classes : tuple of str
        Names, K of them.
    method : {"logistic", "sgd", "knn"}
        See :func:`medimg.cross_validate`.
    setting : float or sequence of float, optional
        C or the number of neighbors, or several to choose from.
    inner_folds : int
        To choose by.
    balanced : bool
        Whether classes weigh alike, in fitting and choosing.
    seed : int
        Of inner folds and of the order of batches.
    """

    task: str
    classes: tuple[str, ...]
    method: str = "logistic"
    setting: float | Sequence[float] | None = None
    inner_folds: int = 3
    balanced: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, get_args(Method))
        check_whole_number("inner_folds", self.inner_folds, least=2)
        self.settings()

    @property
    def name(self) -> str:
        """What the setting is called."""
        return "k" if self.method == "knn" else "C"

    def settings(self) -> tuple[float, ...]:
        """
        Return what there is to choose from, in ascending order.

        Raises
        ------
        TrainingError
            If one is no positive number, or there is none.
        """
        if self.setting is None:
            return tuple(map(float, NEIGHBORS)) if self.method == "knn" else STRENGTHS
        given = self.setting if isinstance(self.setting, list | tuple | np.ndarray) else (self.setting,)
        values = sorted({check_number(self.name, value, above=0) for value in given})
        if not values:
            raise TrainingError(f"{self.name} must be a number above 0, or several; found {self.setting!r}")
        return tuple(values)

    def fit(self, data: Labeled, held_out: Labeled | None = None) -> ProbeResult:
        """
        Choose the setting, by other data if there are any, else by inner folds, and fit on all.

        Raises
        ------
        TrainingError
            If a class has too few patients to choose by inner folds.
        """
        settings = self.settings()
        if len(settings) == 1 and held_out is None:
            return ProbeResult(next(self._path(data, settings)), settings[0], ())
        tried = self._tried(data, held_out, settings)
        best = min(tried, key=lambda row: (row["loss"], row[self.name]))[self.name]
        # begun from stronger penalties, as it was when it was chosen
        *_, fit = self._path(data, [value for value in settings if value <= best])
        return ProbeResult(fit, best, tuple(tried))

    def _tried(
        self, data: Labeled, held_out: Labeled | None, settings: Sequence[float]
    ) -> list[dict[str, Any]]:
        if held_out is not None:
            parts, truth = [(data, held_out)], held_out.labels
        else:
            folds = split_by_fold(self._inner(data))
            parts = [(data.part(train), data.part(test)) for train, test in folds]
            truth = np.concatenate([test.labels for _, test in parts])
        weights = class_weights(data.labels, self.task, len(self.classes), self.balanced)
        tried: list[dict[str, Any]] = []
        paths = [self._path(train, settings) for train, _ in parts]
        for setting, fits in zip(settings, zip(*paths, strict=True), strict=False):
            proba = np.concatenate(
                [fit.probabilities(test.x) for fit, (_, test) in zip(fits, parts, strict=True)]
            )
            area = mean_auroc(truth, proba, self.task)
            loss = log_loss(truth, proba, self.task, weights)
            # neighbors give probabilities of 0, whose logarithm says nothing
            rank = -area if self.method == "knn" and area is not None else loss
            tried.append({self.name: setting, "loss": rank, "log_loss": loss, "auroc": area})
            if self.method != "knn" and _has_risen(tried):
                break
        return tried

    def _inner(self, data: Labeled) -> NDArray[np.int64]:
        counts = count_patients_by_class(data.labels, data.patients, self.task, len(self.classes))
        least = int(counts.min())
        if least < 2:
            name = self.classes[int(counts.argmin())]
            raise TrainingError(
                f"class {name!r} has {least} patient(s) among the training data: too few to choose "
                f"{self.name} by folds within them; pass {self.name}="
            )
        folds = min(self.inner_folds, least)
        return assign_folds(data.labels, data.patients, self.task, folds, self.seed)

    def _path(self, data: Labeled, settings: Iterable[float]) -> Iterator[Predictor]:
        if self.method == "knn":
            return _neighbors(data, settings, self.task, len(self.classes))
        probe = LinearProbe(self.task, len(self.classes), self.method, self.balanced, self.seed)
        return iter(probe.path(data.x, data.labels, settings))


def _has_risen(tried: Sequence[dict[str, Any]]) -> bool:
    """Whether the loss is past its lowest: it falls and rises once as C grows."""
    losses = [row["loss"] for row in tried]
    return len(losses) - 1 - int(np.argmin(losses)) >= _PATIENCE


@dataclass(frozen=True, slots=True, eq=False)
class Neighbors:
    """The labels of the k nearest, by the angle between embeddings standardized by the training data."""

    search: Any
    scaler: Any
    shown: NDArray[np.float64]
    k: int

    def probabilities(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return which share of the neighbors has each label: (n, K)."""
        near = self.search.kneighbors(self.scaler.transform(x), self.k, return_distance=False)
        return np.asarray(self.shown[near].mean(axis=1))


def _neighbors(data: Labeled, settings: Iterable[float], task: str, outputs: int) -> Iterator[Neighbors]:
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    search = NearestNeighbors(metric="cosine", algorithm="brute").fit(scaler.fit_transform(data.x))
    shown = data.labels[:, None] == np.arange(outputs) if task == "multiclass" else data.labels > 0.5
    for setting in settings:
        yield Neighbors(search, scaler, shown.astype(np.float64), min(int(setting), len(data.x)))


def linear_fit(chosen: ProbeResult) -> LinearFit:
    """Return the layer that was fitted; only linear methods have one."""
    assert isinstance(chosen.fit, LinearFit)
    return chosen.fit
