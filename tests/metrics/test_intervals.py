"""Every interval has width, the more the fewer the patients are, or there is a reason why there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from medimg import evaluate
from medimg.evaluation.compare_models import compare_metrics
from medimg.metrics.classification import Support
from medimg.metrics.delong import compute_newcombe_interval
from medimg.metrics.intervals import compute_exact_interval, estimate_metrics
from medimg.metrics.units import ScoredUnits
from tests.evaluation.fakes import FakeDataset, FakeModel


@pytest.mark.parametrize("n", [1, 2, 21, 400])
@pytest.mark.parametrize("ci", [0.5, 0.95, 0.99])
def test_as_scipy(n: int, ci: float) -> None:
    for value in {0.0, round(n / 3) / n, 1.0}:
        expected = binomtest(round(n * value), n).proportion_ci(ci, method="exact")
        np.testing.assert_allclose(compute_exact_interval(value, n, ci), expected, rtol=1e-9, atol=1e-12)


def case(scores: list[float], labels: list[int], patients: list[str]) -> tuple[FakeModel, FakeDataset]:
    p = np.array(scores)
    data = FakeDataset(labels=np.array(labels), patients=tuple(patients))
    return FakeModel(np.stack([1 - p, p], axis=1)), data


def test_all_of_a_class_found() -> None:
    names = [f"p{n}" for n in range(40)]
    scores = [0.9] * 20 + [0.1] * 15 + [0.7] * 5
    report = evaluate(*case(scores, [1] * 20 + [0] * 20, names), n_resamples=200)
    sensitivity = report.metrics["sensitivity"]
    assert (sensitivity.value, sensitivity.high, sensitivity.method) == (1.0, 1.0, "exact")
    assert sensitivity.low == pytest.approx(0.025 ** (1 / 20))
    assert report.metrics["recall[pneumonia]"].low == sensitivity.low
    assert report.metrics["specificity"].method == "bootstrap"
    # never called normal where it was not
    assert report.metrics["precision[normal]"].low == pytest.approx(0.025 ** (1 / 15))


def test_images_of_a_patient_count_once() -> None:
    names = [f"p{n // 10}" for n in range(100)]
    labels = [n // 10 % 2 for n in range(100)]
    scores = [0.8 if label else (0.2 if n % 20 else 0.9) for n, label in enumerate(labels)]
    report = evaluate(*case(scores, labels, names), unit="image", n_resamples=200)
    assert report.metrics["sensitivity"].low == pytest.approx(0.025 ** (1 / 5))
    wider = evaluate(*case(scores, labels, names), unit="image", n_resamples=200, ci=0.99)
    assert wider.metrics["sensitivity"].low < report.metrics["sensitivity"].low


def test_none_found() -> None:
    names = [f"p{n}" for n in range(30)]
    report = evaluate(*case([0.1] * 30, [1] * 10 + [0] * 20, names), n_resamples=200)
    recall = report.metrics["sensitivity"]
    assert (recall.value, recall.low) == (0.0, 0.0)
    assert recall.high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert any("Every prediction is “normal”" in note for note in report.notes)
    # never predicted: no patient to count
    assert report.metrics["precision[pneumonia]"].method == "bootstrap"


def test_one_patient_still_has_no_interval() -> None:
    report = evaluate(*case([0.9, 0.8], [1, 1], ["a", "a"]), n_resamples=50)
    assert np.isnan(report.metrics["accuracy"].low)


@st.composite
def any_units(draw: st.DrawFn, labels: int = 2) -> ScoredUnits:
    """Units of few patients, often with constant scores, perfect ones, or a single class."""
    n = draw(st.integers(2, 12))
    truth = np.array(draw(st.lists(st.integers(0, labels - 1), min_size=n, max_size=n)))
    levels = st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0])
    kind = draw(st.sampled_from(["constant", "perfect", "reversed", "any"]))
    proba = np.eye(labels)[truth] * 0.7 + 0.15
    if kind == "constant":
        proba = np.tile(np.arange(1.0, labels + 1), (n, 1))
    elif kind == "reversed":
        proba = 1 - proba
    elif kind == "any":
        proba = np.array(draw(st.lists(st.tuples(*[levels] * labels), min_size=n, max_size=n))) + 0.01
    proba = proba / proba.sum(axis=1, keepdims=True)
    patient = np.array(draw(st.permutations(range(n))) if draw(st.booleans()) else sorted(np.arange(n) // 2))
    return ScoredUnits(
        truth=np.eye(labels, dtype=bool)[truth],
        predicted=np.eye(labels, dtype=bool)[proba.argmax(axis=1)],
        probabilities=proba,
        patient=patient,
        item_unit=np.arange(n),
        item_probabilities=proba,
        patient_names=tuple(map(str, range(int(patient.max()) + 1))),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), labels=st.sampled_from([2, 3]), method=st.sampled_from(["auto", "bootstrap"]))
def test_every_interval_has_width_or_a_reason(data: st.DataObject, labels: int, method: str) -> None:
    classes = ("a", "b", "c")[:labels]
    units = data.draw(any_units(labels))
    support = Support.count(units.truth, "multiclass", classes)
    options: dict[str, Any] = {"ci": 0.95, "n_resamples": 40, "seed": 0, "method": method}
    for name, found in estimate_metrics(units, support, **options).items():
        if np.isnan(found.value):
            assert np.isnan(found.low), name
            assert str(found) == "not defined"
        elif np.isnan(found.low):
            assert found.reason, name
            assert f"no interval: {found.reason}" in str(found)
        else:
            assert found.low < found.high, name
            assert not found.reason
            low, high = str(found).split("(")[1].rstrip(")").split("–")
            assert low != high, (name, str(found))
    other = data.draw(any_units(labels))
    if len(other) != len(units):
        return
    other = ScoredUnits(**{**vars(units), "probabilities": other.probabilities, "predicted": other.predicted})
    for name, difference in compare_metrics(units, other, support, **options).items():
        if np.isnan(difference.value):
            continue
        assert difference.low < difference.high or (np.isnan(difference.low) and difference.reason), name


@pytest.mark.parametrize("scores", [[0.5] * 30, [0.9] * 10 + [0.1] * 20, [0.1] * 10 + [0.9] * 20])
def test_constant_perfect_and_reversed_scores(scores: list[float]) -> None:
    report = evaluate(*case(scores, [1] * 10 + [0] * 20, [f"p{n}" for n in range(30)]), n_resamples=100)
    assert "no interval: all resamples have this value" in str(report)
    table = report.to_pandas().set_index("metric")
    assert table.loc["f1_macro", "reason"] == "all resamples have this value"
    without = table["low"].isna() & table["value"].notna()
    assert (without == (table["reason"] != "")).all()
    assert (table["low"] < table["high"])[table["low"].notna()].all()
    auroc = report.metrics["auroc"]
    if auroc.value == 0.5:
        assert np.isnan(auroc.low)
    else:
        expected = compute_newcombe_interval(auroc.value, 10, 20, ci=0.95)
        assert (auroc.low, auroc.high, auroc.method) == (expected.low, expected.high, "newcombe")


@pytest.mark.parametrize(("positives", "negatives"), [(1, 1), (2, 50), (10, 20), (1000, 1000)])
def test_score_intervals_of_areas_fulfil_their_equation(positives: int, negatives: int) -> None:
    """Newcombe 2006, method 5: the end's distance from the estimate is z standard errors at the end."""
    low = compute_newcombe_interval(1.0, positives, negatives, ci=0.95).low
    n = (positives + negatives) / 2 - 1
    spread = 1 + n * (1 - low) / (2 - low) + n * low / (1 + low)
    variance = low * (1 - low) * spread / (positives * negatives)
    assert 1 - low == pytest.approx(1.959964 * variance**0.5, rel=1e-5)
    assert 0 < low < 1
    mirrored = compute_newcombe_interval(0.0, negatives, positives, ci=0.95)
    assert mirrored.low == 0
    assert mirrored.high == pytest.approx(1 - low)
