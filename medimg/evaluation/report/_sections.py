"""Sections of the report on what lies behind the scores: data flow, split, training, subgroups, methods."""

import math
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from medimg.data.protocols import EvaluationDataset, FitHistory
from medimg.evaluation.report._calibration_facts import (
    decision_facts,
    observed_coverage,
    training_range_facts,
)
from medimg.evaluation.report._html_elements import (
    duration,
    estimate_cell,
    facts,
    number,
    percent,
    plot,
    scrolling,
    section,
    shown,
    span,
    table,
)
from medimg.evaluation.report.cautions import FEWEST_SHOWN
from medimg.evaluation.report.data_flow import shared_patients, split_subsets
from medimg.evaluation.report.metric_names import describe_metric
from medimg.evaluation.report.plots import MOST_STYLES, curve_plot, reliability_plot, training_plots
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.curves import Curves, Reliability

if TYPE_CHECKING:
    import pandas as pd

    from medimg.evaluation.report.report import Report

__all__ = [
    "curves_section",
    "data_section",
    "deciding_section",
    "headline_metrics",
    "method_section",
    "scores_section",
    "split_section",
    "subgroups_section",
    "training_section",
]

_HEADLINES = {
    "binary": ("auroc", "sensitivity", "specificity", "balanced_accuracy"),
    "multiclass": ("auroc", "balanced_accuracy", "accuracy", "f1_macro"),
    "multilabel": ("auroc", "recall_macro", "specificity_macro", "f1_macro"),
}
_COLUMNS = {
    "phase": "Phase",
    "train_loss": "Training loss",
    "adapt_loss": "Adaptation loss",
    "val_loss": "Validation loss",
    "val_accuracy": "Accuracy",
    "val_balanced_accuracy": "Balanced accuracy",
    "val_f1": "F1",
    "val_auroc": "AUROC",
    "monitor": "Chosen by",
    "lr": "Learning rate",
}
_FLOW = ("patients", "series", "slices")


def headline_metrics(report: "Report") -> tuple[str, ...]:
    """Give the names of the metrics that are read first."""
    return _HEADLINES["binary" if "sensitivity" in report.metrics else report.task]


def data_section(report: "Report") -> str:
    """Show how files became scores, and how many of each class there are."""
    flow = report.provenance.get("data", {})
    content = f'<div class="beside"><div><h3>By class</h3>{_classes(report)}</div>{_flow(report, flow)}</div>'
    return section("What was evaluated", content)


def _classes(report: "Report") -> str:
    of_series = report.provenance["evaluation"]["item"] == "series"
    unit_column = report.unit == "series" and not of_series
    rows = [
        [c.name, f"{c.patients:,}", *([f"{c.units:,}"] if unit_column else []), f"{c.images:,}"]
        for c in report.counts
    ]
    head = ["Class", "Patients", *(["Series"] if unit_column else []), "Series" if of_series else "Images"]
    sizes = (report.n_patients, *((report.n_units,) if unit_column else ()), report.n_images)
    extra = "" if report.task == "multiclass" else _soft("An image may carry several labels, or none.")
    return table(head, [*rows, ["All", *(f"{n:,}" for n in sizes)]]) + extra


def _flow(report: "Report", flow: Mapping[str, Any]) -> str:
    if not flow:
        return ""
    head = ["", *(name.capitalize() for name in _FLOW)]
    steps = [("All that was found", flow.get("found")), ("Evaluated", flow["evaluated"])]
    rows = [[name, *(_count(step.get(key)) for key in _FLOW)] for name, step in steps if step]
    left = [[reason, f"{n:,}"] for reason, n in flow["skipped"].items()]
    parts = [table(head, rows, caption="From files to what was scored")]
    pictures = flow.get("pictures")
    made = f"The recipe made {pictures:,} pictures of them; they" if pictures else "They"
    parts.append(_soft(f"{made} gave {flow['units']:,} scores, one for each {report.unit}."))
    if flow.get("modalities"):
        listed = ", ".join(f"{name} {n:,}" for name, n in flow["modalities"].items())
        parts.append(_soft(f"Series by modality: {listed}."))
    if left:
        parts.append(table(["Left out because", "Files"], left, caption="Files that were found and skipped"))
    else:
        parts.append(_soft("No file was skipped."))
    return f"<div><h3>Data flow</h3>{''.join(parts)}</div>"


