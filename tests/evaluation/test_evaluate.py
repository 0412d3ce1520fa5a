"""What evaluate makes of units, and what it refuses."""

import dataclasses
import json
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from medimg.errors import DatasetError, TrainingError
from medimg.evaluation.evaluate import evaluate
from medimg.evaluation.report.report import Report
from tests.evaluation.fakes import FakeDataset, FakeModel, FakeRecipe, make_pair


def small(**changes: Any) -> tuple[FakeModel, FakeDataset]:
    """Three patients: one with two series, labels 0, 0, 1."""
    dataset = FakeDataset(
        labels=np.array([0, 0, 0, 0, 1]),
        patients=("x", "x", "x", "y", "z"),
        series_uids=("1.1", "1.1", "1.2", "2.1", "3.1"),
    )
    positive = np.array([0.2, 0.4, 0.9, 0.6, 0.7])
    return FakeModel(np.column_stack([1 - positive, positive])), dataclasses.replace(dataset, **changes)


def test_patients_are_scored_by_the_mean_of_their_images() -> None:
    report = evaluate(*small(), n_resamples=10)
    np.testing.assert_allclose(report.predictions["p_pneumonia"], [0.5, 0.6, 0.7])
    assert report.predictions["predicted"].tolist() == ["normal", "pneumonia", "pneumonia"]
    assert report.predictions["n_images"].tolist() == [3, 1, 1]
    assert report.predictions["item"].tolist() == [0, 3, 4]
    assert report.confusion.tolist() == [[1, 1], [0, 1]]
    assert (report.n_units, report.n_patients, report.n_images) == (3, 3, 5)


def test_series_are_units_of_their_own() -> None:
    report = evaluate(*small(), unit="series", n_resamples=10)
    np.testing.assert_allclose(report.predictions["p_pneumonia"], [0.3, 0.9, 0.6, 0.7])
    assert report.predictions["subject"].nunique() == 3


def test_images_without_a_series_are_series_of_their_file() -> None:
    sources = ("a.png", "b.png", "a.png", "c.png", "d.png")
    report = evaluate(*small(series_uids=("",) * 5, sources=sources), unit="series", n_resamples=10)
    np.testing.assert_allclose(report.predictions["p_pneumonia"], [0.55, 0.4, 0.6, 0.7])


def test_images_are_scored_one_by_one() -> None:
    report = evaluate(*small(), unit="image", n_resamples=10)
    np.testing.assert_allclose(report.predictions["p_pneumonia"], [0.2, 0.4, 0.9, 0.6, 0.7])


def test_series_items_can_be_evaluated_by_patient() -> None:
    report = evaluate(*small(unit="series"), n_resamples=10)
    assert report.n_units == 3
    assert report.size == "3 patients, 5 series"
    assert report.example_images[0].pixels.shape == (32, 32)


def test_confusion_equals_scikit_learn() -> None:
    model, dataset = make_pair("multiclass", ("a", "b", "c"))
    report = evaluate(model, dataset, unit="image", n_resamples=10)
    expected = confusion_matrix(dataset.labels, model.probabilities.argmax(axis=1))
    assert np.array_equal(report.confusion, expected)
    model, dataset = make_pair("multilabel", ("a", "b", "c"))
    report = evaluate(model, dataset, unit="image", n_resamples=10)
    expected = multilabel_confusion_matrix(dataset.labels, model.probabilities >= 0.5)
    assert np.array_equal(report.confusion, expected)


@dataclasses.dataclass(frozen=True)
class Points:
    """Operating points, as a calibrated model has them."""

    points: tuple[SimpleNamespace, ...]
    outliers: None = None

    def to_dict(self) -> dict[str, Any]:
        return {}


@dataclasses.dataclass(frozen=True)
class CalibratedModel(FakeModel):
    calibration: Points | None = None


