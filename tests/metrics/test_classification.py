"""Each metric equals scikit-learn's, for whole sets and for resamples."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn import metrics as sk

from medimg.evaluation.aggregation import make_units
from medimg.metrics import bootstrap
from medimg.metrics.bootstrap import Estimate, compute_interval, draw_patients, find_strata, resample_metrics
from medimg.metrics.classification import Support
from medimg.metrics.curves import compute_curves
from medimg.metrics.patient_counts import PatientCounts, compute_metrics, compute_weighted_areas
from medimg.metrics.units import ScoredUnits
from tests.evaluation.fakes import FakeDataset, Task, make_pair
from tests.metrics.reference import by_sklearn, plain_resamples
from tests.sampling import SLOW

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


def support_of(units: ScoredUnits, dataset: FakeDataset) -> Support:
    return Support.count(units.truth, dataset.task, dataset.classes)


@settings(max_examples=60 if SLOW else 25, deadline=None)
@given(cases())
def test_estimates_equal_scikit_learn(case: tuple[FakeDataset, NDArray[np.float64]]) -> None:
    dataset, scores = case
    units = make_units(dataset, scores, "image")
    support = support_of(units, dataset)
    found = compute_metrics(units.truth, units.predicted, units.probabilities, support)
    expected = by_sklearn(units.truth, units.predicted, units.probabilities, support)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, nan_ok=True, abs=1e-12), name


@settings(max_examples=30 if SLOW else 12, deadline=None)
@given(cases(), st.integers(0, 1000))
def test_resamples_equal_a_double_loop(case: tuple[FakeDataset, NDArray[np.float64]], seed: int) -> None:
    dataset, scores = case
    units = make_units(dataset, scores, "image")
    support = support_of(units, dataset)
    n = 3 if SLOW else 2
    found = resample_metrics(units, support, n_resamples=n, seed=seed)
    for r, expected in enumerate(plain_resamples(units, support, n_resamples=n, seed=seed)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value, nan_ok=True, abs=1e-12), (r, name)


@pytest.mark.parametrize(
    ("task", "classes"), [("multiclass", CLASSES[:2]), ("multiclass", CLASSES), ("multilabel", CLASSES[:3])]
)
def test_resamples_within_strata_equal_a_double_loop(task: Task, classes: tuple[str, ...]) -> None:
    model, dataset = make_pair(task, classes)
    units = make_units(dataset, model.probabilities, "image")
    assert find_strata(units).max() >= 1
    support = support_of(units, dataset)
    found = resample_metrics(units, support, n_resamples=4, seed=7)
    for r, expected in enumerate(plain_resamples(units, support, n_resamples=4, seed=7)):
        for name, value in expected.items():
            assert found[name][r] == pytest.approx(value, abs=1e-12), (r, name)
    assert all(len(np.unique(found[name])) == 4 for name in ("accuracy", "auroc", "auprc", "brier", "ece"))


@settings(max_examples=60 if SLOW else 25, deadline=None)
@given(cases())
def test_a_resample_of_everybody_once_is_the_estimate(case: tuple[FakeDataset, NDArray[np.float64]]) -> None:
    dataset, scores = case
    units = make_units(dataset, scores, "image")
    support = support_of(units, dataset)
    expected = by_sklearn(units.truth, units.predicted, units.probabilities, support)

    def everybody(strata: NDArray[np.int64], *_: int) -> list[NDArray[np.float64]]:
        return [np.ones((len(strata), 1))]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "draw_patients", everybody)
        found = resample_metrics(units, support, n_resamples=1, seed=0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, nan_ok=True, abs=1e-12), name


def test_multiclass_auroc_is_scikit_learns_one_versus_rest() -> None:
    generator = np.random.default_rng(3)
    labels, scores = generator.integers(3, size=200), generator.dirichlet((1, 1, 1), size=200)
    units = make_units(FakeDataset(labels, ("p",) * 200, CLASSES[:3]), scores, "image")
    support = Support.count(units.truth, "multiclass", CLASSES[:3])
    found = compute_metrics(units.truth, units.predicted, scores, support)
    expected = sk.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert found["auroc"] == pytest.approx(expected, abs=1e-12)


def test_specificity_is_recall_of_the_negatives() -> None:
    truth = np.eye(2, dtype=bool)[[0, 0, 0, 1, 1]]
    predicted = np.eye(2, dtype=bool)[[0, 0, 1, 1, 0]]
    support = Support.count(truth, "multiclass", CLASSES[:2])
    found = compute_metrics(truth, predicted, predicted.astype(float), support)
    assert found["specificity"] == pytest.approx(2 / 3)
    assert found["sensitivity"] == pytest.approx(1 / 2)
    assert found["specificity[a]"] == found["sensitivity"]


def test_an_absent_class_has_no_scores_and_is_left_out_of_the_averages() -> None:
    labels = np.array([0, 0, 1, 1])
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1], [0.2, 0.7, 0.1]])
    units = make_units(FakeDataset(labels, tuple("wxyz"), CLASSES[:3]), scores, "image")
    found = compute_metrics(
        units.truth, units.predicted, scores, Support.count(units.truth, "multiclass", CLASSES[:3])
    )
    kinds = ("recall", "precision", "f1", "auroc", "auprc", "mcc", "kappa")
    assert np.isnan([found[f"{kind}[c]"] for kind in kinds]).all()
    assert found["brier[c]"] == pytest.approx((3 * 0.1**2 + 0.8**2) / 4)
    assert found["specificity[c]"] == pytest.approx(3 / 4)
    assert found["recall_macro"] == pytest.approx((1 / 2 + 1) / 2)


@pytest.mark.parametrize("columns", [1, 3, 7, 100])
def test_draws_do_not_depend_on_how_many_are_made_at_once(columns: int) -> None:
    strata = np.array([0, 1, 1, 0, 1, 2, 2, 0, 1])
    whole = next(iter(draw_patients(strata, 20, 5, 20)))
    assert np.array_equal(np.concatenate(list(draw_patients(strata, 20, 5, columns)), axis=1), whole)
    assert len(np.unique(whole, axis=1)) > 1


def test_as_many_of_each_stratum_are_drawn_as_it_has() -> None:
    strata = np.array([0, 1, 1, 0, 1, 2, 2, 0, 1])
    drawn = next(iter(draw_patients(strata, 3000, 0, 3000)))
    for s, n in ((0, 3), (1, 4), (2, 2)):
        assert (drawn[strata == s].sum(axis=0) == n).all()
    np.testing.assert_allclose(drawn.mean(axis=1), 1, atol=0.06)


def test_strata_are_the_sets_of_classes_and_small_ones_are_put_together() -> None:
    def strata(*sets: tuple[int, ...]) -> list[int]:
        rows = [(patient, k) for patient, classes in enumerate(sets) for k in classes]
        labels, patients = np.array([k for _, k in rows]), tuple(str(p) for p, _ in rows)
        dataset = FakeDataset(labels, patients, CLASSES)
        found = find_strata(make_units(dataset, np.full((len(rows), 4), 0.25), "image"))
        return [int(n) for n in found]

    def grouped(numbers: list[int]) -> list[tuple[int, ...]]:
        return sorted(tuple(i for i, n in enumerate(numbers) if n == s) for s in set(numbers))

    both = [(0,)] * 5 + [(1,)] * 6 + [(0, 1)] * 7
    assert grouped(strata(*both)) == [tuple(range(5)), tuple(range(5, 11)), tuple(range(11, 18))]
    # three of c and two of d are enough for a stratum; three of c alone join the smallest other one
    assert grouped(strata(*both, *[(2,)] * 3, *[(3,)] * 2))[-1] == tuple(range(18, 23))
    assert grouped(strata(*both, *[(2,)] * 3))[0] == (0, 1, 2, 3, 4, 18, 19, 20)
    assert set(strata((0,), (1,), (2,))) == {0}


def test_weighted_auroc_equals_copies() -> None:
    generator = np.random.default_rng(1)
    positive, scores = generator.random(30) < 0.5, generator.integers(0, 6, 30) / 5
    weights = generator.integers(0, 4, size=(8, 30))
    found = compute_weighted_areas(positive, scores, weights.astype(float))[0]
    copies = [(np.repeat(positive, w), np.repeat(scores, w)) for w in weights]
    expected = [sk.roc_auc_score(*copy) for copy in copies]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    found = compute_weighted_areas(positive, scores, weights.astype(float))[1]
    np.testing.assert_allclose(found, [sk.average_precision_score(*copy) for copy in copies], atol=1e-12)


@pytest.mark.parametrize(
    ("task", "classes"), [("multiclass", CLASSES[:2]), ("multiclass", CLASSES), ("multilabel", CLASSES)]
)
def test_curves_have_the_areas_and_errors_of_the_metrics(task: Task, classes: tuple[str, ...]) -> None:
    model, dataset = make_pair(task, classes)
    units = make_units(dataset, model.probabilities, "image")
    support = support_of(units, dataset)
    found = compute_metrics(units.truth, units.predicted, units.probabilities, support)
    curves = compute_curves(units.truth, units.probabilities, support)
    shown = classes[1:] if support.is_binary else classes
    assert set(curves.roc) == set(curves.precision_recall) == set(curves.reliability) == set(shown)
    for name in shown:
        suffix = "" if support.is_binary else f"[{name}]"
        roc, pr = curves.roc[name], curves.precision_recall[name]
        assert sk.auc(roc.x, roc.y) == pytest.approx(found[f"auroc{suffix}"])
        assert np.sum(np.diff(pr.x) * pr.y[1:]) == pytest.approx(found[f"auprc{suffix}"])
        assert (np.diff(pr.x) >= 0).all()
        assert pr.thresholds[0] == np.inf
        if suffix:
            assert curves.reliability[name].ece == pytest.approx(found[f"ece{suffix}"])
        assert curves.reliability[name].n.sum() == len(units)
    if curves.confidence is not None:
        assert curves.confidence.ece == pytest.approx(found["ece"])
    assert (curves.confidence is None) == (task == "multilabel")


def test_an_interval_needs_half_of_the_resamples() -> None:
    nan = float("nan")
    assert compute_interval(0.5, np.array([0.4, 0.6, nan, nan]), 0.9).low == pytest.approx(0.41)
    missing = compute_interval(0.5, np.array([0.4, nan, nan]), 0.9)
    assert np.isnan(missing.low)
    assert missing.dropped == 2
    assert missing.reason == "undefined in more than half of the resamples"
    undefined = compute_interval(nan, np.array([0.4, 0.6]), 0.9)
    assert np.isnan(undefined.high)
    assert not undefined.reason


def test_few_patients_widen_the_interval_and_many_do_not() -> None:
    samples = np.linspace(0, 1, 100_001)
    plain = compute_interval(0.5, samples, 0.95)
    few, many = (compute_interval(0.5, samples, 0.95, n_patients=n) for n in (20, 10**7))
    assert (plain.low, plain.high) == pytest.approx((0.025, 0.975))
    assert (many.low, many.high) == pytest.approx((plain.low, plain.high), abs=1e-5)
    # Hesterberg 2015: 2.093 is the quantile of Student's t with 19 degrees of freedom
    assert few.low == pytest.approx(norm.cdf(-2.093 * np.sqrt(20 / 19)), abs=1e-4)
    assert few.low + few.high == pytest.approx(1)


def test_a_reflected_interval_lies_on_the_other_side_and_holds_the_value() -> None:
    samples = np.linspace(0.3, 0.5, 101)
    found = compute_interval(0.35, samples, 0.9, reflected=True)
    assert (found.low, found.high) == pytest.approx((0.7 - 0.49, 0.7 - 0.31))
    assert compute_interval(0.2, samples, 0.9, reflected=True) == Estimate(0.2, 0.0, 0.2)
    assert compute_interval(0.8, samples, 0.9, reflected=True).high == 1


def test_many_classes_take_a_few_times_the_memory_of_their_probabilities() -> None:
    model, dataset = make_pair("multiclass", tuple(map(str, range(300))), n_patients=1500, per_patient=1)
    units = make_units(dataset, model.probabilities, "image")
    support = support_of(units, dataset)
    tracemalloc.start()
    PatientCounts.of(units, support)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25 * units.probabilities.nbytes
