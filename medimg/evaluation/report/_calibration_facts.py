"""Calibration, prediction sets, training ranges and intervals in words."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medimg.evaluation.report._formats import format_quantity

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report
    from medimg.metrics.bootstrap import Estimate

__all__ = ["describe_calibration", "describe_other_intervals", "describe_training_ranges", "measure_coverage"]

_IN_MM = ("spacing", "slice_distance", "slice_thickness")

_OTHER_METHODS = {
    "delong": "the AUROC of a class by DeLong’s method",
    "exact": "proportions of 0 or 1, or equal in all resamples, by exact binomial intervals over patients",
    "newcombe": "an AUROC of 0 or 1 by Newcombe’s score interval over patients",
}

_NOT_CALIBRATED = (
    "The probabilities are not calibrated: they may not match observed frequencies. medimg.calibrate fits a "
    "calibration on validation data."
)
_UNKNOWN = (
    "It is not known whether the probabilities were calibrated; the reliability diagram and the calibration "
    "errors show how well they match observed frequencies in the evaluation data."
)


def describe_other_intervals(estimates: "Iterable[Estimate]") -> list[str]:
    """
    Name the intervals that do not come from resampling, and their method.

    >>> from medimg.metrics.bootstrap import Estimate
    >>> describe_other_intervals([Estimate(1.0, 0.839, 1.0, method="exact")])
    ['proportions of 0 or 1, or equal in all resamples, by exact binomial intervals over patients']
    """
    methods = {estimate.method for estimate in estimates}
    return [text for method, text in _OTHER_METHODS.items() if method in methods]


def describe_calibration(calibration: Mapping[str, Any] | None, *, is_known: bool = True) -> list[str]:
    """
    Put a calibration, as ``Report.provenance`` gives it, into sentences; not `is_known`: of another's model.

    >>> describe_calibration(None)[0].partition(":")[0]
    'The probabilities are not calibrated'
    """
    if not calibration:
        return [_NOT_CALIBRATED if is_known else _UNKNOWN]
    if "folds" in calibration:
        return [
            f"The model of each of {calibration['folds']} folds was calibrated on its validation patients, "
            "which it was neither trained nor scored on."
        ]
    before, after = calibration["loss"]
    sentences = [
        f"Fitted on {format_quantity(calibration['items'], _name_item(calibration['unit']))} of "
        f"{format_quantity(calibration['patients'], 'patient')} of the validation data; the values in this "
        "section are of these data, not of the evaluation data.",
        f"{_describe_map(calibration)}: mean negative log-likelihood {before:.3f} before, {after:.3f} after.",
    ]
    if calibration.get("selection"):
        tried = ", ".join(f"{name} {loss:.3f}" for name, loss in calibration["selection"])
        sentences.append(f"The method was chosen by cross-validated log loss over patients: {tried}.")
    if calibration.get("offset"):
        sentences.append("The class weights of the training were subtracted from the logits, as logarithms.")
    if calibration["coverage"] is not None:
        cuts = ", ".join(f"{q:.3g}" for q in calibration["quantiles"])
        sentences.append(
            f"Prediction sets contain the true class with a probability of {100 * calibration['coverage']:g} "
            f"% for patients of the same distribution (split conformal prediction; 1 − probability ≤ {cuts})."
        )
    sentences.append(
        "Each prediction has an out-of-distribution score: the share of held-out images closer to the "
        "training data (Mahalanobis distance of embeddings)."
        if calibration.get("outliers")
        else "Predictions have no out-of-distribution score: no statistics of embeddings were fitted."
    )
    return sentences


def _name_item(stored: str) -> str:
    """Name the unit of items that a calibration has stored."""
    return "series" if stored == "series" else "image"


def _describe_map(calibration: Mapping[str, Any]) -> str:
    """Name the method of a calibration with its parameters."""
    temperatures, biases = (
        ", ".join(f"{value:.3g}" for value in calibration.get(name, ())) for name in ("temperature", "bias")
    )
    return {
        "none": "Probabilities as the model gives them",
        "temperature": f"Temperature {temperatures}",
        "platt": f"Platt scaling (temperature {temperatures}; bias {biases})",
        "vector": f"Vector scaling (temperature {temperatures}; bias {biases})",
        "isotonic": "Isotonic regression",
    }[calibration.get("method", "temperature")]


def measure_coverage(report: "Report") -> tuple[float, float] | None:
    """
    Measure the coverage of the prediction sets on the evaluation data, and their mean size.

    Coverage is the share of units whose class is in the set (multilabel: of true labels in the set). None if
    there are no sets, or no true labels.
    """
    from medimg.calibration.conformal import prediction_set

    quantiles = (report.provenance.get("calibration") or {}).get("quantiles")
    if not quantiles:
        return None
    table = report.predictions
    proba = table[[f"p_{name}" for name in report.classes]].to_numpy(dtype=np.float64)
    if report.task == "multilabel":
        truth = table[[f"label_{name}" for name in report.classes]].to_numpy() == 1
    else:
        truth = table["label"].to_numpy()[:, None] == np.asarray(report.classes)
    sets = prediction_set(proba, quantiles, report.task)
    return (float(sets[truth].mean()), float(sets.sum(axis=1).mean())) if truth.any() else None


def describe_training_ranges(ranges: Mapping[str, Any] | None) -> dict[str, str]:
    """
    Put the ranges of the training data into words, without those that are unknown.

    >>> describe_training_ranges({"series": 9, "modalities": ["CT", "MR"], "spacing": [0.5, 0.752]})
    {'series': '9', 'modalities': 'CT, MR', 'spacing': '0.5 to 0.752 mm'}
    """
    words = {}
    for name, value in (ranges or {}).items():
        if value is None or value == []:
            continue
        if not isinstance(value, list):
            text = f"{value:,}"
        elif isinstance(value[0], str):
            text = ", ".join(value)
        else:
            ends = " to ".join(dict.fromkeys(f"{end:.3g}" if name in _IN_MM else f"{end:g}" for end in value))
            text = f"{ends} mm" if name in _IN_MM else ends
        words[name.replace("_", " ")] = text
    return words