def test_operating_points_decide() -> None:
    model, dataset = make_pair()
    high = CalibratedModel(model.probabilities, calibration=Points((SimpleNamespace(threshold=0.8),)))
    report = evaluate(high, dataset, unit="image", n_resamples=10)
    expected = confusion_matrix(dataset.labels, model.probabilities[:, 1] >= 0.8)
    assert np.array_equal(report.confusion, expected)
    for picture in report.example_images:
        shown = model.probabilities[picture.item, dataset.classes.index(picture.predicted)]
        assert picture.confidence == f"{shown:.2f}"
    assert not np.array_equal(
        report.confusion, evaluate(model, dataset, unit="image", n_resamples=10).confusion
    )
    assert report.provenance["evaluation"]["operating_points"] == [0.8]
    plain, labeled = make_pair("multilabel", ("a", "b"))
    cuts = Points((SimpleNamespace(threshold=0.2), SimpleNamespace(threshold=0.9)))
    report = evaluate(
        CalibratedModel(plain.probabilities, ("a", "b"), "multilabel", calibration=cuts),
        labeled,
        unit="image",
        n_resamples=10,
    )
    expected = multilabel_confusion_matrix(labeled.labels, plain.probabilities >= np.array([0.2, 0.9]))
    assert np.array_equal(report.confusion, expected)


def test_same_seed_same_intervals_and_another_seed_others() -> None:
    pair = make_pair()
    first, again, other = (evaluate(*pair, n_resamples=200, seed=seed).metrics for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_intervals_of_images_are_as_wide_as_those_of_their_patients() -> None:
    """Copies of an image tell nothing new; a bootstrap of images would take them for independent."""
    model, dataset = make_pair(per_patient=1)
    copies = np.repeat(np.arange(len(dataset)), 10)
    many = dataclasses.replace(
        dataset,
        labels=dataset.labels[copies],
        patients=tuple(dataset.patients[i] for i in copies),
        series_uids=(),
        sources=(),
    )
    once = evaluate(model, dataset, n_resamples=300, ci_method="bootstrap").metrics["auroc"]
    repeated = evaluate(
        dataclasses.replace(model, probabilities=model.probabilities[copies]),
        many,
        unit="image",
        n_resamples=300,
    ).metrics["auroc"]
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high), abs=1e-12)
    assert once.low < once.value < once.high


def test_a_higher_ci_is_wider() -> None:
    pair = make_pair()
    narrow, wide = (evaluate(*pair, n_resamples=300, ci=ci).metrics["accuracy"] for ci in (0.5, 0.99))
    assert wide.low < narrow.low
    assert narrow.high < wide.high


def test_one_patient_has_scores_but_no_intervals() -> None:
    report = evaluate(*make_pair(n_patients=1), n_resamples=10)
    assert report.metrics["accuracy"].value in (0.0, 1.0)
    assert np.isnan(report.metrics["accuracy"].low)
    assert np.isnan(report.metrics["auroc"].value)
    assert any("Only 1 patient" in note for note in report.notes)
    assert any("no example of class “pneumonia”" in note for note in report.notes)


def test_few_patients_are_warned_of_and_many_are_not() -> None:
    assert any("are meaningless" in note for note in evaluate(*small(), n_resamples=50).notes)
    assert any(
        "first indication" in note for note in evaluate(*make_pair(n_patients=12), n_resamples=50).notes
    )
    assert evaluate(*make_pair(n_patients=300, per_patient=1), n_resamples=50).notes == ()


def test_no_error_at_all_is_no_certainty() -> None:
    report = evaluate(*make_pair(n_patients=60, signal=20), n_resamples=50)
    assert report.metrics["accuracy"].value == 1.0
    assert any("5 %" in note and "rule of three" in note for note in report.notes)


def test_dropped_resamples_are_counted() -> None:
    report = evaluate(*small(), n_resamples=500)
    assert 100 < report.metrics["auprc"].dropped < 250
    assert report.metrics["accuracy"].dropped == 0
    assert any("lacked a class" in note for note in report.notes)


def test_salt_makes_subjects_comparable_and_no_salt_does_not() -> None:
    def subjects(salt: str | None) -> list[str]:
        return evaluate(*small(), n_resamples=10, salt=salt).predictions["subject"].tolist()

    assert subjects("s") == subjects("s") != subjects("t")
    assert subjects(None) != subjects(None)


def test_two_thousand_images_take_seconds() -> None:
    model, dataset = make_pair(n_patients=400, per_patient=5)
    start = time.perf_counter()
    evaluate(model, dataset, unit="image", n_resamples=500)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("ci", [0.0, 1.0, 95, float("nan"), "0.95", None])
def test_ci_out_of_range(ci: Any) -> None:
    with pytest.raises(DatasetError, match="ci must be a number, above 0 and below 1"):
        evaluate(*small(), ci=ci)


