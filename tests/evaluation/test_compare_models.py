"""Two models on the same images."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

import medimg
from medimg.errors import DatasetError
from medimg.evaluation.aggregation import make_units
from medimg.evaluation.compare_models import Difference, compare_models
from medimg.evaluation.evaluate import evaluate
from medimg.metrics.classification import Support
from medimg.metrics.delong import compute_delong
from tests.evaluation.fakes import FakeDataset, FakeModel, FakeRecipe, Task, make_pair
from tests.metrics.reference import plain_resamples
from tests.sampling import SLOW

#: The double loop is slow.
RESAMPLES = 25 if SLOW else 8


def three(task: Task = "multiclass", **options: Any) -> tuple[FakeModel, FakeModel, FakeDataset]:
    """Two models on the same images: the second knows less."""
    classes = ("normal", "pneumonia") if task == "multiclass" else ("a", "b", "c")
    model, dataset = make_pair(task, classes, **options)
    noise = np.random.default_rng(9).dirichlet(np.ones(len(classes)), size=len(dataset))
    return model, dataclasses.replace(model, probabilities=0.6 * model.probabilities + 0.4 * noise), dataset


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_differences_are_those_of_a_double_loop_over_the_same_patients(task: Task) -> None:
    first, second, dataset = three(task, n_patients=24, per_patient=2)
    found = compare_models(first, second, dataset, unit="image", n_resamples=RESAMPLES, seed=3)
    loops = []
    for model in (first, second):
        units = make_units(dataset, model.probabilities, "image")
        support = Support.count(units.truth, task, dataset.classes)
        loops.append(plain_resamples(units, support, n_resamples=RESAMPLES, seed=3))
    reports = [evaluate(model, dataset, unit="image", n_resamples=5).metrics for model in (first, second)]
    assert found.differences.keys() == reports[0].keys()
    for name, difference in found.differences.items():
        assert (difference.first, difference.second) == (reports[0][name].value, reports[1][name].value)
        samples = np.array([a[name] - b[name] for a, b in zip(*loops, strict=True)])
        if name.startswith("ece"):
            samples = 2 * difference.value - samples
        if np.isnan(samples).any():
            continue
        if np.isnan(difference.low):
            assert np.ptp(samples) < 1e-12
            continue
        rarer = min((samples <= 1e-12).sum(), (samples >= -1e-12).sum())
        assert difference.p == pytest.approx(min(1, 2 * (rarer + 1) / (RESAMPLES + 1))), name
        assert samples.min() - 1e-12 <= difference.low <= difference.high <= samples.max() + 1e-12


def test_auroc_of_independent_units_by_delong() -> None:
    first, second, dataset = three()
    difference = compare_models(first, second, dataset, n_resamples=10).differences["auroc"]
    units = [make_units(dataset, model.probabilities, "patient") for model in (first, second)]
    areas, covariance = compute_delong(units[0].truth[:, 1], np.stack([u.probabilities[:, 1] for u in units]))
    spread = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert difference.method == "delong"
    assert difference.value == pytest.approx(areas[0] - areas[1])
    assert difference.p == pytest.approx(2 * norm.sf(abs(difference.value) / spread))
    assert difference.high - difference.low == pytest.approx(2 * norm.ppf(0.975) * spread)
    resampled = compare_models(first, second, dataset, ci_method="bootstrap").differences["auroc"]
    assert (resampled.low, resampled.high) == pytest.approx((difference.low, difference.high), abs=0.03)


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_a_model_does_not_differ_from_itself(unit: Any) -> None:
    first, _, dataset = three()
    for difference in compare_models(first, first, dataset, unit=unit, n_resamples=30).differences.values():
        assert difference.value == 0
        assert difference.p == 1
        assert np.isnan([difference.low, difference.high]).all()
        assert "no interval" in str(difference)


def test_the_order_turns_the_sign_only() -> None:
    first, second, dataset = three()
    there, back = (
        compare_models(*pair, dataset, n_resamples=100).differences
        for pair in ((first, second), (second, first))
    )
    for name in ("auroc", "brier", "accuracy"):
        assert there[name].value == -back[name].value
        assert (there[name].low, there[name].p) == pytest.approx(
            (-back[name].high, back[name].p), nan_ok=True
        )
    assert there["brier"].value < 0


def test_pairing_is_narrower_than_two_reports() -> None:
    first, second, dataset = three()
    difference = compare_models(first, second, dataset).differences["brier"]
    ends = [evaluate(model, dataset).metrics["brier"] for model in (first, second)]
    assert difference.high - difference.low < sum(e.high - e.low for e in ends) / 2


@pytest.mark.slow
def test_p_values_of_equal_models_are_uniform() -> None:
    """Under no difference, one in ten is below 0.1."""
    below = {"auroc": 0, "accuracy": 0}
    generator = np.random.default_rng(5)
    for seed in range(100):
        model, dataset = make_pair(n_patients=60, per_patient=2, seed=seed, signal=1.0)
        models = []
        for _ in range(2):
            odds = np.log(model.probabilities) + generator.normal(size=model.probabilities.shape)
            models.append(FakeModel(np.exp(odds) / np.exp(odds).sum(axis=1, keepdims=True)))
        found = compare_models(models[0], models[1], dataset, unit="image", n_resamples=100, seed=seed)
        for name in below:
            below[name] += found.differences[name].p < 0.1
    assert all(3 <= n <= 18 for n in below.values()), below


def test_calibration_errors_differ_as_much_as_they_do() -> None:
    """Resamples of what is calibrated lie further above its error than those of what is not."""
    held = 0
    for seed in range(40):
        generator = np.random.default_rng(seed)
        odds = generator.normal(0, 1.5, 300)
        labels = (generator.random(300) < 1 / (1 + np.exp(-odds))).astype(int)
        dataset = FakeDataset(labels, tuple(map(str, range(300))))
        positive = [1 / (1 + np.exp(-odds * sharper)) for sharper in (1, 2)]
        first, second = (FakeModel(np.column_stack([1 - p, p])) for p in positive)
        difference = compare_models(first, second, dataset, n_resamples=200).differences["ece"]
        # that of four million such images
        held += difference.low <= -0.1014 <= difference.high
    assert held >= 28


def test_few_patients_are_warned_of() -> None:
    first, second, dataset = three(n_patients=4)
    found = compare_models(first, second, dataset, n_resamples=20)
    assert any("Only 4 patients" in note for note in found.notes)
    assert "Only 4 patients" in repr(found)
    assert compare_models(*three(), n_resamples=20).notes == ()


def test_table_and_text() -> None:
    first, second, dataset = three()
    found = medimg.compare_models(first, second, dataset, n_resamples=50)
    table = found.to_pandas().set_index("metric")
    assert table.loc["auroc", "method"] == "delong"
    assert (table["difference"] == table["first"] - table["second"]).all()
    assert "auroc" in repr(found)
    assert "p = " in repr(found) or "p < " in repr(found)
    nan = math.nan
    assert str(Difference(nan, nan, nan, nan, nan)) == "not defined"
    assert str(Difference(0.5, 0.25, nan, nan, nan)) == "+0.250"


def test_one_patient_has_differences_and_no_more() -> None:
    first, second, dataset = three(n_patients=1)
    difference = compare_models(first, second, dataset).differences["brier"]
    assert not math.isnan(difference.value)
    assert math.isnan(difference.p)


def test_images_have_to_be_the_same() -> None:
    first, second, dataset = three()
    turned = dataclasses.replace(dataset, labels=1 - dataset.labels)
    with pytest.raises(DatasetError, match="do not contain the same images"):
        compare_models(first, second, dataset, second_dataset=turned)
    other = FakeRecipe(fingerprint="feed")
    with pytest.raises(DatasetError, match="differ in preprocessing"):
        compare_models(first, dataclasses.replace(second, preprocess=other), dataset)
    same = dataclasses.replace(dataset, preprocess=other)
    found = compare_models(first, dataclasses.replace(second, preprocess=other), dataset, second_dataset=same)
    assert found.n_patients == 40
