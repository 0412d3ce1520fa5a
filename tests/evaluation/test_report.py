"""The report: complete, self-contained, escaped, and without patients' names."""

import base64
import dataclasses
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medimg.errors import DatasetError
from medimg.evaluation.aggregation import make_units
from medimg.evaluation.evaluate import evaluate
from medimg.evaluation.report.example_images import _alternate_classes, to_pixels
from medimg.evaluation.report.plots import plot_training
from medimg.evaluation.report.report import Report
from tests.evaluation.fakes import FakeFit, FakeRecipe, Task, make_history, make_pair
from tests.sampling import SLOW

SENTINEL = "DOE^SENTINEL"
HOSTILE = "<img src=x onerror=alert(1)> & \"q\" 'r' $\\frac{$ _中"
KINDS: list[tuple[Task, tuple[str, ...]]] = [
    ("multiclass", ("normal", "pneumonia")),
    ("multiclass", ("healthy", "COVID-19", "other")),
    ("multilabel", ("effusion", "nodule", "mass", "fibrosis")),
    ("multilabel", ("effusion",)),
]
VOID = {"meta", "img", "br", "rect", "line"}


class Page(HTMLParser):
    """Collects the elements of a page and holds that each is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make_report(task: Task, classes: tuple[str, ...], n_patients: int = 30) -> Report:
    return evaluate(*make_pair(task, classes, n_patients=n_patients), n_resamples=50)


def read_page(report: Report, folder: Path, **options: object) -> tuple[str, Page]:
    path = report.to_html(folder / "report.html", **options)  # type: ignore[call-overload]  # on purpose
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


@pytest.mark.parametrize(("task", "classes"), KINDS)
def test_page_is_complete_and_refers_to_nothing_else(
    task: Task, classes: tuple[str, ...], tmp_path: Path
) -> None:
    report = make_report(task, classes)
    text, page = read_page(report, tmp_path, fit=FakeFit(make_history()), title="Test of the test set")
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert "Test of the test set" in page.text
    assert f"{report.metrics['auroc'].value:.3f}" in page.text
    for word in (
        *classes,
        "ROC",
        "Training",
        "Example images",
        "0123456789abcdef",
        "scikit-learn",
        "resnet18",
    ):
        assert word in page.text
    assert not {"script", "link", "iframe", "object", "base", "form"} & {tag for tag, _ in page.elements}
    assert "http:" not in text
    assert "https:" not in text
    images = page.all("img")
    assert len(images) == 5 + len(report.example_images)  # ROC, precision, reliability, training
    for image in images:
        assert str(image["src"]).startswith("data:image/")
        assert len(str(image["alt"])) > 10
    assert not any("href" in attributes or "srcset" in attributes for _, attributes in page.elements)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_plots_embed_nothing_from_elsewhere(tmp_path: Path) -> None:
    _, page = read_page(make_report(*KINDS[0]), tmp_path, fit=FakeFit(make_history()))
    addresses = [str(image["src"]) for image in page.all("img")]
    drawings = [base64.b64decode(a.partition(",")[2]).decode() for a in addresses if "svg" in a[:25]]
    assert len(drawings) == 5
    for drawing in drawings:
        assert not re.findall(r'(?:href|src)="(?!#)', drawing)
        assert "@import" not in drawing


def test_images_can_be_left_out(tmp_path: Path) -> None:
    _, page = read_page(make_report(*KINDS[0]), tmp_path, example_images=False)
    assert len(page.all("img")) == 3  # ROC, precision and recall, reliability
    assert "Example images" not in page.text


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_names_from_data_are_escaped(task: Task, tmp_path: Path) -> None:
    report = make_report(task, ("plain", HOSTILE, HOSTILE[::-1]))
    text, page = read_page(report, tmp_path, title=HOSTILE)
    assert "<img src=x" not in text
    assert HOSTILE in page.text
    assert not any("onerror" in attributes for _, attributes in page.elements)
    fragment = Page(report._repr_html_())
    assert HOSTILE in fragment.text
    assert not fragment.all("img")


@pytest.mark.parametrize("unit", ["patient", "series", "image"])
def test_no_patient_is_named_anywhere(unit: str, tmp_path: Path) -> None:
    model, dataset = make_pair(n_patients=12)
    planted = dataclasses.replace(
        dataset,
        patients=tuple(f"{SENTINEL}-{p}" for p in dataset.patients),
        sources=tuple(f"/data/{SENTINEL}/{i}.dcm" for i in range(len(dataset))),
        series_uids=tuple(f"1.2.{SENTINEL}.{p}" for p in dataset.patients),
    )
    model = dataclasses.replace(model, weights_name=f"/home/{SENTINEL}/resnet18-f37072fd.pth")
    report = evaluate(model, planted, unit=unit, n_resamples=20)  # type: ignore[arg-type]  # on purpose
    outputs = [
        report.to_html(tmp_path / "r.html", fit=FakeFit(make_history())).read_text(),
        report.to_csv(tmp_path / "r.csv").read_text(),
        repr(report),
        str(report),
        report._repr_html_(),
        report.predictions.to_string(),
        json.dumps(report.provenance),
        repr(report.example_images),
        repr({field.name: getattr(report, field.name) for field in dataclasses.fields(report)}),
    ]
    for output in outputs:
        assert "SENTINEL" not in output
        assert not re.search(r"patient-\d", output)
    assert report.predictions["subject"].nunique() == 12


@pytest.mark.parametrize(("task", "classes"), KINDS)
def test_csv_gives_the_predictions_back(task: Task, classes: tuple[str, ...], tmp_path: Path) -> None:
    report = make_report(task, classes)
    table = pd.read_csv(report.to_csv(tmp_path / "deep" / "predictions.csv"))
    pd.testing.assert_frame_equal(table, report.predictions, check_dtype=False)
    assert len(table) == report.n_units
    assert [c for c in table if str(c).startswith("p_")] == [f"p_{name}" for name in classes]


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, path = make_report(*KINDS[0]), tmp_path / "p.csv"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        report.to_csv(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_as_a_table_and_as_text() -> None:
    report = make_report(*KINDS[1])
    table = report.to_pandas().set_index("metric")
    assert table.loc["auroc", "value"] == report.metrics["auroc"].value
    assert list(table.columns) == ["value", "low", "high", "dropped", "reason"]
    text = str(report)
    assert text.startswith("Report: 3 classes, by patient, 30 patients, 150 images")
    assert f"{report.metrics['accuracy']}" in text
    assert len(text.splitlines()) < 25


@pytest.mark.usefixtures("undrawn")
def test_limitations_are_at_the_top(tmp_path: Path) -> None:
    report = make_report(*KINDS[0], n_patients=3)
    _, page = read_page(report, tmp_path)
    assert page.text.index("Only 3 patients: these scores are meaningless") < page.text.index("AUROC")
    assert "! Only 3 patients: these scores are meaningless" in str(report)


@pytest.mark.usefixtures("undrawn")
def test_one_patient_makes_a_page_without_roc(tmp_path: Path) -> None:
    _, page = read_page(make_report(*KINDS[0], n_patients=1), tmp_path)
    assert "no interval" in page.text
    assert "ROC" not in page.text.replace("AUROC", "")


def test_errors_shown_are_the_largest_and_correct_ones_are_correct() -> None:
    model, dataset = make_pair(n_patients=40)
    report = evaluate(model, dataset, unit="image", n_resamples=10)
    error = np.abs(model.probabilities[:, 1] - dataset.labels)
    wrong = [picture for picture in report.example_images if not picture.right]
    assert wrong[0].item == error.argmax()
    assert len({picture.subject for picture in wrong}) == len(wrong) == 6
    for picture in report.example_images:
        assert picture.right == (picture.label == picture.predicted) == (error[picture.item] <= 0.5)
    assert {picture.label for picture in report.example_images if picture.right} == {"normal", "pneumonia"}


def test_images_show_what_the_model_received() -> None:
    _, dataset = make_pair()
    expected = np.rint(dataset.plane(7) * 255)
    found = to_pixels(dataset[7][0], FakeRecipe())
    assert found.dtype == np.uint8
    assert np.abs(found.astype(float) - expected).max() <= 1


@pytest.mark.parametrize(
    ("channels", "shape"), [("repeat", (2, 2, 3)), ("windows", (2, 2)), ("adjacent", (2, 2))]
)
def test_color_stays_color_and_other_channels_do_not(channels: str, shape: tuple[int, ...]) -> None:
    recipe = FakeRecipe(mean=(0.0,) * 3, std=(1.0,) * 3, channels=channels)
    image = np.stack([np.full((2, 2), v) for v in (0.0, 0.5, 1.0)])
    pixels = to_pixels(image, recipe)
    assert pixels.shape == shape
    assert (pixels == ((0, 128, 255) if len(shape) == 3 else 128)).all()


def test_training_plots_without_validation() -> None:
    history = [{"epoch": 1, "phase": "full", "train_loss": 0.5, "val_loss": None, "val_auroc": None}]
    assert [alt.split(" by ")[0] for alt, _ in plot_training(history)] == ["Loss"]
    assert len(plot_training(make_history())) == 2


def test_two_pages_of_one_report_are_equal(tmp_path: Path) -> None:
    report = make_report(*KINDS[0])
    first, second = (report.to_html(tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second


def test_correct_images_of_many_units_are_chosen_in_no_time() -> None:
    model, dataset = make_pair(n_patients=40_000, per_patient=5)
    units = make_units(dataset, model.probabilities, "image")
    right = (units.truth == units.predicted).all(axis=1)
    started = time.perf_counter()
    order = _alternate_classes(right, units, 0)
    assert time.perf_counter() - started < 1
    assert sorted(order) == np.flatnonzero(right).tolist()
    assert units.truth[order[:6]].argmax(axis=1).tolist() == [0, 1] * 3


@pytest.mark.usefixtures("undrawn")
def test_omitted_curves_are_reported(tmp_path: Path) -> None:
    _, page = read_page(make_report("multilabel", tuple(f"label {n}" for n in range(26))), tmp_path)
    assert page.text.count("Only the first 24 of 26 classes are plotted.") == 3
    _, page = read_page(make_report(*KINDS[1]), tmp_path)
    assert "Only the first" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_many_classes_make_no_large_page(tmp_path: Path) -> None:
    report = make_report(
        "multiclass", tuple(f"kind {n}" for n in range(150)), n_patients=300 if SLOW else 150
    )
    text, page = read_page(report, tmp_path, example_images=False)
    wrong = report.confusion - np.diag(np.diag(report.confusion))
    assert f"most frequent of {np.count_nonzero(wrong):,} confusions" in page.text
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    row = f'kind {true}</th><td class="number">kind {predicted}</td><td class="number">{wrong.max()}<'
    assert row in text
    assert len(text) < 1_000_000


@pytest.mark.parametrize(
    ("item", "unit", "words"),
    [
        ("slice", "image", "Each image is scored separately"),
        ("slice", "series", "all images of a series are averaged"),
        ("slice", "patient", "all images of a patient are averaged"),
        ("series", "series", "Each series is scored separately"),
        ("series", "patient", "all series of a patient are averaged"),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_aggregation_is_reported(item: str, unit: Any, words: str, tmp_path: Path) -> None:
    model, dataset = make_pair()
    report = evaluate(model, dataclasses.replace(dataset, unit=item), unit=unit, n_resamples=5)
    assert words in read_page(report, tmp_path, example_images=False)[1].text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": ((), ())}, "split must map names to subsets.*found a tuple"),
        ({"fit": 5}, "fit must be a result of medimg.fine_tune or None; found a int"),
        ({"card": True}, "another extension than the card's .md"),
    ],
)
def test_invalid_inputs_of_page_and_card(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    report = make_report(*KINDS[0])
    with pytest.raises(DatasetError, match=message):
        report.to_html(tmp_path / "page.md", **options)
    if "card" not in options:
        with pytest.raises(DatasetError, match=message):
            report.to_model_card(tmp_path / "card.md", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("undrawn")
def test_names_of_folders_that_are_not_utf_8(tmp_path: Path) -> None:
    report = make_report("multiclass", ("a", "b\udcff"))
    page = report.to_html(tmp_path / "r.html", card=True)
    for path in (page, page.with_suffix(".md"), report.to_csv(tmp_path / "r.csv")):
        assert "b\\udcff" in path.read_text(encoding="utf-8").replace("\\\\", "\\")


def test_unknown_patients_are_reported() -> None:
    from medimg.evaluation.report.cautions import list_cautions

    notes = list_cautions(counts=(), n_patients=50, metrics={}, n_resamples=10, n_unknown=30)
    assert any("30 images have no known patient" in note for note in notes)
    assert not any(
        "no known" in n for n in list_cautions(counts=(), n_patients=50, metrics={}, n_resamples=10)
    )


def test_intervals_of_few_patients_say_how_narrow_they_can_be() -> None:
    from medimg.evaluation.report.cautions import ClassCount, list_cautions
    from medimg.metrics.bootstrap import Estimate
    from medimg.metrics.interval_coverage import METRICS, find_worst_coverage

    def note(patients: int, **metrics: Estimate) -> str:
        counts = (ClassCount("a", 90, 90, 90), ClassCount("b", patients, patients, patients))
        found = list_cautions(counts=counts, n_patients=90 + patients, metrics=metrics, n_resamples=10)
        return "".join(text for text in found if "simulated" in text)

    nan = float("nan")
    auroc = Estimate(0.8, 0.7, 0.9)
    share = find_worst_coverage(4, METRICS)["auroc"]
    assert "4 patients" in note(4, auroc=auroc)
    assert f"in only {100 * share:.0f} % (AUROC)" in note(4, auroc=auroc)
    # an interval that is withheld is not too narrow, and many patients are enough
    assert not note(4, auroc=Estimate(0.8, nan, nan))
    assert not note(4)
    assert find_worst_coverage(3, METRICS).keys() >= find_worst_coverage(10**6, METRICS).keys()
    assert find_worst_coverage(1, METRICS) == find_worst_coverage(4, METRICS)
