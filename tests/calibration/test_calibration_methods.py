"""Calibration maps: against their definitions, other software, and data of a known distortion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit, softmax

from medimg.calibration.calibration_methods import choose_map, fit_map, list_candidates
from medimg.calibration.logit_map import METHODS, find_margins
from medimg.calibration.temperature_scaling import CalibrationData


def draw(
    n: int, distort: Any, *, seed: int = 0, classes: int = 2, each: int = 1
) -> tuple[CalibrationData, NDArray[np.int64], NDArray[np.int64]]:
    """Items whose logits are a distortion of the true ones, their patients and folds."""
    rng = np.random.default_rng(seed)
    true = rng.normal(scale=2.0, size=(n, classes))
    labels = (softmax(true, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1).clip(0, classes - 1)
    patients = np.arange(n) // each
    return CalibrationData(distort(true), np.arange(n), labels, "multiclass"), patients, patients % 5


def test_platt_scaling_as_scikit_learn_has_it() -> None:
    from sklearn.calibration import _sigmoid_calibration

    data, patients, _ = draw(150, lambda z: 3 * z + [2.0, -1.0])
    found = fit_map("platt", data, patients, ())
    margins = find_margins(data.logits, "multiclass")[:, 0]
    a, b = _sigmoid_calibration(margins, np.asarray(data.labels))
    assert 1 / found.temperature[0] == pytest.approx(-a, rel=1e-3)
    assert found.bias[1] - found.bias[0] == pytest.approx(-b, abs=1e-3)


def test_isotonic_regression_as_scikit_learn_has_it() -> None:
    from sklearn.isotonic import IsotonicRegression

    data, patients, _ = draw(300, lambda z: np.sign(z) * z**2)
    ((knots, values),) = fit_map("isotonic", data, patients, ()).curves
    margins = find_margins(data.logits, "multiclass")[:, 0]
    # one item of each class at the other end
    x = np.concatenate([margins, [margins.min(), margins.max()]])
    fitted = IsotonicRegression().fit(x, [*data.labels, 1, 0]).predict(x)
    shares = np.unique(fitted)
    np.testing.assert_allclose(expit(values), shares, atol=1e-12)
    np.testing.assert_allclose(knots, [x[fitted == share].mean() for share in shares])


@pytest.mark.parametrize(
    ("distort", "expected", "n"),
    [
        (lambda z: 4 * z, "temperature", 400),
        (lambda z: 2 * z + [3.0, 0.0], "platt", 400),
        (lambda z: z * [3.0, 1.0, 0.5] + [2.0, 0.0, 1.0], "vector", 800),
        (lambda z: 3 * np.tanh(3 * z) + 0.3 * z + [1.5, 0.0], "isotonic", 6000),
        (lambda z: 2 * z + [3.0, 0.0], "temperature", 8),
    ],
)
def test_the_simplest_that_undoes_a_distortion_is_chosen(distort: Any, expected: str, n: int) -> None:
    data, patients, folds = draw(n, distort, classes=3 if expected == "vector" else 2)
    found, selection = choose_map(data, patients, folds, ())
    assert found.method == expected, selection
    if expected != "isotonic" and n > 8:
        # what is left is noise
        true, _, _ = draw(n, lambda z: z, classes=data.logits.shape[1])
        assert data.mapped(found).item_losses().mean() < true.item_losses().mean() + 0.02


def test_images_of_one_patient_are_one_observation() -> None:
    """Few patients: the simplest, however many images they have."""
    few, patients, folds = draw(800, lambda z: 2 * z + [3.0, 0.0], each=100)
    assert list_candidates(few, patients) != list_candidates(few, np.arange(800))
    assert choose_map(few, np.zeros(800, np.int64), folds, ())[0].method == "temperature"
    assert not set(np.unique(folds[patients == 3])) - {3}


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(4, 40),
    classes=st.integers(2, 4),
    task=st.sampled_from(["multiclass", "multilabel"]),
    method=st.sampled_from(METHODS[1:]),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 50.0]),
    each=st.integers(1, 3),
)
def test_maps_are_finite_and_keep_the_order(  # noqa: PLR0917  # drawn
    seed: int, n: int, classes: int, task: str, method: Any, scale: float, each: int
) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n) if task == "multiclass" else rng.integers(0, 2, (n, classes))
    starts = np.arange(n) * each
    data = CalibrationData(scale * rng.normal(size=(n * each, classes)), starts, labels, task)
    offset = tuple(rng.normal(size=classes)) if seed % 2 else ()
    found = fit_map(method, data, np.arange(n) // 2, offset)
    grid = np.zeros((50, classes))
    grid[:, -1] = np.linspace(-200, 200, 50)
    mapped = found.apply(grid, task)
    assert np.isfinite(mapped).all()
    assert (np.diff(find_margins(mapped, task)[:, -1]) >= -1e-9).all()
    calibrated = data.mapped(found)
    assert np.isfinite(calibrated.item_losses()).all()
    if method == "temperature":
        assert calibrated.item_losses().mean() <= data.item_losses().mean() + 1e-12


def test_a_known_prior_is_undone_exactly() -> None:
    """Logits of a weighted loss are the true ones plus the logarithm of the weights."""
    shift = np.log([0.55, 5.5])
    data, patients, _ = draw(5000, lambda z: z + shift)
    found = fit_map("temperature", data, patients, tuple(-shift))
    assert found.offset == tuple(-shift)
    assert found.temperature[0] == pytest.approx(1, abs=0.06)
    # one that makes it worse is dropped
    assert not fit_map("temperature", data, patients, tuple(5 * shift)).offset
