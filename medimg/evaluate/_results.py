"""Sections of the report with the curves, the confusion matrix and all scores."""

from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medimg.evaluate._html import number, percent, scrolling, section, span, stroke, table
from medimg.evaluate.bootstrap import Estimate
from medimg.evaluate.plots import Curve, roc_plot
from medimg.evaluate.report import describe_metric

if TYPE_CHECKING:
    from medimg.evaluate.report import Report

__all__ = ["curves_section", "scores_section"]

_RIGHT_COLOR, _WRONG_COLOR = (109, 179, 232), (242, 166, 90)


def curves_section(report: "Report") -> str:
    """
    Draw the ROC beside the confusion matrix.

    Parameters
    ----------
    report : Report
        What to show.

    Returns
    -------
    str
        A section of HTML; without ROC where no class has one.
    """
    confusion = _confusion(report) if report.task == "multiclass" else _label_counts(report)
    roc = _roc(report)
    heading = "Discrimination and errors" if roc else "Errors"
    return section(heading, f'<div class="columns">{roc}{confusion}</div>')


def _roc(report: "Report") -> str:
    binary = "sensitivity" in report.metrics
    curves: list[Curve] = []
    key: list[str] = []
    for name in report.classes[1:] if binary else report.classes:
        estimate = report.metrics["auroc" if binary else f"auroc[{name}]"]
        if np.isnan(estimate.value):
            continue
        style = len(curves)
        curves.append((style, _is_positive(report, name), report.predictions[f"p_{name}"].to_numpy()))
        against = f"{name} (against the rest)" if report.task == "multiclass" and not binary else name
        key.append(f"<li>{stroke(style)}<span>{escape(against)}: AUROC {escape(str(estimate))}</span></li>")
    if not curves:
        return ""
    alt = "Receiver operating characteristic: sensitivity against the false positive rate."
    return (
        f'<figure><h3>ROC</h3><img src="{roc_plot(curves)}" alt="{alt} The areas are listed below.">'
        f'<figcaption><ul class="key">{"".join(key)}</ul></figcaption></figure>'
    )


def _is_positive(report: "Report", name: str) -> NDArray[np.bool_]:
    if report.task == "multilabel":
        return np.asarray(report.predictions[f"label_{name}"] == 1, dtype=bool)
    return np.asarray(report.predictions["label"] == name, dtype=bool)


def _confusion(report: "Report") -> str:
    totals = report.confusion.sum(axis=1)
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in report.classes)
    rows = []
    for i, name in enumerate(report.classes):
        cells = "".join(
            _cell(int(n), int(totals[i]), right=i == j) for j, n in enumerate(report.confusion[i])
        )
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    body = (
        f'<table class="confusion"><thead><tr><th scope="col">true ↓ predicted →</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    text = '<p class="soft">Rows: true class. Columns: predicted class. Percentages are of the row.</p>'
    return f"<div><h3>Confusion matrix</h3>{text}{scrolling(body, 'Confusion matrix')}</div>"


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
    kinds = ["recall", "specificity", "precision", "f1"]
    if "sensitivity" not in report.metrics:
        kinds.append("auroc")
    head = "".join(f'<th scope="col" class="number">{describe_metric(kind)}</th>' for kind in kinds)
    rows = []
    for name in report.classes:
        cells = "".join(_estimate_cell(report.metrics[f"{kind}[{name}]"]) for kind in kinds)
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    by_class = scrolling(
        f'<table><thead><tr><th scope="col">Class</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        "Scores by class",
    )
    overall = [
        [describe_metric(name), number(e.value), span(e)]
        for name, e in report.metrics.items()
        if "[" not in name
    ]
    averages = table(["Metric", "Value", f"{percent(report.ci)} interval"], overall)
    return section(
        "All scores",
        f'<div class="beside"><div><h3>Overall</h3>{averages}</div>'
        f"<div><h3>Each class against the rest</h3>{by_class}</div></div>",
    )


def _estimate_cell(estimate: Estimate) -> str:
    ends = span(estimate)
    return f'<td class="number">{number(estimate.value)}{f"<small>{ends}</small>" if ends else ""}</td>'
