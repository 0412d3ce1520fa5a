from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from medimg.calibration.operating_points import (
    Criterion,
    check_criterion,
    operating_point,
    operating_points,
)
from medimg.errors import TrainingError

#: Few values, so that there are ties.
SCORES = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.booleans()), min_size=2)


def plain(scores: NDArray[np.float64], truth: NDArray[np.bool_], threshold: float) -> tuple[float, float]:
    called = scores >= threshold
    return float(called[truth].mean()), float((~called[~truth]).mean())


def every(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> list[tuple[float, float]]:
    """Sensitivity and specificity of all thresholds that differ."""
    return [plain(scores, truth, t) for t in [*np.unique(scores), 2.0]]


def split(rows: list[tuple[float, bool]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    # one of each, so that both rates are defined
    rows = [*rows, (0.25, True), (0.5, False)]
    return np.array([r[0] for r in rows]), np.array([r[1] for r in rows])


@given(SCORES)
def test_youden_is_the_best_there_is(rows: list[tuple[float, bool]]) -> None:
    scores, truth = split(rows)
    found = operating_point("x", scores, truth, "youden")
    assert plain(scores, truth, found.threshold) == pytest.approx((found.sensitivity, found.specificity))
    best = max(a + b for a, b in every(scores, truth))
    assert found.sensitivity + found.specificity == pytest.approx(best)
    equals = [a for a, b in every(scores, truth) if a + b > best - 1e-9]
    assert found.sensitivity == pytest.approx(max(equals))


@given(SCORES, st.sampled_from([0.01, 0.5, 2 / 3, 0.95, 1.0]))
def test_sensitivity_is_kept_and_specificity_highest(rows: list[tuple[float, bool]], wanted: float) -> None:
    scores, truth = split(rows)
    found = operating_point("x", scores, truth, {"sensitivity": wanted})
    assert plain(scores, truth, found.threshold) == pytest.approx((found.sensitivity, found.specificity))
    assert found.sensitivity >= wanted - 1e-9
    best = max(b for a, b in every(scores, truth) if a >= wanted - 1e-9)
    assert found.specificity == pytest.approx(best)
    # more is called where that costs nothing
    equals = [a for a, b in every(scores, truth) if b > best - 1e-9]
    assert found.sensitivity == pytest.approx(max(equals))


@given(SCORES, st.sampled_from([0.1, 1.0, 7.5]))
def test_cost_is_lowest(rows: list[tuple[float, bool]], cost: float) -> None:
    scores, truth = split(rows)
    p, n = truth.sum(), (~truth).sum()
    found = operating_point("x", scores, truth, {"cost": cost})
    assert plain(scores, truth, found.threshold) == pytest.approx((found.sensitivity, found.specificity))
    costs = [cost * p * (1 - a) + n * (1 - b) for a, b in every(scores, truth)]
    assert cost * p * (1 - found.sensitivity) + n * (1 - found.specificity) == pytest.approx(min(costs))


def test_youden_as_scikit_learn_has_it() -> None:
    from sklearn.metrics import roc_curve

    rng = np.random.default_rng(0)
    truth = rng.random(500) < 0.3
    scores = 1 / (1 + np.exp(-rng.normal(truth.astype(float), 1)))
    fpr, tpr, _ = roc_curve(truth, scores)
    found = operating_point("x", scores, truth, "youden")
    assert found.sensitivity + found.specificity - 1 == pytest.approx((tpr - fpr).max())


def test_thresholds_lie_between_scores() -> None:
    scores, truth = np.array([0.2, 0.4, 0.8]), np.array([False, True, True])
    assert operating_point("x", scores, truth, "youden").threshold == pytest.approx(0.3)
    near = np.array([0.5, np.nextafter(0.5, 1)])
    found = operating_point("x", near, np.array([False, True]), "youden")
    assert (found.sensitivity, found.specificity) == plain(near, np.array([False, True]), found.threshold)
    # misses that cost nothing: nothing is called, not even what is certain
    none = operating_point("x", np.array([1.0, 1.0, 1.0]), np.array([True, False, False]), {"cost": 0.1})
    assert (none.sensitivity, none.specificity) == (0.0, 1.0)
    assert none.threshold > 1


def test_which_classes_have_points() -> None:
    proba = np.random.default_rng(0).dirichlet([1, 1, 1], 30)
    truth = np.arange(30)[:, None] % 3 == np.arange(3)
    assert [p.label for p in operating_points(proba, truth, "abc", "multiclass", "youden")] == [*"abc"]
    two = operating_points(proba[:, :2], truth[:, :2], "ab", "multiclass", "youden")
    assert [p.label for p in two] == ["b"]
    assert [p.label for p in operating_points(proba, truth, "abc", "multilabel", "youden")] == [*"abc"]
    assert operating_points(proba, truth, "abc", "multiclass", None) == ()


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_a_class_without_examples(truth: list[bool]) -> None:
    with pytest.raises(TrainingError, match="class 'nodule' has no"):
        operating_point("nodule", np.array([0.1, 0.2]), np.array(truth), "youden")


@pytest.mark.parametrize("good", [None, "youden", {"sensitivity": 1}, {"cost": np.float64(3)}])
def test_criteria(good: Criterion) -> None:
    assert check_criterion(good) == good


@pytest.mark.parametrize(
    "bad",
    ["Youden", 0.5, {}, {"sensitivity": 0}, {"sensitivity": 95}, {"cost": 0}, {"cost": float("inf")},
     {"cost": True}, {"cost": "1"}, {"cost": 10**400}, {"specificity": 0.9}, {"cost": 1, "sensitivity": 1},
     np.array([1.0, 2.0])],
)  # fmt: skip
def test_unsound_criteria(bad: Any) -> None:
    with pytest.raises(TrainingError, match="operating_point"):
        check_criterion(bad)
