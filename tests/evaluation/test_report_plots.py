"""Plots of a report: they are what the report says, and show themselves."""

from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend

import medimg
from medimg.errors import DatasetError
from tests.evaluation.fakes import make_pair

PLOTS = ("roc", "pr", "calibration", "confusion")
TASKS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "binary": ("multiclass", ("no", "yes")),
    "multiclass": ("multiclass", ("a", "b", "c")),
    "multilabel": ("multilabel", ("a", "b", "c")),
}


def legend_of(axes: Axes) -> Legend:
    found = axes.get_legend()
    assert found is not None
    return found


def report_of(kind: str) -> medimg.Report:
    model, dataset = make_pair(*TASKS[kind], n_patients=20, per_patient=2)
    return medimg.evaluate(model, dataset, n_resamples=20)


@pytest.mark.parametrize("kind", TASKS)
def test_every_plot_shows_itself(kind: str) -> None:
    report = report_of(kind)
    for name in PLOTS:
        axes: Any = report.plot(name)  # type: ignore[arg-type]  # one of the four
        assert axes._repr_png_().startswith(b"\x89PNG")


def test_curves_and_their_areas() -> None:
    report = report_of("binary")
    assert report.curves is not None
    axes = report.plot()
    line = report.curves.roc["yes"]
    assert np.array_equal(axes.lines[1].get_xydata(), np.stack([line.x, line.y], axis=1))
    (label,) = (text.get_text() for text in legend_of(axes).get_texts())
    assert label == f"yes: AUROC {report.metrics['auroc']}"
    assert axes.get_xlabel().startswith("1 − specificity")
    (label,) = (text.get_text() for text in legend_of(report.plot("pr")).get_texts())
    assert label == f"yes: AUPRC {report.metrics['auprc']}"
    (label,) = (text.get_text() for text in legend_of(report.plot("calibration")).get_texts())
    assert label == f"yes: ECE {report.curves.reliability['yes'].ece:.3f}"
    (label,) = (
        text.get_text() for text in legend_of(report_of("multiclass").plot("calibration")).get_texts()
    )
    assert label.startswith("predicted class: ECE")


def test_the_confusion_matrix_has_its_counts() -> None:
    report = report_of("multiclass")
    axes = report.plot("confusion")
    shown = [int(text.get_text().partition("\n")[0]) for text in axes.texts]
    assert shown == report.confusion.ravel().tolist()
    assert [label.get_text() for label in axes.get_yticklabels()] == list(report.classes)
    labels = report_of("multilabel")
    shown = [int(text.get_text().partition("\n")[0]) for text in labels.plot("confusion").texts]
    (tn, fp), (fn, tp) = labels.confusion[0]
    assert shown[:4] == [tp, fn, fp, tn]


def test_on_given_axes() -> None:
    axes = Figure().subplots(1, 4)
    report = report_of("binary")
    assert [report.plot(name, axes=one) for name, one in zip(PLOTS, axes, strict=True)] == list(axes)  # type: ignore[arg-type]  # as above
    assert all(one.has_data() for one in axes)


def test_what_is_refused() -> None:
    with pytest.raises(DatasetError, match='plot must be "roc", "pr", "calibration" or "confusion"'):
        report_of("binary").plot("ROC")  # type: ignore[arg-type]  # on purpose
    one_class = medimg.score([1, 1, 1], [0.2, 0.7, 0.9], n_resamples=5)
    for name in ("roc", "pr"):
        with pytest.raises(DatasetError, match="no curve"):
            one_class.plot(name)
    assert one_class.plot("confusion").has_data()
    assert one_class.plot("calibration").has_data()
