"""
Calibration maps fitted to validation data: temperature, Platt and vector scaling, isotonic regression.

The method is chosen by cross-validated log loss over patients.

References
----------
.. [1] Guo C, Pleiss G, Sun Y, Weinberger KQ. On calibration of modern neural networks. ICML 2017:1321-1330.
.. [2] Platt JC. Probabilistic outputs for support vector machines and comparisons to regularized likelihood
   methods. Advances in large margin classifiers 1999:61-74.
.. [3] Zadrozny B, Elkan C. Transforming classifier scores into accurate multiclass probability estimates.
   KDD 2002:694-699.
.. [4] Oron AP, Flournoy N. Centered isotonic regression. Stat Biopharm Res 2017;9:258-267.
.. [5] Hastie T, Tibshirani R, Friedman J. The elements of statistical learning. 2009, section 7.10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import numpy as np

from medimg.calibration.logit_map import METHODS, Curve, LogitMap, MapMethod, count_temperatures, find_margins
from medimg.calibration.temperature_scaling import (
    CalibrationData,
    find_highest,
    fit_temperature,
    measure_size,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["Method", "choose_map", "count_flat", "fit_map", "list_candidates"]

#: Values of ``method=``.
Method: TypeAlias = Literal["auto", "temperature", "platt", "vector", "isotonic"] | None

#: Least number of patients with a class, and of others, for methods with a bias or a curve to be tried.
_FEWEST: Final[Mapping[str, int]] = {"temperature": 1, "platt": 5, "vector": 10, "isotonic": 30}
#: Bounds of a scale, divided by the size of the logits.
_LEAST_SCALE: Final = 1e-4
_MOST_SCALE: Final = 1e3
_TINY: Final = 1e-300


def list_candidates(data: CalibrationData, patients: NDArray[np.int64]) -> list[MapMethod]:
    """Return the methods that the data, with a patient (n,) for each item, have enough patients for."""
    rarer = _count_patients(data, patients).min(axis=1)
    if data.task == "multilabel":
        rarer = rarer[rarer > 0]
    # a label of few patients does not keep others from a bias, but one method is for all
    counted = {"platt": rarer.max(initial=0) if data.task == "multilabel" else rarer.min()}
    least = rarer.min(initial=10**9 if rarer.size else 0)
    several = data.task == "multiclass" and data.logits.shape[1] > 2
    return [
        name
        for name in METHODS[1:]
        if counted.get(name, least) >= _FEWEST[name] and (several or name != "vector")
    ]


def choose_map(
    data: CalibrationData,
    patients: NDArray[np.int64],
    folds: NDArray[np.int64],
    offset: Sequence[float],
) -> tuple[LogitMap, tuple[tuple[str, float], ...]]:
    """
    Return the map of the best method, fitted to all data, and the cross-validated log loss of each.

    Of all methods whose loss is within one standard error of the lowest, the simplest is taken [5]_; the
    error is that of the difference, over patients. `folds` (n,) are those of the items; of a single fold the
    simplest method is taken.
    """
    candidates = list_candidates(data, patients)
    if len(candidates) < 2 or len(np.unique(folds)) < 2:
        return fit_map((candidates or ["temperature"])[0], data, patients, offset), ()
    losses = {name: np.empty(len(folds)) for name in candidates}
    for fold in np.unique(folds):
        held = folds == fold
        train, test = data.select(~held), data.select(held)
        for name, found in losses.items():
            fitted = fit_map(name, train, patients[~held], offset)
            found[held] = test.mapped(fitted).item_losses()
    best = min(losses, key=lambda name: float(losses[name].mean()))
    chosen = next(name for name in losses if _is_no_worse(losses[name] - losses[best], patients))
    means = tuple((name, float(found.mean())) for name, found in losses.items())
    return fit_map(chosen, data, patients, offset), means


def fit_map(
    method: MapMethod, data: CalibrationData, patients: NDArray[np.int64], offset: Sequence[float]
) -> LogitMap:
    """
    Return the map of a method with the lowest log loss, of logits to which `offset` (K,) or () is added.

    Without a lower loss than without it, the offset is dropped. Labels that all items have, or none, keep
    their logits; labels of too few patients for a bias have a temperature only.
    """
    found = [_fit(method, data, patients, tuple(shift)) for shift in ([offset, ()] if offset else [()])]
    return min(found, key=lambda one: float(data.mapped(one).item_losses().mean()))


def count_flat(fitted: LogitMap, data: CalibrationData) -> int:
    """
    Return how many labels, or 1 for exclusive classes, have temperatures at their bound or beyond.

    Their logits are divided by so much that the probabilities no longer depend on the image.
    """
    moved = data.mapped(LogitMap("none", offset=fitted.offset)).logits
    if data.task == "multilabel":
        bounds = [find_highest(measure_size(column)) for column in moved.T]
        return sum(t >= bound for t, bound in zip(fitted.temperature, bounds, strict=True))
    bound = find_highest(measure_size(moved - moved.mean(axis=1, keepdims=True)))
    return int(min(fitted.temperature) >= bound)


def _fit(
    method: MapMethod, data: CalibrationData, patients: NDArray[np.int64], offset: tuple[float, ...]
) -> LogitMap:
    data = data.mapped(LogitMap("none", offset=offset))
    if method == "temperature":
        return LogitMap(method, tuple(fit_temperature(data).tolist()), offset)
    counts = _count_patients(data, patients)
    if method == "isotonic":
        ones = (1.0,) * count_temperatures(method, data.task, data.logits.shape[1])
        return LogitMap(method, ones, offset, curves=_fit_curves(data))
    if data.task == "multiclass":
        scale, bias = _fit_scales(data, _smooth(data.truth(), counts[:, 0]), shared=method == "platt")
        return LogitMap(method, tuple((1 / scale).tolist()), offset, tuple(bias.tolist()))
    temperature, bias = fit_temperature(data), np.zeros(data.logits.shape[1])
    for k in np.flatnonzero(counts.min(axis=1) >= _FEWEST[method]):
        pair = data.pair(int(k))
        scale, (_, bias[k]) = _fit_scales(pair, _smooth(pair.truth(), counts[k, ::-1]), shared=True)
        temperature[k] = 1 / scale[0]
    return LogitMap(method, tuple(temperature.tolist()), offset, tuple(bias.tolist()))


def _count_patients(data: CalibrationData, patients: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many patients have an item of each class, and how many have one of others: (K, 2)."""
    truth = data.truth()
    return np.array(
        [[len(np.unique(patients[there])) for there in (column, ~column)] for column in truth.T],
        dtype=np.int64,
    ).reshape(-1, 2)