def split_section(report: "Report", split: Mapping[str, EvaluationDataset] | None) -> str:
    """Show how large the sides of the split are, and whether a patient is on two of them."""
    if not split:
        return ""
    sides = split_subsets(split)
    evaluated = report.provenance.get("data", {}).get("digest")
    classes = list(dict.fromkeys(name for side in sides for name in side.classes))
    rows = [
        [
            side.name + (" (evaluated here)" if side.digest == evaluated else ""),
            *(f"{n:,}" for n in (side.patients, side.series, side.items)),
            *(f"{side.classes.get(name, 0):,}" for name in classes),
            side.digest[:12],
        ]
        for side in sides
    ]
    shared = shared_patients(split)
    said = (
        '<div class="notice" role="note" aria-label="Caution"><p>'
        f"{shared:,} patients are on more than one side: scores are better than they would be on new "
        "patients.</p></div>"
        if shared
        else _soft("Split by patient: none is on two sides. The digest tells these images and labels again.")
    )
    return section("Split", table(["Side", "Patients", "Series", "Items", *classes, "Digest"], rows) + said)


def training_section(fit: FitHistory | None) -> str:
    """Draw the losses and scores of training by epoch, with the numbers below."""
    if fit is None or not fit.history:
        return ""
    phases = [row.get("phase") for row in fit.history]
    text = f"{len(phases)} epoch{'s' if len(phases) > 1 else ''} in {duration(fit.seconds)}."
    if "head" in phases and "full" in phases:
        text += " Before the dashed line only the head was trained, after it the whole network."
    plots = "".join(
        f'<figure class="plot"><img src="{address}" alt="{alt}"></figure>'
        for alt, address in training_plots(fit.history)
    )
    return section("Training", f'{_soft(text)}<div class="columns">{plots}</div>{_epochs(fit)}')


def _epochs(fit: FitHistory) -> str:
    keys = [key for key in fit.history[0] if key not in {"epoch", "seconds"}]
    filled = [key for key in keys if any(row.get(key) is not None for row in fit.history)]
    rows = [[str(i), *(shown(row.get(key)) for key in filled)] for i, row in enumerate(fit.history, 1)]
    return table(["Epoch", *(_COLUMNS.get(key, key) for key in filled)], rows)


def subgroups_section(report: "Report") -> str:
    """Show the first metrics of each group of patients, with its size."""
    if report.subgroups is None or report.subgroups.empty:
        return ""
    text = (
        f"Each group of patients by itself, with {percent(report.ci)} intervals. Groups of fewer than "
        f"{FEWEST_SHOWN} patients are put together, or not shown. Differences between small groups are often "
        "chance: look whether the intervals overlap."
    )
    tables = [
        _groups(report, str(name), rows) for name, rows in report.subgroups.groupby("subgroup", sort=False)
    ]
    return section("Subgroups", _soft(text) + "".join(tables), long=True)


def _groups(report: "Report", subgroup: str, table: "pd.DataFrame") -> str:
    names = headline_metrics(report)
    head = "".join(
        f'<th scope="col" class="number">{escape(text)}</th>'
        for text in ("Patients", *(describe_metric(name) for name in names))
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(str(label))}</th><td class="number">{_patients(group)}</td>'
        + "".join(estimate_cell(_estimate(group, name)) for name in names)
        + f'<td class="note">{escape(str(group["note"].iloc[0]))}</td></tr>'
        for label, group in table.groupby("group", sort=False)
    )
    whole = (
        f"<table><caption>By {escape(subgroup)}</caption>"
        f'<thead><tr><th scope="col">Group</th>{head}<th scope="col" class="note">Note</th></tr></thead>'
        f"<tbody>{rows}</tbody></table>"
    )
    return scrolling(whole, f"Scores by {subgroup}")


def _patients(group: "pd.DataFrame") -> str:
    n = group["n_patients"].iloc[0]
    return f"&lt;{FEWEST_SHOWN}" if group["n_patients"].isna().iloc[0] else f"{int(n):,}"


