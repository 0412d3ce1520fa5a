"""DeLong's variance: by its plain definition, by another package, and against the bootstrap."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn
from numpy.typing import NDArray
from scipy.stats import bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    brier_score_loss,
    recall_score,
    roc_auc_score,
)

from medimg.errors import DatasetError
from medimg.evaluation.evaluate import evaluate
from medimg.metrics.delong import compute_delong
from tests.evaluation.fakes import FakeDataset, FakeModel, make_pair
from tests.metrics.reference import UNCHECKED
from tests.sampling import sample

Floats = NDArray[np.float64]


def plain(positive: NDArray[np.bool_], scores: Floats) -> tuple[Floats, Floats]:
    """DeLong 1988: every positive against every negative, in two loops."""
    kernels = []
    for row in scores:
        pairs = [[(x > y) + (x == y) / 2 for y in row[~positive]] for x in row[positive]]
        kernels.append(np.array(pairs, dtype=float))
    won, lost = ([k.mean(axis=axis) for k in kernels] for axis in (1, 0))
    covariance = np.cov(won) / positive.sum() + np.cov(lost) / (~positive).sum()
    return np.array([k.mean() for k in kernels]), np.atleast_2d(covariance)


@pytest.mark.parametrize("seed", range(20))
def test_ranks_give_what_the_definition_gives(seed: int) -> None:
    generator = np.random.default_rng(seed)
    positive = np.concatenate([[True] * 2, [False] * 2, generator.random(30) < 0.4])
    # few distinct values: ties are common
    scores = np.round(generator.random((3, 34)) + 0.3 * positive, generator.integers(1, 4))
    areas, covariance = compute_delong(positive, scores)
    expected = plain(positive, scores)
    np.testing.assert_allclose(areas, expected[0], atol=1e-14)
    np.testing.assert_allclose(covariance, expected[1], atol=1e-14)
    np.testing.assert_allclose(areas, [roc_auc_score(positive, s) for s in scores], atol=1e-14)


def independent(n: int, seed: int) -> tuple[FakeModel, FakeDataset]:
    """One image of each patient."""
    return make_pair(n_patients=n, per_patient=1, seed=seed)


@pytest.mark.parametrize("seed", range(3))
def test_intervals_agree_with_another_package(seed: int) -> None:
    others = pytest.importorskip("confidenceinterval", reason="compares with the package confidenceinterval")
    model, dataset = independent(500, seed)
    found = evaluate(model, dataset, n_resamples=10).metrics["auroc"]
    assert found.method == "delong"
    value, (low, high) = others.roc_auc_score(dataset.labels, model.probabilities[:, 1])
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-5)


def test_resampled_intervals_agree_with_scipys_of_scikit_learns_metrics() -> None:
    model, dataset = independent(500, 0)
    metrics = evaluate(model, dataset).metrics
    labels, positive = dataset.labels, model.probabilities[:, 1]
    strata = [np.flatnonzero(labels == k) for k in (0, 1)]
    scores: dict[str, Callable[[Any, Any], float]] = {
        "accuracy": lambda y, p: accuracy_score(y, p > 0.5),
        "sensitivity": lambda y, p: recall_score(y, p > 0.5),
        "auprc": average_precision_score,
        "brier": brier_score_loss,
    }
    for name, score in sample(list(scores.items()), every=2):

        def of(
            negatives: NDArray[np.int64],
            positives: NDArray[np.int64],
            score: Callable[[Any, Any], float] = score,
        ) -> float:
            rows = np.concatenate([negatives, positives])
            return score(labels[rows], positive[rows])

        # scipy resamples each of several samples by itself
        with sklearn.config_context(**UNCHECKED):
            found = bootstrap(
                strata,
                of,
                n_resamples=1000,
                method="percentile",
                vectorized=False,
                random_state=np.random.default_rng(0),
            ).confidence_interval
        ours = metrics[name]
        assert ours.method == "bootstrap"
        assert (ours.low, ours.high) == pytest.approx((found.low, found.high), abs=0.005), name


def test_delong_and_bootstrap_agree_where_both_hold() -> None:
    pair = independent(600, 0)
    ours, resampled = (
        evaluate(*pair, ci_method=method).metrics["auroc"] for method in ("delong", "bootstrap")
    )
    assert (ours.method, resampled.method) == ("delong", "bootstrap")
    assert (ours.low, ours.high) == pytest.approx((resampled.low, resampled.high), abs=0.005)
    assert ours != resampled


def test_each_class_of_several_and_each_label_has_its_own() -> None:
    for task, classes in (("multiclass", ("a", "b", "c")), ("multilabel", ("a", "b"))):
        report = evaluate(*make_pair(task, classes), n_resamples=20)  # type: ignore[arg-type]  # a str of the loop
        methods = {name: estimate.method for name, estimate in report.metrics.items()}
        assert {name for name, method in methods.items() if method == "delong"} == {
            f"auroc[{name}]" for name in classes
        }


def test_units_that_share_a_patient_are_resampled_or_refused() -> None:
    pair = make_pair()
    assert evaluate(*pair, unit="image", n_resamples=20).metrics["auroc"].method == "bootstrap"
    with pytest.raises(DatasetError, match="200 of 40 patients"):
        evaluate(*pair, unit="image", n_resamples=20, ci_method="delong")
    with pytest.raises(DatasetError, match="ci_method must be"):
        evaluate(*pair, ci_method="wald")  # type: ignore[arg-type]  # on purpose


def test_a_single_positive_is_resampled() -> None:
    model, dataset = independent(40, 0)
    labels = np.zeros(40, dtype=int)
    labels[3] = 1
    report = evaluate(model, dataclasses.replace(dataset, labels=labels), n_resamples=50)
    assert report.metrics["auroc"].method == "bootstrap"
    assert report.metrics["auroc"].dropped > 0


def test_a_perfect_order_has_another_interval() -> None:
    report = evaluate(*make_pair(signal=30), n_resamples=20)
    found = report.metrics["auroc"]
    assert (found.value, found.high, found.method) == (1, 1, "newcombe")
    assert 0.5 < found.low < 0.95
