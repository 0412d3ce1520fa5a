"""The plots of a report, one at a time: curves, reliability diagram and confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, get_args

import numpy as np

from medimg._plot_style import MOST_STYLES, add_legend, make_axes, style_axes
from medimg._validation import check_choice
from medimg.errors import DatasetError
from medimg.evaluation.report.plots import draw_confusion, draw_curves, draw_reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from medimg.evaluation.report.report import Report

__all__ = ["PlotType", "plot_report"]

PlotType: TypeAlias = Literal["roc", "pr", "calibration", "confusion"]

_NEEDS: dict[str, str] = {
    "roc": "a class with examples and others",
    "pr": "a class with examples and others",
    "calibration": "at least one unit",
}
_Curve = TypeVar("_Curve")


def plot_report(report: Report, plot: PlotType, axes: Axes | None) -> Axes:
    """Draw a plot of a report on axes, or on new ones."""
    check_choice("plot", plot, get_args(PlotType), error=DatasetError)
    if plot == "confusion":
        return _plot_confusion(report, axes)
    curves = report.curves
    if axes is None:
        _, (axes,) = make_axes((4.8, 4.4))
    if plot == "calibration":
        shown = {} if curves is None else dict(curves.reliability)
        if curves is not None and len(shown) > 1 and curves.confidence is not None:
            shown = {"predicted class": curves.confidence}
        found = {f"{name}: ECE {curve.ece:.3f}": curve for name, curve in _take_first(plot, shown).items()}
        draw_reliability(axes, found)
        add_legend(axes, loc="upper left")
    elif plot == "roc":
        lines = _take_first(plot, {} if curves is None else curves.roc)
        draw_curves(
            axes, {_label(report, name, "auroc"): line for name, line in lines.items()}, curve_type="roc"
        )
        add_legend(axes, loc="lower right")
    else:
        lines = _take_first(plot, {} if curves is None else curves.precision_recall)
        labeled = {_label(report, name, "auprc"): line for name, line in lines.items()}
        draw_curves(axes, labeled, curve_type="precision_recall")
        add_legend(axes, loc="lower left")
    style_axes(axes)
    return axes


def _take_first(plot: str, curves: Mapping[str, _Curve]) -> dict[str, _Curve]:
    """Take as many curves as have a style of their own; DatasetError if there is none."""
    if not curves:
        raise DatasetError(
            f"there is no curve to plot ({plot!r}); expected {_NEEDS[plot]} in the data evaluated"
        )
    return dict(list(curves.items())[:MOST_STYLES])


def _label(report: Report, name: str, metric: str) -> str:
    """Name a curve with the area below it and its interval."""
    area = "AUROC" if metric == "auroc" else "AUPRC"
    by_class = f"{metric}[{name}]"
    return f"{name}: {area} {report.metrics[by_class if by_class in report.metrics else metric]}"


def _plot_confusion(report: Report, axes: Axes | None) -> Axes:
    """Plot counts of true classes (rows) and predicted ones; multilabel: of each label."""
    if report.task == "multilabel":
        counts = report.confusion[:, [1, 1, 0, 0], [1, 0, 1, 0]]
        columns = ["true\npositives", "false\nnegatives", "false\npositives", "true\nnegatives"]
        totals = np.repeat(
            np.stack([counts[:, :2].sum(axis=1), counts[:, 2:].sum(axis=1)], axis=1), 2, axis=1
        )
    else:
        counts, columns = report.confusion, list(report.classes)
        totals = np.broadcast_to(counts.sum(axis=1, keepdims=True), counts.shape)
    with np.errstate(invalid="ignore"):
        shares = counts / np.where(totals, totals, np.nan)
    if axes is None:
        side = min(2.2 + 0.8 * len(columns), 12.0)
        _, (axes,) = make_axes((side + 0.6, min(1.4 + 0.8 * len(counts), 12.0)))
    axes.grid(visible=False)
    draw_confusion(axes, counts, shares, report.classes, columns)
    if report.task == "multiclass":
        axes.set(xlabel="Predicted class", ylabel="True class")
    return axes