def _estimate(group: "pd.DataFrame", metric: str) -> Estimate:
    rows = group.loc[group["metric"] == metric, ["value", "low", "high"]]
    values = rows.to_numpy(dtype=float).tolist() or [[math.nan] * 3]
    return Estimate(*values[0])


def method_section(report: "Report") -> str:
    """Show model, recipe, settings and versions in full."""
    provenance = report.provenance
    training = provenance.get("training") or {}
    tables = (
        ("Model", provenance["model"] | {"classes": ", ".join(report.classes)}),
        ("Recipe", {"fingerprint": provenance["recipe_fingerprint"]} | provenance["recipe"]),
        ("Training", training),
        ("Evaluation", provenance["evaluation"] | _digest(provenance)),
        ("Versions", provenance["versions"]),
    )
    parts = "".join(f"<div><h3>{name}</h3>{facts(rows)}</div>" for name, rows in tables if rows)
    return section("How it was done", f'<div class="columns">{parts}</div>', long=True)


def _digest(provenance: Mapping[str, Any]) -> dict[str, str]:
    digest = provenance.get("data", {}).get("digest")
    return {"data digest": digest} if digest else {}


def _count(n: int | None) -> str:
    return "–" if n is None else f"{n:,}"


def _soft(text: str) -> str:
    return f'<p class="soft">{escape(text)}</p>'


_ALT = (
    "Reliability on the validation data, before and after calibration: observed share against predicted "
    "probability, in bins. The mean distances from the diagonal are listed below."
)


def deciding_section(report: "Report") -> str:
    """Show what the model's decisions were fitted with, and what its training data were like."""
    calibration, ranges = report.provenance.get("calibration"), report.provenance.get("ranges")
    sentences = [*decision_facts(calibration), *_observed(report)]
    said = "".join(f'<p class="soft">{escape(text)}</p>' for text in sentences)
    parts = [f"<div>{said}{_points(calibration)}</div>" if calibration else said]
    if calibration and calibration["bins"]:
        parts.append(_calibration_curve(calibration["bins"]))
    if ranges:
        text = "What the training data were like; the model warns of images that are unlike these."
        parts.append(
            f'<div><h3>Training data</h3><p class="soft">{text}</p>'
            f"{facts(training_range_facts(ranges))}</div>"
        )
    return section("Calibration and limits", f'<div class="columns">{"".join(parts)}</div>')


def _observed(report: "Report") -> list[str]:
    found = observed_coverage(report)
    if found is None:
        return []
    share, size = found
    of = f"class of {100 * share:.0f} % of the {report.n_units:,} units"
    of = of if report.task == "multiclass" else f"{100 * share:.0f} % of the labels that were there"
    return [f"On what was evaluated here, the sets held the {of}; their mean size was {size:.2f}."]


def _points(calibration: Mapping[str, Any]) -> str:
    rows = [
        [
            point["label"],
            *(f"{point[key]:.3f}" for key in ("threshold", "sensitivity", "specificity")),
            f"{point['positives']:,}/{point['negatives']:,}",
        ]
        for point in calibration["points"]
    ]
    head = ["Class", "Threshold", "Sensitivity", "Specificity", "With/without"]
    how = f"Operating points, chosen by {_criterion(calibration['operating_point'])}:"
    return f'<p class="soft">{how}</p>{table(head, rows, label="Operating points")}' if rows else ""


def _criterion(criterion: Any) -> str:
    if not isinstance(criterion, Mapping):
        return "the highest sensitivity + specificity"
    (name, value), *_ = criterion.items()
    return f"a sensitivity of at least {value:g}" if name == "sensitivity" else f"a miss costing {value:g}"


def _calibration_curve(bins: list[tuple[str, float, float, int]]) -> str:
    curves = {}
    for name in dict.fromkeys(row[0] for row in bins):
        predicted, observed, n = zip(*(row[1:] for row in bins if row[0] == name), strict=True)
        curves[name] = Reliability(np.array(predicted), np.array(observed), np.array(n, dtype=np.int64))
    key = [f"{name}: mean distance {curve.ece:.3f}" for name, curve in curves.items()]
    return plot("Reliability on the validation data", reliability_plot(list(curves.values())), _ALT, key)


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
