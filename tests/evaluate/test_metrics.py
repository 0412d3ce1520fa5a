"""Each metric equals scikit-learn's, for whole sets and for resamples."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn import metrics as sk

from medimg.evaluate.bootstrap import draw_patients, interval, resample, weighted_auroc
from medimg.evaluate.metrics import Support, estimate
from medimg.evaluate.units import Units, make_units
from tests.evaluate.fakes import FakeDataset, Task

CLASSES = ("a", "b", "c", "d")


@st.composite
def cases(draw: st.DrawFn) -> tuple[FakeDataset, NDArray[np.float64]]:
    """Random labels (classes may be absent), coarse probabilities (ties are common), patients of any size."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    task: Task = draw(st.sampled_from(["multiclass", "multilabel"]))
    n = draw(st.integers(1, 40))
    k = draw(st.integers(2, 4)) if task == "multiclass" else draw(st.integers(1, 4))
    patients = tuple(f"p{i}" for i in generator.integers(max(1, n // 3), size=n))
    scores = generator.integers(0, 5, size=(n, k)) / 4
    if task == "multilabel":
        labels = (generator.random((n, k)) < 0.4).astype(np.float32)
        return FakeDataset(labels, patients, CLASSES[:k], task), scores
    used = generator.permutation(k)[: draw(st.integers(1, k))]
    scores = (scores + 0.25) / (scores + 0.25).sum(axis=1, keepdims=True)
    return FakeDataset(generator.choice(used, size=n), patients, CLASSES[:k], task), scores


def support_of(units: Units, dataset: FakeDataset) -> Support:
    return Support.of(units.truth, dataset.task, dataset.classes)


def by_sklearn(
    truth: NDArray[np.bool_], predicted: NDArray[np.bool_], scores: NDArray[np.float64], support: Support
) -> dict[str, float]:
    """The metrics by scikit-learn's own averages; NaN where the whole set has them but this one has not."""
    expected: dict[str, float] = {"accuracy": sk.accuracy_score(truth, predicted)}
    present = [k for k, n in enumerate(support.positives) if n]
    lacking = any(not truth[:, k].any() for k in present) or not present
    columns = {"recall": sk.recall_score, "precision": sk.precision_score, "f1": sk.f1_score}
    for name, score in columns.items():
        value = np.nan
        if not lacking and support.task == "multiclass":
            y, z = truth.argmax(axis=1), predicted.argmax(axis=1)
            value = score(y, z, labels=present, average="macro", zero_division=0)
        elif not lacking:
            y, z = (np.column_stack([x, np.zeros(len(x), bool)]).astype(int) for x in (truth, predicted))
            value = score(y, z, labels=present, average="macro", zero_division=0)
        expected[f"{name}_macro"] = value
    both = [k for k in present if support.negatives[k]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        areas = [
            sk.roc_auc_score(truth[:, k], scores[:, k]) if 0 < truth[:, k].sum() < len(truth) else np.nan
            for k in both
        ]
        if support.task == "multiclass":
            balanced = sk.balanced_accuracy_score(truth.argmax(axis=1), predicted.argmax(axis=1))
            expected["balanced_accuracy"] = np.nan if lacking else balanced
    expected["auroc"] = (areas[1] if support.binary else np.mean(areas)) if areas else np.nan
    return expected


@settings(max_examples=150, deadline=None)
@given(cases())
def test_estimates_equal_scikit_learn(case: tuple[FakeDataset, NDArray[np.float64]]) -> None:
    dataset, scores = case
    units = make_units(dataset, scores, "image")
    support = support_of(units, dataset)
    found = estimate(units.truth, units.predicted, units.probabilities, support)
    for name, value in by_sklearn(units.truth, units.predicted, units.probabilities, support).items():
        assert found[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 1000))
def test_resamples_equal_a_double_loop(case: tuple[FakeDataset, NDArray[np.float64]], seed: int) -> None:
    dataset, scores = case
    units = make_units(dataset, scores, "image")
    support = support_of(units, dataset)
    found = resample(units, support, n_resamples=5, seed=seed)
    generator = np.random.default_rng(seed)
    for r in range(5):
        drawn = generator.integers(units.n_patients, size=units.n_patients)
        rows = np.concatenate([np.flatnonzero(units.patient == p) for p in drawn])
        arrays = (units.truth[rows], units.predicted[rows], units.probabilities[rows])
        for name, value in by_sklearn(*arrays, support).items():
            assert found[name][r] == pytest.approx(value, nan_ok=True, abs=1e-12), (r, name)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_a_resample_of_everybody_once_is_the_estimate(case: tuple[FakeDataset, NDArray[np.float64]]) -> None:
    dataset, scores = case
    units = make_units(dataset, scores, "image")
    support = support_of(units, dataset)
    expected = estimate(units.truth, units.predicted, units.probabilities, support)

    def everybody(n_patients: int, *_: int) -> list[NDArray[np.float64]]:
        return [np.ones((1, n_patients))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medimg.evaluate.bootstrap.draw_patients", everybody)
        found = resample(units, support, n_resamples=1, seed=0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, nan_ok=True, abs=1e-12), name


def test_multiclass_auroc_is_scikit_learns_one_versus_rest() -> None:
    generator = np.random.default_rng(3)
    labels, scores = generator.integers(3, size=200), generator.dirichlet((1, 1, 1), size=200)
    units = make_units(FakeDataset(labels, ("p",) * 200, CLASSES[:3]), scores, "image")
    support = Support.of(units.truth, "multiclass", CLASSES[:3])
    found = estimate(units.truth, units.predicted, scores, support)
    expected = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(expected, abs=1e-12)


def test_specificity_is_recall_of_the_negatives() -> None:
    truth = np.eye(2, dtype=bool)[[0, 0, 0, 1, 1]]
    predicted = np.eye(2, dtype=bool)[[0, 0, 1, 1, 0]]
    support = Support.of(truth, "multiclass", CLASSES[:2])
    found = estimate(truth, predicted, predicted.astype(float), support)
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["sensitivity"] == pytest.approx(1 / 2)
    assert found["specificity[a]"] == found["sensitivity"]


def test_an_absent_class_has_no_scores_and_is_left_out_of_the_averages() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    units = make_units(FakeDataset(labels, tuple("wxyz"), CLASSES[:3]), scores, "image")
    found = estimate(units.truth, units.predicted, scores, Support.of(units.truth, "multiclass", CLASSES[:3]))
    assert np.isnan([found[f"{kind}[c]"] for kind in ("recall", "precision", "f1", "auroc")]).all()
    assert found["specificity[c]"] == pytest.approx(3 / 4)
    assert found["recall_macro"] == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_draws_do_not_depend_on_how_many_are_made_at_once(rows: int) -> None:
    whole = next(iter(draw_patients(9, 20, 5, 20)))
    assert np.array_equal(np.concatenate(list(draw_patients(9, 20, 5, rows))), whole)
    assert (whole.sum(axis=1) == 9).all()


def test_weighted_auroc_equals_copies() -> None:
    generator = np.random.default_rng(1)
    positive, scores = generator.random(30) < 0.5, generator.integers(0, 6, 30) / 5
    weights = generator.integers(0, 4, size=(8, 30))
    found = weighted_auroc(positive, scores, weights.astype(float))
    expected = [sk.roc_auc_score(np.repeat(positive, w), np.repeat(scores, w)) for w in weights]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_an_interval_needs_half_of_the_resamples() -> None:
    nan = float("nan")
    assert interval(0.5, np.array([0.4, nan]), 0.9).low == pytest.approx(0.4)
    missing = interval(0.5, np.array([0.4, nan, nan]), 0.9)
    assert np.isnan(missing.low)
    assert missing.dropped == 2
    assert np.isnan(interval(nan, np.array([0.4, 0.4]), 0.9).high)
