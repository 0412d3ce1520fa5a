"""Shares of 0 and 1 have intervals, and as wide ones as the patients are few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from medimg import evaluate
from medimg.metrics.intervals import exact_interval
from tests.evaluation.fakes import FakeDataset, FakeModel


@pytest.mark.parametrize("n", [1, 2, 21, 400])
@pytest.mark.parametrize("ci", [0.5, 0.95, 0.99])
def test_as_scipy(n: int, ci: float) -> None:
    for value in (0.0, 1.0):
        expected = binomtest(round(n * value), n).proportion_ci(ci, method="exact")
        np.testing.assert_allclose(exact_interval(value, n, ci), expected, rtol=1e-9, atol=1e-12)


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
