"""Scores of predictions given as arrays: as evaluate's, whatever holds them, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, roc_auc_score

import medimg
from medimg.errors import DatasetError
from medimg.evaluation._scored_items import render_image
from tests.evaluation.fakes import FakeDataset, FakeModel, make_pair
from tests.sampling import sample

TASKS = {
    "binary": ("multiclass", ("normal", "pneumonia")),
    "multiclass": ("multiclass", ("a", "b", "c")),
    "multilabel": ("multilabel", ("a", "b", "c")),
}


def pair_of(kind: str, **options: Any) -> tuple[FakeModel, FakeDataset]:
    task, classes = TASKS[kind]
    return make_pair(task, classes, **{"n_patients": 12, "per_patient": 3, **options})  # type: ignore[arg-type]


def score(pair: FakeModel, dataset: FakeDataset, /, **options: Any) -> medimg.Report:
    given = {"classes": dataset.classes, "patients": dataset.patients, "n_resamples": 50, **options}
    return medimg.score(dataset.labels, pair.probabilities, **given)


@pytest.mark.parametrize("unit", ["patient", "image"])
@pytest.mark.parametrize("kind", TASKS)
def test_scores_are_those_of_evaluate(kind: str, unit: Any) -> None:
    model, dataset = pair_of(kind)
    groups = {"site": [f"site {p}" for p in np.arange(len(dataset)) // 3 % 2]}
    expected = medimg.evaluate(model, dataset, unit=unit, n_resamples=50, subgroups=groups, salt="s")
    found = score(model, dataset, unit=unit, subgroups=pd.DataFrame(groups), salt="s")
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas())
    assert np.array_equal(found.confusion, expected.confusion)
    pd.testing.assert_frame_equal(found.predictions, expected.predictions)
    assert found.subgroups is not None
    assert expected.subgroups is not None
    pd.testing.assert_frame_equal(found.subgroups, expected.subgroups)
    assert found.counts == expected.counts
    assert found.notes[1:] == expected.notes
    assert found.curves is not None
    assert expected.curves is not None
    for name, line in expected.curves.roc.items():
        assert np.array_equal(found.curves.roc[name].y, line.y)


def test_series_are_units_if_they_are_given() -> None:
    model, dataset = pair_of("binary")
    series = [str(n // 2) for n in range(len(dataset))]
    patients = [f"p{int(n) // 2}" for n in series]
    labels = np.array([int(p[1:]) % 2 for p in patients])
    found = medimg.score(
        labels,
        model.probabilities,
        classes=dataset.classes,
        patients=patients,
        series=series,
        unit="series",
        n_resamples=10,
    )
    assert (found.n_units, found.unit, found.provenance["data"]["evaluated"]["series"]) == (18, "series", 18)
    unknown = medimg.score(
        [0, 0, 1], [0.1, 0.3, 0.8], series=["x", "x", "none"], unit="series", n_resamples=5
    )
    assert (unknown.n_units, unknown.n_patients) == (2, 2)
    with pytest.raises(DatasetError, match="pass series="):
        medimg.score(labels, model.probabilities, unit="series")


def test_values_equal_scikit_learn() -> None:
    model, dataset = pair_of("multiclass", n_patients=40, per_patient=1)
    found = score(model, dataset).metrics
    y, p = dataset.labels, model.probabilities
    expected = {
        "auroc": roc_auc_score(y, p, multi_class="ovr"),
        "auprc": average_precision_score(np.eye(3)[y], p),
        "balanced_accuracy": balanced_accuracy_score(y, p.argmax(1)),
        "f1_macro": f1_score(y, p.argmax(1), average="macro"),
    }
    assert {name: found[name].value for name in expected} == pytest.approx(expected, abs=1e-12)


NAMES = np.array(["normal", "pneumonia"])
PROBABILITIES: dict[str, Callable[[np.ndarray], Any]] = {
    "numpy": lambda p: p,
    "column": lambda p: p[:, 1],
    "column (n, 1)": lambda p: p[:, 1:],
    "list": lambda p: p[:, 1].tolist(),
    "rows": lambda p: p.tolist(),
    "tensor": lambda p: torch.tensor(p, requires_grad=True),
    "tensors": lambda p: [torch.tensor(row, requires_grad=True) for row in p],
    "table": lambda p: pd.DataFrame(p, columns=NAMES),
    "table, other order": lambda p: pd.DataFrame(p[:, ::-1], columns=NAMES[::-1]),
    "table as of a report": lambda p: pd.DataFrame(p[:, ::-1], columns=["p_pneumonia", "p_normal"]),
    "table without names": pd.DataFrame,
    "series": lambda p: pd.Series(p[:, 1], index=np.arange(len(p)) + 7),
}
LABELS: dict[str, Callable[[np.ndarray], Any]] = {
    "indices": lambda y: y,
    "floats": lambda y: y.astype(float).tolist(),
    "column (n, 1)": lambda y: y[:, None],
    "flags": lambda y: y == 1,
    "names": lambda y: NAMES[y],
    "list of names": lambda y: NAMES[y].tolist(),
    "tensor": torch.tensor,
    "series": lambda y: pd.Series(NAMES[y]),
    "categories": lambda y: pd.Series(pd.Categorical(NAMES[y])),
    "Int64": lambda y: pd.Series(y, dtype="Int64"),
    "objects": lambda y: y.astype(object),
    "sparse": lambda y: torch.tensor(y).to_sparse(),
}


@pytest.mark.parametrize("which", sample(list(PROBABILITIES)))
def test_probabilities_in_any_form(which: str) -> None:
    model, dataset = pair_of("binary")
    expected = score(model, dataset, ci_method="bootstrap")
    given = PROBABILITIES[which](model.probabilities)
    found = medimg.score(
        dataset.labels, given, classes=NAMES, patients=dataset.patients, n_resamples=50, ci_method="bootstrap"
    )
    assert {n: e.value for n, e in found.metrics.items()} == pytest.approx(
        {n: e.value for n, e in expected.metrics.items()}, abs=1e-12
    )


@pytest.mark.parametrize("which", LABELS)
def test_labels_in_any_form(which: str) -> None:
    model, dataset = pair_of("binary", per_patient=1)
    found = medimg.score(
        LABELS[which](dataset.labels), model.probabilities, classes=iter(NAMES), n_resamples=5
    )
    assert found.predictions["label"].tolist() == NAMES[dataset.labels].tolist()


def test_names_of_classes_that_are_numbers() -> None:
    p = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
    for classes, labels in (
        ([1, 2, 3], [1, 2, 3]),
        (["1", "2", "3"], np.array([1.0, 2, 3])),
        (None, [0, 1, 2]),
    ):
        found = medimg.score(labels, p, classes=classes, n_resamples=5)
        assert found.metrics["accuracy"].value == 1
    assert medimg.score(
        ["2", "1"], [[0.1, 0.9], [0.9, 0.1]], classes=[1, 2], n_resamples=5
    ).confusion.tolist() == [
        [1, 0],
        [0, 1],
    ]


def test_half_precision() -> None:
    model, dataset = pair_of("multiclass")
    for dtype in (torch.bfloat16, torch.float16):
        found = medimg.score(dataset.labels, torch.tensor(model.probabilities, dtype=dtype), n_resamples=5)
        assert found.metrics["brier"].value == pytest.approx(
            score(model, dataset, unit="image").metrics["brier"].value, abs=0.01
        )
    medimg.score(dataset.labels, model.probabilities.astype(np.float16), n_resamples=5)


def test_multilabel_tables_are_matched_by_their_columns() -> None:
    model, dataset = pair_of("multilabel")
    y = pd.DataFrame(dataset.labels, columns=list("abc"))
    p = pd.DataFrame(model.probabilities, columns=list("abc"))
    found = medimg.score(y[["c", "a", "b"]], p[["b", "c", "a"]], classes=["a", "b", "c"], n_resamples=5)
    expected = score(model, dataset, unit="image", n_resamples=5)
    assert {n: e.value for n, e in found.metrics.items()} == {n: e.value for n, e in expected.metrics.items()}
    assert medimg.score(y, p, n_resamples=5).classes == ("a", "b", "c")


def test_one_label_of_a_multilabel_task() -> None:
    found = medimg.score([[1], [0], [1]], [[0.9], [0.2], [0.4]], task="multilabel", n_resamples=5)
    assert found.confusion.tolist() == [[[1, 0], [1, 1]]]


def test_one_hot_labels_need_a_task() -> None:
    y, p = np.eye(3), np.eye(3) * 0.7 + 0.1
    with pytest.raises(DatasetError, match='task="multiclass", or task="multilabel"'):
        medimg.score(y, p)
    assert medimg.score(y, p, task="multiclass", n_resamples=5).task == "multiclass"
    assert medimg.score(y, p, task="multilabel", n_resamples=5).task == "multilabel"
    # softmax of labels that do not exclude each other
    assert (
        medimg.score([[1, 1, 0], [0, 0, 1]], [[0.9, 0.8, 0.1], [0.1, 0.2, 0.7]], n_resamples=5).task
        == "multilabel"
    )


def test_thresholds_decide() -> None:
    model, dataset = pair_of("binary")
    found = score(model, dataset, unit="image", thresholds=0.8)
    predicted = (model.probabilities[:, 1] >= 0.8).astype(int)
    assert found.confusion[:, 1].sum() == predicted.sum()
    for other in (np.array(0.8), torch.tensor([0.8], dtype=torch.float64)):
        again = score(model, dataset, unit="image", thresholds=other)
        assert np.array_equal(again.confusion, found.confusion)
    labels = score(*pair_of("multilabel"), unit="image", thresholds=[0.2, 0.5, 0.9])
    assert labels.provenance["evaluation"]["operating_points"] == [0.2, 0.5, 0.9]
    for options, message in (
        ({"thresholds": 2}, "at most 1"),
        ({"thresholds": [0.1, 0.2]}, "one, of the second class"),
    ):
        with pytest.raises(DatasetError, match=message):
            score(model, dataset, **options)
    with pytest.raises(DatasetError, match="most probable"):
        score(*pair_of("multiclass"), thresholds=0.5)


def test_a_table_with_one_column_of_labels_has_no_names_of_classes() -> None:
    model, dataset = pair_of("multiclass")
    labels = pd.DataFrame({"label": np.asarray(dataset.labels)})
    found = medimg.score(labels, model.probabilities, n_resamples=20)
    expected = medimg.score(dataset.labels, model.probabilities, n_resamples=20)
    assert found.classes == expected.classes
    assert np.array_equal(found.confusion, expected.confusion)


def test_unknown_patients_are_counted_and_said() -> None:
    model, dataset = pair_of("binary", per_patient=1)
    found = score(model, dataset, patients=None)
    assert found.unit == "image"
    assert found.n_patients == len(dataset)
    assert any("12 images have no known patient" in note for note in found.notes)
    some = [None, np.nan, "", "ANONYMOUS", *dataset.patients[4:]]
    assert any("4 images have no known" in note for note in score(model, dataset, patients=some).notes)
    with pytest.raises(DatasetError, match="pass patients="):
        score(model, dataset, patients=None, unit="patient")


def test_spellings_of_a_patient_are_one() -> None:
    found = medimg.score(
        [0, 0, 1, 1], [0.1, 0.2, 0.7, 0.6], patients=cast("Any", [3, 3.0, "P  7", " P 7"]), n_resamples=5
    )
    assert found.n_patients == 2


P = np.array([[0.7, 0.3], [0.2, 0.8], [0.4, 0.6]])
REFUSED: dict[str, tuple[Any, Any, dict[str, Any], str]] = {
    "logits": ([0, 1, 1], P * 8 - 4, {}, "look like logits; use their softmax"),
    "logits of one column": ([0, 1, 1], [-3.0, 2, 5], {}, "use their sigmoid"),
    "logits of labels": ([[0, 1], [1, 1], [0, 0]], P * 8 - 4, {}, "use their sigmoid"),
    "logarithms": ([0, 1, 1], np.log(P), {}, "exponential"),
    "percentages": ([0, 1, 1], P * 100, {}, "divide percentages by 100"),
    "sums": ([0, 1, 1], P * 0.9, {}, "sum to 0.9 to 0.9; expected 1"),
    "NaN": ([0, 1, 1], [0.1, np.nan, 0.5], {}, "not finite in 1 of 3 rows"),
    "decisions": ([0, 1, 1], np.array([True, False, True]), {}, "True and False"),
    "texts": ([0, 1, 1], ["0.1", "0.2", "0.3"], {}, "expected numbers"),
    "complex": ([0, 1, 1], P[:, 1] * 1j, {}, "expected numbers"),
    "ragged": ([0, 1, 1], [[0.1], [0.2, 0.8], [1.0]], {}, "differ in length"),
    "lengths": ([0, 1], P, {}, "y_true has 2 rows, y_prob 3"),
    "empty": ([], [], {}, "empty"),
    "a number": (1, 0.5, {}, "found a int"),
    "three axes": ([0, 1, 1], P[None], {}, r"shape \(1, 3, 2\)"),
    "index out of range": ([0, 1, 2], P, {}, "from 0 to 2; expected whole numbers from 0 to 1"),
    "a fraction": ([0, 1, 0.5], P, {}, "whole numbers"),
    "missing label": ([0, 1, np.nan], P, {}, "missing in 1 of 3"),
    "missing name": (["a", None, "b"], P, {"classes": ["a", "b"]}, "missing in 1 of 3"),
    "names without classes": (["a", "b", "b"], P, {}, "classes=\\["),
    "other names": (["a", "SECRET", "b"], P, {"classes": ["a", "b"]}, "1 of 3 labels"),
    "three classes": ([0, 1, 1], P, {"classes": ["a", "b", "c"]}, "2 columns and there are 3 classes"),
    "a class twice": ([0, 1, 1], P, {"classes": ["a", "a"]}, "twice"),
    "a text": ([0, 1, 1], P, {"classes": "ab"}, "list of names"),
    "a set": ([0, 1, 1], P, {"classes": {"a", "b"}}, "in the order of the outputs"),
    "no list": ([0, 1, 1], P, {"classes": 2}, "found a int"),
    "a missing class": ([0, 1, 1], P, {"classes": [None, "b"]}, "missing name"),
    "no columns": (np.zeros((3, 0)), np.zeros((3, 0)), {}, "empty"),
    "a threshold": ([0, 1, 1], P, {"thresholds": "half"}, "thresholds must be a number"),
    "an empty image": ([0, 1, 1], P, {"images": np.zeros((3, 0, 5))}, "an image has the shape"),
    "a missing value": ([0, 1, 1], pd.Series([0.1, None, 0.4], dtype="Float64"), {}, "not finite in 1"),
    "masked": ([0, 1, 1], np.ma.masked_greater([0.1, 0.5, 0.4], 0.45), {}, "masked"),
    "task": ([0, 1, 1], P, {"task": "multilabel"}, "one column for each label"),
    "unknown task": ([0, 1, 1], P, {"task": "binary"}, "multiclass"),
    "shapes": ([[0, 1], [1, 1], [0, 0]], [0.1, 0.2, 0.3], {}, "expected the same"),
    "indicators": ([[0, 2], [1, 1], [0, 0]], P, {}, "expected 0 and 1"),
    "missing indicator": ([[0, np.nan], [1, 1], [0, 0]], P, {"task": "multilabel"}, "missing in 1 of 6"),
    "columns": ([0, 1, 1], pd.DataFrame(P, columns=["a", "b"]), {"classes": ["a", "c"]}, "columns of y_prob"),
    "patients": ([0, 1, 1], P, {"patients": ["a", "b"]}, r"expected \(3,\)"),
    "rounded patients": ([0, 1, 1], P, {"patients": [1e17, 1e17, 1e17]}, "rounded"),
    "images": ([0, 1, 1], P, {"images": [np.zeros((4, 4))]}, "1 images for 3 rows"),
    "an image": ([0, 1, 1], P, {"images": "a.png"}, "list with one image"),
    "headers": ([0, 1, 1], P, {"subgroups": "sex"}, "read from headers"),
    "modalities": ([0, 1, 1], P, {"subgroups": ["modality"]}, "headers"),
    "a function": ([0, 1, 1], P, {"subgroups": {"x": lambda s: s.uid}}, "function of a series"),
    "unit": ([0, 1, 1], P, {"unit": "slide"}, "unit must be"),
    "ci": ([0, 1, 1], P, {"ci": 95}, "ci must be"),
    "model": ([0, 1, 1], P, {"model": 5}, "model must be text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    y_true, y_prob, options, message = REFUSED[case]
    with pytest.raises(DatasetError, match=message) as caught:
        medimg.score(y_true, y_prob, **options)
    assert "SECRET" not in str(caught.value)


def test_rows_in_different_orders_are_not_mixed_up() -> None:
    y = pd.Series([0, 1, 1], index=[10, 11, 12])
    p = pd.DataFrame(P, index=[12, 10, 11])
    with pytest.raises(DatasetError, match="same index in another order"):
        medimg.score(y, p)
    with pytest.raises(DatasetError, match="y_prob and patients have the same index"):
        medimg.score([0, 1, 1], p, patients=pd.Series(list("abc"), index=[10, 11, 12]))
    medimg.score(y, p.loc[y.index], n_resamples=5)
    medimg.score(y, pd.DataFrame(P), n_resamples=5)


def test_the_report_says_what_is_not_known(tmp_path: Path) -> None:
    model, dataset = pair_of("binary")
    report = score(model, dataset)
    page = report.to_html(tmp_path / "r.html", card=True).read_text("utf-8")
    card = (tmp_path / "r.md").read_text("utf-8")
    assert "Evaluation of predictions" in page
    assert "It is not known which images the model was trained on" in page
    assert "not known whether the probabilities were calibrated" in page
    for invented in (
        "No files were skipped",
        "Example images",
        "as the model received it",
        "medimg.calibrate",
        "resnet",
    ):
        assert invented not in page
    assert card.startswith("# Model card: model without a name")
    assert "preprocessing fingerprint: not stated" in card
    assert "Training data\n\n*Not stated.*" in card
    named = score(model, dataset, model="CheXNet of site A").to_html(tmp_path / "n.html", card=True)
    assert "Evaluation of CheXNet of site A" in named.read_text("utf-8")
    assert "# Model card: CheXNet of site A" in (tmp_path / "n.md").read_text("utf-8")


def test_decisions_are_noted() -> None:
    found = medimg.score([0, 1, 1, 0], [0, 1, 0, 0], n_resamples=5)
    assert any("as decisions are" in note for note in found.notes)


def test_images_are_examples(tmp_path: Path) -> None:
    model, dataset = pair_of("binary", n_patients=4, per_patient=1)
    pixels = [np.full((6, 8), 40 * n, np.uint8) for n in range(4)]
    paths = []
    for n, array in enumerate(pixels):
        array[0, 0] = 255
        paths.append(tmp_path / f"{n}.png")
        Image.fromarray(array).save(paths[-1])
    for images in (
        pixels,
        np.stack(pixels),
        torch.tensor(np.stack(pixels)),
        paths,
        pd.Series(list(map(str, paths))),
    ):
        found = score(model, dataset, images=images).example_images
        assert sorted(picture.item for picture in found) == [0, 1, 2, 3]
        for picture in found:
            assert np.array_equal(picture.pixels, pixels[picture.item])
    assert "Example images" in score(model, dataset, images=paths).to_html(tmp_path / "r.html").read_text(
        "utf-8"
    )


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 6), (4, 6)),
        ((4, 6, 3), (4, 6, 3)),
        ((3, 4, 6), (4, 6, 3)),
        ((1, 4, 6), (4, 6)),
        ((4, 6, 1), (4, 6)),
        ((9, 4, 6), (4, 6)),
        ((1, 9, 4, 6), (4, 6)),
        ((5, 3, 4, 6), (4, 6, 3)),
    ],
)
def test_axes_of_images(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    generator = np.random.default_rng(0)
    for array in (generator.normal(size=shape), torch.rand(shape), generator.random(shape) > 0.5):
        found = render_image(array)
        assert found.shape == expected
        assert found.dtype == np.uint8
        assert found.min() < found.max()


def test_copies_of_an_image_under_two_patients_are_noted() -> None:
    images = np.random.default_rng(0).random((4, 5, 5))
    images[3] = images[0]
    report = medimg.score(
        [0, 1, 1, 0], [0.1, 0.8, 0.6, 0.4], patients=list("abcd"), images=images, n_resamples=5
    )
    assert any("2 images have the same pixels" in note for note in report.notes)
    same = medimg.score(
        [0, 1, 1, 0], [0.1, 0.8, 0.6, 0.4], patients=list("abca"), images=images, n_resamples=5
    )
    assert not any("same pixels" in note for note in same.notes)


def test_a_dataset_gives_what_arrays_lack() -> None:
    model, dataset = pair_of("binary")
    found = medimg.score(
        dataset.labels, model.probabilities, classes=dataset.classes, images=dataset, n_resamples=50
    )
    expected = medimg.evaluate(model, dataset, n_resamples=50)
    pd.testing.assert_frame_equal(found.to_pandas(), expected.to_pandas())
    assert found.provenance["data"] == expected.provenance["data"]
    assert found.provenance["recipe_fingerprint"] == expected.provenance["recipe_fingerprint"]
    assert [p.item for p in found.example_images] == [p.item for p in expected.example_images]
    assert np.array_equal(found.example_images[0].pixels, expected.example_images[0].pixels)
    with pytest.raises(DatasetError, match="differs from the labels"):
        medimg.score(1 - dataset.labels, model.probabilities, classes=dataset.classes, images=dataset)
