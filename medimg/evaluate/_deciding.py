"""Section of the report on calibration, operating points, prediction sets and outliers."""

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg.evaluate._html import facts, plot, section, table
from medimg.evaluate.curves import Reliability
from medimg.evaluate.decisions import decision_facts, observed_coverage, range_facts
from medimg.evaluate.plots import reliability_plot

if TYPE_CHECKING:
    from medimg.evaluate.report import Report

__all__ = ["deciding_section"]

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
        parts.append(_reliability(calibration["bins"]))
    if ranges:
        text = "What the training data were like; the model warns of images that are unlike these."
        parts.append(
            f'<div><h3>Training data</h3><p class="soft">{text}</p>{facts(range_facts(ranges))}</div>'
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


def _reliability(bins: list[tuple[str, float, float, int]]) -> str:
    curves = {}
    for name in dict.fromkeys(row[0] for row in bins):
        predicted, observed, n = zip(*(row[1:] for row in bins if row[0] == name), strict=True)
        curves[name] = Reliability(np.array(predicted), np.array(observed), np.array(n, dtype=np.int64))
    key = [f"{name}: mean distance {curve.ece:.3f}" for name, curve in curves.items()]
    return plot("Reliability on the validation data", reliability_plot(list(curves.values())), _ALT, key)