def _is_no_worse(differences: NDArray[np.float64], patients: NDArray[np.int64]) -> bool:
    """Whether the mean of differences (n,) is within one standard error, over patients, of 0."""
    mean, n = float(differences.mean()), len(differences)
    sums = np.bincount(np.unique(patients, return_inverse=True)[1], differences - mean)
    return mean <= float(np.sqrt((sums**2).sum())) / n


def _smooth(truth: NDArray[np.bool_], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Platt's targets (n, K) [2]_, (N + 1) / (N + 2) for a class of N patients: scales stay finite."""
    rest = (1 / (counts[truth.argmax(axis=1)] + 2))[:, None]
    return np.asarray(np.where(truth, 1 - rest, rest / (truth.shape[1] - 1)))


def _fit_scales(
    data: CalibrationData, targets: NDArray[np.float64], *, shared: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scales (1,) or (K,) and biases (K,), the first 0, of exclusive classes with targets (n, K)."""
    from scipy.optimize import minimize
    from scipy.special import softmax

    logits, starts, sizes = data.logits, data.starts, data.sizes
    k = logits.shape[1]
    n_scales = 1 if shared else k
    item = np.repeat(np.arange(len(starts)), sizes)
    size = measure_size(logits - logits.mean(axis=1, keepdims=True))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scale, bias = parameters[:n_scales] / size, np.append(0.0, parameters[n_scales:])
        rows = softmax(logits * scale + bias, axis=1)
        proba = np.maximum(np.add.reduceat(rows, starts) / sizes[:, None], _TINY)
        value = float(-(targets * np.log(proba)).sum() / len(starts))
        slope = (-targets / proba / len(starts) / sizes[:, None])[item]
        slope = rows * (slope - (slope * rows).sum(axis=1, keepdims=True))
        by_scale = (slope * logits).sum(axis=0) / size
        return value, np.append(by_scale.sum() if shared else by_scale, slope.sum(axis=0)[1:])

    # of large logits the probabilities would be 0 and 1, without a slope
    first = np.append(np.full(n_scales, min(size, 1.0)), np.zeros(k - 1))
    bounds = [(_LEAST_SCALE, max(_MOST_SCALE, size))] * n_scales + [(None, None)] * (k - 1)
    found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds).x
    return np.asarray(found[:n_scales] / size), np.append(0.0, found[n_scales:])


def _fit_curves(data: CalibrationData) -> tuple[Curve, ...]:
    """Fit a curve to the margins of each class against the rest [3]_; rows of an item share its weight."""
    margins, truth = find_margins(data.logits, data.task), data.truth()
    truth = truth[:, 1:] if margins.shape[1] < truth.shape[1] else truth
    sizes = data.sizes
    rows, weights = np.repeat(truth, sizes, axis=0), np.repeat(1 / sizes, sizes)
    return tuple(_fit_curve(x, y.astype(np.float64), weights) for x, y in zip(margins.T, rows.T, strict=True))


def _fit_curve(x: NDArray[np.float64], y: NDArray[np.float64], weights: NDArray[np.float64]) -> Curve:
    """
    Return a centered isotonic regression [4]_: each block of equal frequencies is one knot at its mean.

    An item of the class is added at the lowest margin, and one of others at the highest, so that no frequency
    is 0 or 1, and no end rests on a few items.
    """
    from scipy.special import logit
    from sklearn.isotonic import isotonic_regression

    if not 0 < y.mean() < 1:
        return (0.0, 1.0), (0.0, 1.0)
    knots, where = np.unique(x, return_inverse=True)
    mass, hits = np.bincount(where, weights), np.bincount(where, weights * y)
    mass[[0, -1]] += 1 + (len(knots) == 1)
    hits[0] += 1
    fitted = isotonic_regression(hits / mass, sample_weight=mass)
    _, block = np.unique(fitted, return_inverse=True)
    weight = np.bincount(block, mass)
    centers = np.bincount(block, mass * knots) / weight
    values: Any = logit(np.bincount(block, mass * fitted) / weight)
    return tuple(centers.tolist()), tuple(values.tolist())
