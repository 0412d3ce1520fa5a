"""Sections of the report with the curves, the confusion matrix and all scores."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from medimg.evaluate._html import estimate_cell, number, percent, plot, scrolling, section, span, table
from medimg.evaluate.curves import Curves
from medimg.evaluate.plots import MOST_STYLES, curve_plot, reliability_plot
from medimg.evaluate.report import describe_metric

if TYPE_CHECKING:
    from medimg.evaluate.report import Report

__all__ = ["curves_section", "scores_section"]

_RIGHT_COLOR, _WRONG_COLOR = (109, 179, 232), (242, 166, 90)
_LONG = 8
_MOST_CLASSES = 100
"""In a matrix that can still be read; that of 1,000 classes would take 68 MB of a page."""
_MOST_CONFUSED = 50
_Curve = TypeVar("_Curve")


def curves_section(report: "Report") -> str:
    """
    Draw ROC, precision against recall and reliability beside the confusion matrix.

    Parameters
    ----------
    report : Report
        What to show.

    Returns
    -------
    str
        A section of HTML; without the curves that no class has.
    """
    confusion = _confusion(report) if report.task == "multiclass" else _label_counts(report)
    plots = [] if report.curves is None else _plots(report, report.curves)
    heading = "Discrimination, calibration and errors" if plots else "Errors"
    return section(heading, f'<div class="columns">{"".join(plots)}{confusion}</div>')


def _plots(report: "Report", curves: Curves) -> list[str]:
    plots = []
    if curves.roc:
        lines = _first(curves.roc)
        key = [_in_key(report, name, "auroc", "AUROC") for name in lines]
        alt = "Receiver operating characteristic: sensitivity against the false positive rate."
        address = curve_plot(list(lines.values()), kind="roc")
        note = _left_out(lines, curves.roc)
        plots.append(plot("ROC", address, f"{alt} The areas are listed below.", key, note=note))
    if curves.precision_recall:
        lines = _first(curves.precision_recall)
        key = [_in_key(report, name, "auprc", "average precision") for name in lines]
        alt = "Precision against recall. The average precisions are listed below."
        address = curve_plot(list(lines.values()), kind="precision_recall")
        note = _left_out(lines, curves.precision_recall)
        plots.append(plot("Precision and recall", address, alt, key, note=note))
    return [*plots, _reliability(report, curves)]


def _reliability(report: "Report", curves: Curves) -> str:
    shown = _first(curves.reliability)
    if len(shown) > 1 and curves.confidence is not None:
        shown = {"": curves.confidence}
    key = [
        f"{_against(report, name) if name else 'probability of the predicted class'}: "
        f"mean distance {curve.ece:.3f}"
        for name, curve in shown.items()
    ]
    alt = "Reliability: observed share against predicted probability, in bins. The mean distances from the "
    alt += "diagonal are listed below."
    left_out = _left_out(shown, {} if "" in shown else curves.reliability)
    note = f"The larger a mark, the more units are in its bin; the distances are weighted by them. {left_out}"
    return plot("Reliability", reliability_plot(list(shown.values())), alt, key, note=note)


def _first(curves: Mapping[str, _Curve]) -> dict[str, _Curve]:
    """As many curves as there are styles."""
    return dict(list(curves.items())[:MOST_STYLES])


def _left_out(drawn: Mapping[str, _Curve], curves: Mapping[str, _Curve]) -> str:
    if len(drawn) >= len(curves):
        return ""
    return f"Only the first {len(drawn)} of {len(curves):,} classes are drawn."


def _in_key(report: "Report", name: str, metric: str, words: str) -> str:
    own = f"{metric}[{name}]"
    estimate = report.metrics[own if own in report.metrics else metric]
    return f"{_against(report, name)}: {words} {estimate}"


def _against(report: "Report", name: str) -> str:
    several = report.task == "multiclass" and "sensitivity" not in report.metrics
    return f"{name} (against the rest)" if several else name


def _confusion(report: "Report") -> str:
    if len(report.classes) > _MOST_CLASSES:
        return _most_confused(report)
    totals = report.confusion.sum(axis=1)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in report.classes)
    rows = []
    for i, name in enumerate(report.classes):
        cells = "".join(
            _cell(int(n), int(totals[i]), right=i == j) for j, n in enumerate(report.confusion[i])
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = (
        f'<table class="confusion"><thead><tr><th scope="col">true ↓<br>predicted →</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    text = '<p class="soft">Rows: true class. Columns: predicted class. Percentages are of the row.</p>'
    return f"<div><h3>Confusion matrix</h3>{text}{scrolling(body, 'Confusion matrix')}</div>"


def _most_confused(report: "Report") -> str:
    wrong = report.confusion * ~np.eye(len(report.classes), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    pairs = [divmod(int(place), len(wrong)) for place in order]
    rows = [[report.classes[i], report.classes[j], f"{wrong[i, j]:,}"] for i, j in pairs if wrong[i, j]]
    text = (
        f'<p class="soft">A matrix of {len(wrong):,} classes is too large to be read; these are the '
        f"{len(rows)} most frequent errors of {np.count_nonzero(wrong):,} kinds.</p>"
    )
    return f"<div><h3>Confusions</h3>{text}{table(['True', 'Predicted', 'Units'], rows)}</div>"


def _cell(n: int, total: int, *, right: bool) -> str:
    share = n / total if total else 0.0
    full = _RIGHT_COLOR if right else _WRONG_COLOR
    shade = ", ".join(str(round(255 - (255 - channel) * share)) for channel in full)
    of_row = f"<small>{100 * share:.0f} %</small>" if total else ""
    return f'<td style="background: rgb({shade})">{n:,}{of_row}</td>'


def _label_counts(report: "Report") -> str:
    rows = [
        [name, *(f"{n:,}" for n in (matrix[1, 1], matrix[1, 0], matrix[0, 1], matrix[0, 0]))]
        for name, matrix in zip(report.classes, report.confusion, strict=True)
    ]
    return (
        "<div><h3>Decisions by label</h3>"
        + table(["Label", "Found", "Missed", "False alarm", "Rightly none"], rows)
        + "</div>"
    )


def scores_section(report: "Report") -> str:
    """
    List every metric, averages first, then by class.

    Parameters
    ----------
    report : Report
        What to show.

    Returns
    -------
    str
        A section of HTML.
    """
    kinds = dict.fromkeys(name.partition("[")[0] for name in report.metrics if "[" in name)
    head = "".join(f'<th scope="col" class="number">{describe_metric(kind)}</th>' for kind in kinds)
    rows = []
    for name in report.classes:
        cells = "".join(estimate_cell(report.metrics[f"{kind}[{name}]"]) for kind in kinds)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    by_class = scrolling(
        f'<table class="dense"><thead><tr><th scope="col">Class</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        "Scores by class",
    )
    overall = [
        [describe_metric(name), number(e.value), span(e)]
        for name, e in report.metrics.items()
        if "[" not in name
    ]
    head_of_all = ["Metric", "Value", f"{percent(report.ci)} interval"]
    half = -(-len(overall) // 2) if len(overall) > _LONG else len(overall)
    halves = [part for part in (overall[:half], overall[half:]) if part]
    averages = "".join(table(head_of_all, part, label="Scores overall") for part in halves)
    return section(
        "All scores",
        f'<h3>Overall</h3><div class="columns">{averages}</div>'
        f"<h3>Each class against the rest</h3>{by_class}",
        long=True,
    )
