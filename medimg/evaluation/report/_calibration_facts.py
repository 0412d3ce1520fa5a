"""What a model was fitted with to decide, in words: temperature, operating points, prediction sets."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from medimg.evaluation.report.report import Report
    from medimg.metrics.bootstrap import Estimate

__all__ = ["decision_facts", "observed_coverage", "other_intervals", "training_range_facts"]

_IN_MM = ("spacing", "slice_distance", "slice_thickness")

_OTHERS = {
    "delong": "those of the AUROC of a class from DeLong’s variance",
    "exact": "those of shares of 0 or 1 from the binomial distribution, by patients",
}

_NOT_CALIBRATED = (
    "The probabilities were not calibrated: that of a class need not be how often it occurs. "
    "medimg.calibrate fits that on validation data."
)


def other_intervals(estimates: "Iterable[Estimate]") -> str:
    """
    Say which intervals were not found by resampling.

    Parameters
    ----------
    estimates : iterable of Estimate
        The metrics.

    Returns
    -------
    str
        In parentheses behind a space, or "".

    Examples
    --------
    >>> from medimg.metrics.bootstrap import Estimate
    >>> other_intervals([Estimate(1.0, 0.839, 1.0, method="exact")])
    ' (those of shares of 0 or 1 from the binomial distribution, by patients)'
    """
    methods = {estimate.method for estimate in estimates}
    found = [text for method, text in _OTHERS.items() if method in methods]
    return f" ({'; '.join(found)})" if found else ""


def decision_facts(calibration: Mapping[str, Any] | None) -> list[str]:
    """
    Put a calibration into sentences.

    Parameters
    ----------
    calibration : mapping or None
        What ``Calibration.to_dict`` gives, and whether it has statistics of embeddings (``outliers``); None
        where the model is not calibrated.

    Returns
    -------
    list of str
        Sentences.

    Examples
    --------
    >>> decision_facts(None)[0].partition(":")[0]
    'The probabilities were not calibrated'
    """
    if not calibration:
        return [_NOT_CALIBRATED]
    before, after = calibration["loss"]
    temperatures = ", ".join(f"{t:.3g}" for t in calibration["temperature"])
    sentences = [
        f"Fitted on {calibration['items']:,} items ({calibration['unit']}) of {calibration['patients']:,} "
        "validation patients; the numbers in this part are of these, not of the images evaluated here.",
        f"Temperature {temperatures}: mean negative log likelihood {before:.3f} before, {after:.3f} after.",
    ]
    if calibration["coverage"] is not None:
        cuts = ", ".join(f"{q:.3g}" for q in calibration["quantiles"])
        sentences.append(
            f"Prediction sets hold the class with a probability of {100 * calibration['coverage']:g} %, for "
            f"patients like those (split-conformal; 1 − probability at most {cuts})."
        )
    sentences.append(
        "Each prediction is told how unusual its image is: the share of held-out images that lie nearer to "
        "the training data (Mahalanobis distance of embeddings)."
        if calibration.get("outliers")
        else "How unusual an image is, is not told: no statistics of the training data were fitted."
    )
    return sentences


def observed_coverage(report: "Report") -> tuple[float, float] | None:
    """
    Look how often the prediction sets hold the truth on what was evaluated.

    Parameters
    ----------
    report : Report
        What was evaluated; its provenance tells the quantiles.

    Returns
    -------
    tuple of 2 floats, or None
        Share of the units whose class is in the set (multilabel: of the labels that are there), and mean size
        of the sets. None where there are no sets, or nothing to look for.
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


def training_range_facts(ranges: Mapping[str, Any] | None) -> dict[str, str]:
    """
    Put the ranges of the training data into words.

    Parameters
    ----------
    ranges : mapping or None
        What ``TrainingRanges.to_dict`` gives; None where they were not noted.

    Returns
    -------
    dict of str to str
        Without what is not known.

    Examples
    --------
    >>> training_range_facts({"series": 9, "modalities": ["CT", "MR"], "spacing": [0.5, 0.752]})
    {'series': '9', 'modalities': 'CT, MR', 'spacing': '0.5 to 0.752 mm'}
    """
    found = {}
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
        found[name.replace("_", " ")] = text
    return found
