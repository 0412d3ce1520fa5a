"""The report's account of the data, the split, the decisions and the subgroups; and the model card."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from jinja2 import UndefinedError

from medimg.core.read_report import Skipped
from medimg.evaluation.evaluate import evaluate
from medimg.evaluation.report import example_images
from medimg.evaluation.report._calibration_facts import measure_coverage
from medimg.evaluation.report._jinja import escape_markdown, render_template
from medimg.evaluation.report.data_flow import count_reasons, count_shared_patients, count_subsets
from medimg.evaluation.report.example_images import to_pixels
from medimg.evaluation.report.plots import _make_steps, thin_curve
from medimg.evaluation.report.report import Report
from medimg.metrics.classification import Support
from medimg.metrics.curves import Line, compute_curves
from tests.evaluation.fakes import FakeFit, Task, make_history, make_pair
from tests.evaluation.test_report import HOSTILE, KINDS, Page, read_page

# how plots look is for the tests of the page
pytestmark = pytest.mark.usefixtures("undrawn")

CALIBRATION: dict[str, Any] = {
    "unit": "slice",
    "items": 200,
    "patients": 40,
    "temperature": [1.25],
    "loss": [0.53, 0.49],
    "operating_point": {"sensitivity": 0.95},
    "points": [
        {
            "label": "pneumonia",
            "threshold": 0.3,
            "sensitivity": 0.96,
            "specificity": 0.7,
            "positives": 40,
            "negatives": 160,
        }
    ],
    "coverage": 0.9,
    "quantiles": [0.7],
    "bins": [["raw", 0.1, 0.05, 50], ["raw", 0.9, 0.7, 50], ["calibrated", 0.5, 0.5, 50]],
    "outliers": True,
}
RANGES = {"series": 40, "modalities": ["CT", "MR"], "body_parts": [], "spacing": [0.6, 0.9], "rows": None}


def make_report(**options: Any) -> Report:
    return evaluate(*make_pair(n_patients=24), n_resamples=30, **options)


def with_provenance(report: Report, **facts: Any) -> Report:
    report.provenance.update(facts)  # type: ignore[attr-defined]  # a dict
    return report


def test_reasons_are_counted_without_naming_files() -> None:
    reasons = [
        "/a/DOE^JANE.txt is none of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, BMP, WebP and GIF",
        "/b/DOE^JOHN.dcm is none of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, BMP, WebP and GIF",
        "/a/DOE.dcm is a DICOM object without pixels (RT Plan Storage)",
        "DOE was not understood",
    ]
    counts = count_reasons(reasons)
    assert list(counts.values()) == [2, 1, 1]
    assert "DOE" not in json.dumps(counts)
    assert list(counts)[-1] == "another reason"


def test_real_reasons_have_words(tmp_path: Path) -> None:
    """Messages of reading damaged files have words in the report."""
    import medimg

    (tmp_path / "text.txt").write_text("no image")
    (tmp_path / "cut.nii").write_bytes(b"\x5c\x01\x00\x00" + bytes(60))
    (tmp_path / "header.nrrd").write_text("NRRD0004\ntype: nothing\n\n")
    reasons = [skipped.reason for skipped in medimg.scan(tmp_path).skipped]
    assert len(reasons) == 3
    assert "another reason" not in count_reasons(reasons)


def test_data_flow_counts_what_was_found_and_skipped(tmp_path: Path) -> None:
    model, dataset = make_pair(n_patients=10)
    skipped = (
        Skipped(
            "/x/DOE.txt",
            "/x/DOE.txt is none of DICOM, NIfTI and GIF",
        ),
    )
    series = tuple(SimpleNamespace(shape=(1, 1, 8, 8), modality="DX") for _ in range(len(dataset)))
    labeled = [SimpleNamespace(patient=p, series=s) for p, s in zip(dataset.patients, series, strict=True)]
    more = [SimpleNamespace(patient=f"other {n}", series=series[0]) for n in range(7)]
    object.__setattr__(dataset, "skipped", skipped)
    object.__setattr__(dataset, "series", series)
    object.__setattr__(dataset, "labeled_series", labeled + more)
    report = evaluate(model, dataset, n_resamples=10)
    flow = report.provenance["data"]
    assert flow["found"] == {"patients": 17, "series": 57, "slices": 57}
    assert flow["evaluated"] == {"patients": 10, "series": 50, "slices": 50}
    assert (flow["images"], flow["units"], flow["modalities"]) == (50, 10, {"DX": 50})
    text, page = read_page(report, tmp_path)
    assert "not an image (none of DICOM" in page.text
    assert "50 images after preprocessing, aggregated to 10 patient-level predictions" in page.text
    assert "DOE" not in text


def test_split_is_counted_and_an_overlap_is_reported(tmp_path: Path) -> None:
    model, test = make_pair(n_patients=20)
    _, train = make_pair(n_patients=30, seed=1)
    object.__setattr__(train, "patients", tuple(f"t{p}" for p in train.patients))
    report = evaluate(model, test, n_resamples=10)
    _, page = read_page(report, tmp_path, split={"train": train, "test": test})
    assert "test (evaluated here)" in page.text
    assert "train (evaluated here)" not in page.text
    assert "No patient is in more than one subset" in page.text
    assert [(s.patients, s.items) for s in count_subsets({"train": train, "test": test})] == [
        (30, 150),
        (20, 100),
    ]
    _, page = read_page(report, tmp_path, split={"train": test, "test": test})
    assert "20 patients in more than one subset" in page.text
    assert count_shared_patients({"a": train, "b": test}) == 0


def test_digests_distinguish_data() -> None:
    one, same, other = (make_pair(n_patients=6, seed=seed)[1] for seed in (0, 0, 1))
    object.__setattr__(other, "patients", tuple(reversed(other.patients)))
    digests = [subset.digest for subset in count_subsets({"one": one, "same": same, "other": other})]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(("task", "classes"), KINDS)
def test_every_type_of_task_has_page_and_card(task: Task, classes: tuple[str, ...], tmp_path: Path) -> None:
    model, dataset = make_pair(task, classes, n_patients=30)
    groups = {"sex": ["F" if n % 2 else "M" for n in range(len(dataset))]}
    report = evaluate(model, dataset, unit="image", n_resamples=20, subgroups=groups)
    with_provenance(report, calibration=CALIBRATION, ranges=RANGES)
    fit = FakeFit(make_history())
    _, page = read_page(report, tmp_path, fit=fit, split={"test": dataset}, card=True)
    card = (tmp_path / "report.md").read_text(encoding="utf-8")
    for text in (page.text, card):
        for word in ("Subgroups" if text is page.text else "By group", "1.25", "90 %", "0.6", *classes):
            assert word in text.replace("\\", "")
    assert "threshold" in page.text.lower()
    assert "sensitivity of at least 0.95" in page.text


@pytest.mark.parametrize(("task", "classes"), KINDS)
def test_coverage_of_sets_is_that_of_the_predictions(task: Task, classes: tuple[str, ...]) -> None:
    report = evaluate(*make_pair(task, classes, n_patients=30), unit="image", n_resamples=10)
    assert measure_coverage(report) is None
    quantiles = [0.5] if task == "multiclass" else [0.5] * len(classes)
    with_provenance(report, calibration={"quantiles": quantiles})
    held, sizes = [], []
    for row in report.predictions.to_dict("records"):
        proba = {name: row[f"p_{name}"] for name in classes}
        kept = {name for name, p in proba.items() if p >= 0.5}
        if task == "multiclass":
            kept.add(max(proba, key=lambda name: proba[name]))
            held.append(row["label"] in kept)
        else:
            held += [name in kept for name in classes if row[f"label_{name}"] == 1]
        sizes.append(len(kept))
    assert measure_coverage(report) == pytest.approx((np.mean(held), np.mean(sizes)))


def test_card_has_the_sections_of_its_model(tmp_path: Path) -> None:
    text = make_report().to_model_card(tmp_path / "card.md", fit=FakeFit(make_history())).read_text()
    headings = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "Model details",
        "Intended use",
        "Factors",
        "Metrics",
        "Evaluation data",
        "Training data",
        "Quantitative analyses",
        "Ethical considerations",
        "Caveats and recommendations",
    ]
    assert "not calibrated" in text
    assert "*Not stated.*" in text
    for row in (line for line in text.splitlines() if line.startswith("|")):
        assert row.endswith("|")


def test_card_has_the_statements_of_its_authors(tmp_path: Path) -> None:
    path = make_report().to_model_card(
        tmp_path / "card.md",
        contact="radiology@example.org",
        intended_use="**Sorting** a worklist.",
        out_of_scope="Children.",
        caveats="Mind the gap.",
    )
    text = path.read_text()
    for words in ("radiology@example.org", "**Sorting** a worklist.", "Children.", "Mind the gap."):
        assert words in text
    assert "Not stated" not in text.partition("## Training data")[0]


def test_names_from_data_are_escaped_in_the_card(tmp_path: Path) -> None:
    model, dataset = make_pair("multiclass", ("plain", HOSTILE + "\n# heading | x"))
    report = evaluate(model, dataset, n_resamples=10)
    text = report.to_model_card(tmp_path / "card.md").read_text(encoding="utf-8")
    assert "<img" not in text
    assert not any(line.startswith("# heading") for line in text.splitlines())
    tables = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in tables}
    assert widths <= {3, 4, 5, 6}


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("two\nlines\r\x0b\x85of text", "two lines of text"),
        ("`code` *bold* _x_ ~~no~~", r"\`code\` \*bold\* \_x\_ \~\~no\~\~"),
        ("[a](b) # $x$ \\", r"\[a\](b) \# \$x\$ \\"),
        ("<b>&amp;", "&lt;b&gt;&amp;amp;"),
        ("\udcff", "\udcff"),
        (0.5, "0.5"),
    ],
)
def test_text_is_escaped_for_markdown_once(text: object, escaped: str) -> None:
    once = escape_markdown(text)
    assert once == escaped
    assert escape_markdown(once) is once


def test_a_template_lacks_nothing() -> None:
    with pytest.raises(UndefinedError, match="report"):
        render_template("model_card.md.j2")


def test_small_groups_are_not_counted_in_page_or_card(tmp_path: Path) -> None:
    model, dataset = make_pair(n_patients=24, per_patient=1)
    report = evaluate(model, dataset, n_resamples=10, subgroups={"site": ["a"] * 21 + ["b"] * 3})
    _, page = read_page(report, tmp_path, card=True)
    assert "<5" in page.text
    assert "fewer than 5" in (tmp_path / "report.md").read_text()


def test_images_with_saliency_have_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heat = np.zeros((40, 30, 3), np.uint8)
    monkeypatch.setattr(example_images, "_render_overlay", lambda *_: heat)
    report = make_report(saliency=True)
    assert all(picture.overlay is heat for picture in report.example_images)
    assert {picture.explained for picture in report.example_images} == {"normal", "pneumonia"}
    _, page = read_page(report, tmp_path)
    heats = [image for image in page.all("img") if str(image["src"]).startswith("data:image/jpeg")]
    assert len(heats) == len(report.example_images)
    assert all("saliency map" in str(image["alt"]) for image in heats)
    assert "evidence for the predicted class" in page.text
    pair = make_pair("multilabel", ("a", "b"), n_patients=24)
    _, page = read_page(evaluate(*pair, n_resamples=5, saliency=True), tmp_path)
    assert "evidence for the label whose probability is given" in page.text


def test_large_images_make_no_large_page(tmp_path: Path) -> None:
    model, dataset = make_pair(n_patients=12, per_patient=1, size=1100)
    path = evaluate(model, dataset, n_resamples=10).to_html(tmp_path / "report.html")
    assert path.stat().st_size < 5 * 2**20


def test_steps_of_precision_enclose_the_average_precision() -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    truth = np.eye(2, dtype=bool)[rng.integers(2, size=80)]
    scores = (truth[:, 1] + rng.normal(0, 1, 80)).round(1)
    scores = (scores - scores.min()) / np.ptp(scores)
    proba = np.stack([1 - scores, scores], axis=1)
    curves = compute_curves(truth, proba, Support.count(truth, "multiclass", ("no", "yes")))
    recall, precision = _make_steps(curves.precision_recall["yes"])
    area = float(np.diff(recall) @ precision[1:])
    assert area == pytest.approx(average_precision_score(truth[:, 1], scores), abs=1e-12)


def test_thin_curves_keep_ends_and_extremes() -> None:
    x = np.linspace(0, 1, 5000)
    y = np.random.default_rng(0).normal(size=5000)
    kept_x, kept_y = thin_curve(x, y)
    assert len(kept_x) <= 400
    assert (kept_x[0], kept_x[-1]) == (0, 1)
    assert (kept_y.min(), kept_y.max()) == (y.min(), y.max())
    assert thin_curve(x[:10], y[:10])[0] is not None
    line = Line(np.zeros(1), np.ones(1), np.ones(1))
    assert _make_steps(line)[1].tolist() == [1.0]


def test_report_of_an_uncalibrated_model_says_so(tmp_path: Path) -> None:
    _, page = read_page(make_report(), tmp_path)
    assert "not calibrated" in page.text
    assert isinstance(page, Page)


@pytest.mark.parametrize("unit", ["image", "series"])
def test_saliency_map_is_of_the_slice_shown(
    unit: Literal["image", "series"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import medimg
    from medimg.saliency import explain as explain_module

    table = medimg.phantom.write_ct_dataset(tmp_path / "ct", patients=4, slices=5, size=48)
    recipe = medimg.Preprocess(window="lung", size=48, slices=3)
    data = medimg.ImageDataset.from_csv(table, patient="patient_id", preprocess=recipe, unit=unit)
    model = medimg.TransferClassifier(
        "squeezenet1_1",
        classes=data.classes,
        weights=None,
        preprocess=recipe,
        pool="mean" if unit == "series" else "none",
    )
    asked: list[list[int] | None] = []
    explain = explain_module.explain

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(options["slices"])
        return explain(*args, **options)

    monkeypatch.setattr(explain_module, "explain", watched)
    report = evaluate(model, data, unit="series", n_resamples=5, saliency=True)
    if unit == "series":
        assert asked == [None] * 4
    for picture, slices in zip(report.example_images, asked, strict=True):
        if slices is not None:
            shown = data.series[picture.item].read().take(slices)
            found = to_pixels(recipe.replace(slices="all")(shown)[0], recipe)
            assert np.abs(found.astype(int) - picture.pixels).max() <= 1
    assert all(p.overlay is not None and p.overlay.shape == (48, 48, 3) for p in report.example_images)
    flow = report.provenance["data"]
    assert flow["found"] == flow["evaluated"] == {"patients": 4, "series": 4, "slices": 20}
    assert (flow["images"], flow["units"]) == (12, 4)


STATEMENTS = ("contact", "intended_use", "out_of_scope", "caveats")
INJECTED = (
    "<script>alert(1)</script>",
    "a\n# Metrics\nAUROC 1.0",
    "a\nMetrics\n=======",
    "a\r## Metrics",
    "```\nunclosed",
    "[click](javascript:alert(1)) [x]: javascript:alert(2)",
    "a\x1b[31m\u202eb",
)


@pytest.mark.parametrize("statement", INJECTED)
def test_statements_cannot_change_the_card_around_them(tmp_path: Path, statement: str) -> None:
    report = make_report()
    plain = report.to_model_card(tmp_path / "plain.md").read_text()
    stated: dict[str, Any] = dict.fromkeys(STATEMENTS, statement)
    card = report.to_model_card(tmp_path / "card.md", **stated).read_text()

    def outline(text: str) -> list[str]:
        return [line for line in text.splitlines() if re.match(r"\s*(#|=+$|```|~~~|\|)", line)]

    assert outline(card) == outline(plain)
    assert "<" not in card
    assert not re.search(r"(?<!\\)\]\(?\s*:?\s*javascript", card)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", card)


def test_links_to_pages_stay_in_statements(tmp_path: Path) -> None:
    stated = "See [the protocol](https://example.org/p_1), *as of today*:\n\n- one\n- two"
    assert stated in make_report().to_model_card(tmp_path / "card.md", intended_use=stated).read_text()


@pytest.mark.parametrize("name", ["=1+1", "@SUM(A1)", "\tx", "+cmd|' /C calc'!A0", "-2+3", "-1", "+", "a=b"])
def test_no_class_is_a_formula_in_a_spreadsheet(tmp_path: Path, name: str) -> None:
    model, dataset = make_pair("multiclass", (name, "plain"))
    report = evaluate(model, dataset, n_resamples=10)
    with report.to_csv(tmp_path / "p.csv").open(encoding="utf-8", newline="") as file:
        cells = {cell for row in csv.reader(file) for cell in row}
    harmless = name in ("-1", "+", "a=b")
    assert (name in cells) == harmless
    assert (f"'{name}" in cells) != harmless


def test_pages_hold_no_control_characters(tmp_path: Path) -> None:
    model, dataset = make_pair("multiclass", ("a\x00b\x1b[31m", "c\u202ed\x9b"))
    report = evaluate(model, dataset, n_resamples=10)
    page = report.to_html(tmp_path / "r.html", title="x\x07y", card=True).read_text(encoding="utf-8")
    card = (tmp_path / "r.md").read_text(encoding="utf-8")
    for text in (page, card, report._repr_html_()):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "a\ufffdb\ufffd[31m" in page