@pytest.mark.parametrize("n", [0, 10.5, "10", True, None])
def test_no_resamples(n: Any) -> None:
    with pytest.raises(DatasetError, match="n_resamples must be a whole number, 1 or more"):
        evaluate(*small(), n_resamples=n)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None])
def test_seeds_that_are_none(seed: Any) -> None:
    with pytest.raises(DatasetError, match="seed must be a whole number"):
        evaluate(*small(), seed=seed)


@pytest.mark.parametrize("salt", ["", b"SENTINEL", 5])
def test_salts_that_are_no_secret(salt: Any) -> None:
    with pytest.raises(DatasetError, match="salt must be a secret text") as caught:
        evaluate(*small(), salt=salt)
    assert "SENTINEL" not in str(caught.value)


def test_numbers_of_numpy_are_fit_for_json() -> None:
    report = evaluate(*small(), ci=np.float32(0.9), n_resamples=np.int64(10), seed=np.int64(1))  # type: ignore[arg-type]  # NumPy's
    assert json.loads(json.dumps(report.provenance))["evaluation"]["n_resamples"] == 10


@pytest.mark.parametrize(
    "options", [{"unit": "study"}, {"unit": "patient"}, {"subgroups": {"sex": ["F"]}}, {"subgroups": []}]
)
def test_what_can_be_refused_is_refused_before_anything_is_predicted(options: dict[str, Any]) -> None:
    class Untouched(FakeModel):
        def predict_proba(self, dataset: Any, **_: Any) -> Any:
            pytest.fail("something was predicted")

    model, dataset = small(labels=np.array([0, 1, 0, 0, 1]))
    with pytest.raises(DatasetError):
        evaluate(Untouched(model.probabilities), dataset, **{"unit": "image", **options})


def test_names_of_folders_that_are_no_utf_8() -> None:
    model, dataset = make_pair(n_patients=3, per_patient=1)
    report = evaluate(
        model, dataclasses.replace(dataset, patients=("x\udcff", "x\udcfe", "x")), n_resamples=10
    )
    assert report.predictions["subject"].nunique() == 3


def test_unknown_unit() -> None:
    with pytest.raises(DatasetError, match='unit must be "patient", "series" or "image"; found'):
        evaluate(*small(), unit="study")  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(0, int), "patients": ()}, "no images"),
        ({"classes": ("pneumonia", "normal")}, "same order"),
        ({"task": "multilabel"}, "task"),
        ({"preprocess": FakeRecipe(fingerprint="feed")}, "differ in preprocessing"),
        ({"labels": np.array([0, 0, 0, 0, 2])}, "from 0 to 1"),
        ({"labels": np.array([0, 1, 0, 0, 1])}, "unit='image'"),
        ({"patients": ("x", "", "x", "y", "z")}, "1 of 5 images have no patient"),
    ],
)
def test_unfit_datasets(changes: dict[str, Any], message: str) -> None:
    model, dataset = small()
    if not changes.get("patients", True):
        changes |= {"series_uids": (), "sources": ()}
    with pytest.raises(DatasetError, match=message):
        evaluate(model, dataclasses.replace(dataset, **changes))


def test_a_series_of_two_patients() -> None:
    model, dataset = small(series_uids=("1", "1", "1", "1", "2"))
    with pytest.raises(DatasetError, match="more than one patient"):
        evaluate(model, dataset, unit="series")


def test_images_of_a_dataset_of_series() -> None:
    with pytest.raises(DatasetError, match="whole series"):
        evaluate(*small(unit="series"), unit="image")


@pytest.mark.parametrize(
    ("probabilities", "message"),
    [
        (np.full((5, 2), np.nan), "not finite for 5 of 5"),
        (np.full((5, 2), 0.9), "softmax"),
        (np.array([[2.0, -1.0]] * 5), "from -1 to 2"),
        (np.full((5, 3), 1 / 3), r"\(5, 3\)"),
    ],
)
def test_outputs_that_are_no_probabilities(probabilities: Any, message: str) -> None:
    _, dataset = small()
    with pytest.raises(TrainingError, match=message):
        evaluate(FakeModel(probabilities), dataset)


def test_its_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, medimg.evaluation.evaluate, medimg; assert callable(medimg.evaluate); "
        "heavy = {'pandas', 'matplotlib', 'sklearn', 'monai', 'pytorch_lightning'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_report_is_frozen() -> None:
    report: Report = evaluate(*small(), n_resamples=10)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.n_units = 7  # type: ignore[misc]  # on purpose
