from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from medimg.calibration.logit_map import LogitMap
from medimg.calibration.temperature_scaling import CalibrationData, fit_temperature
from medimg.models.probabilities import probabilities


def judged(
    seed: int, n: int = 200, classes: int = 3, scale: float = 3.0, task: str = "multiclass"
) -> CalibrationData:
    """Logits that are `scale` times too large."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes))
    labels: NDArray[np.generic]
    if task == "multiclass":
        proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        labels = (proba.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, classes - 1)
    else:
        labels = (rng.random((n, classes)) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return CalibrationData(logits * scale, np.arange(n), labels, task)


@given(
    seed=st.integers(0, 1000),
    n=st.integers(1, 60),
    classes=st.integers(1, 5),
    scale=st.floats(0.01, 30),
    task=st.sampled_from(["multiclass", "multilabel"]),
)
@settings(max_examples=60, deadline=None)
def test_never_worse(seed: int, n: int, classes: int, scale: float, task: str) -> None:
    data = judged(seed, n, classes + (task == "multiclass"), scale, task)
    fitted = fit_temperature(data)
    assert fitted.shape == (1,) if task == "multiclass" else (classes,)
    assert (data.losses(fitted) <= data.losses()).all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_known_temperature_is_found(task: str) -> None:
    fitted = fit_temperature(judged(0, n=20_000, scale=4.0, task=task))
    np.testing.assert_allclose(fitted, 4.0, rtol=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_no_other_temperature_is_better(seed: int) -> None:
    data = judged(seed)
    fitted = fit_temperature(data)
    grid = np.geomspace(0.06, 40, 2000)
    losses = [float(data.losses(t)[0]) for t in grid]
    assert data.losses(fitted)[0] <= min(losses) + 1e-9
    assert grid[int(np.argmin(losses))] == pytest.approx(fitted[0], rel=0.01)


def test_as_scikit_learn_has_it() -> None:
    pytest.importorskip("sklearn", minversion="1.8")
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Passing(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
        classes_ = np.arange(3)

        def fit(self, x: object, y: object) -> Passing:
            return self

        def decision_function(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
            return x

        def predict(self, x: NDArray[np.float64]) -> NDArray[np.int64]:
            return np.asarray(x.argmax(axis=1))

        def __sklearn_is_fitted__(self) -> bool:
            return True

    data = judged(5, scale=2.5)
    other = CalibratedClassifierCV(FrozenEstimator(Passing()), method="temperature")
    other.fit(data.logits, data.labels)
    ours = data.probabilities(fit_temperature(data))
    np.testing.assert_allclose(ours, other.predict_proba(data.logits), atol=2e-4)


def test_what_the_data_do_not_tell_is_left() -> None:
    apart = np.array([[2.0, 0.0], [0.0, 2.0]])
    # every item is right: the colder, the better, without end
    assert fit_temperature(CalibrationData(apart, np.arange(2), np.array([0, 1]), "multiclass")).tolist() == [
        1.0
    ]
    labels = np.array([[0, 1], [0, 0], [0, 1]], np.float32)
    fitted = fit_temperature(
        CalibrationData(np.array([[1.0, 1], [2, 1], [0, -1]]), np.arange(3), labels, "multilabel")
    )
    assert fitted[0] == 1.0  # of a label without an example


def test_items_of_several_rows_count_once() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(50, 2)) * 4
    starts = np.array([0, 10, 11, 30])
    labels = np.array([0, 1, 1, 0])
    data = CalibrationData(logits, starts, labels, "multiclass")
    rows = np.exp(logits / 2) / np.exp(logits / 2).sum(axis=1, keepdims=True)
    expected = [part.mean(axis=0) for part in np.split(rows, starts[1:])]
    np.testing.assert_allclose(data.probabilities(2.0), expected)
    assert data.losses(fit_temperature(data))[0] <= data.losses()[0]


def test_probabilities_of_training_and_calibration_agree() -> None:
    import torch

    for task, temperature in (("multiclass", [2.5]), ("multilabel", [0.5, 1.0, 3.0])):
        data = judged(1, task=task)
        fitted = LogitMap("temperature", tuple(temperature))
        found = probabilities(torch.from_numpy(fitted.apply(data.logits, task)), task)
        np.testing.assert_allclose(found, data.probabilities(np.array(temperature)), rtol=1e-12)


def test_sure_and_wrong_is_finite() -> None:
    data = CalibrationData(
        np.array([[900.0], [-900.0]]), np.arange(2), np.array([[0.0], [1.0]]), "multilabel"
    )
    assert np.isfinite(data.losses()).all()


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("scale", [1e-4, 0.01, 200.0, 1e6])
def test_logits_of_any_size(task: str, scale: float) -> None:
    """A head that was hardly trained, or trained without bounds, is calibrated like any other."""
    fitted = fit_temperature(judged(0, n=20_000, scale=scale, task=task))
    np.testing.assert_allclose(fitted, scale, rtol=0.05)
    assert (
        fit_temperature(CalibrationData(np.zeros((4, 2)), np.arange(4), np.array([0, 1, 0, 1]), "multiclass"))
        == 1
    )
