"""Plain sentences on what the numbers of a report can't tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medimg.metrics.bootstrap import Estimate

__all__ = ["FEWEST_SHOWN", "FEW_PATIENTS", "ClassCount", "cautions", "decision_rule", "is_undiscerning"]

FEWEST_SHOWN: Final = 5
"""Groups of fewer patients are put together, and not shown if they still are so few."""

FEW_PATIENTS = 20
FEW_OF_A_CLASS = 5
MEANINGLESS_PATIENTS = 5
NOTABLE_SHARE_DROPPED = 0.01


@dataclass(frozen=True)
class ClassCount:
    """
    How much of a class was evaluated.

    Attributes
    ----------
    name : str
        The class.
    patients, units, images : int
        Patients with at least one unit of the class, units, and items of the dataset.
    """

    name: str
    patients: int
    units: int
    images: int


def decision_rule(task: str, classes: tuple[str, ...], evaluation: Mapping[str, Any]) -> str:
    """
    Say what makes a probability a prediction.

    Parameters
    ----------
    task : str
        ``"multiclass"`` or ``"multilabel"``.
    classes : tuple of str
        Names of the classes.
    evaluation : mapping
        Of ``Report.provenance``.

    Returns
    -------
    str
        Part of a sentence.

    Examples
    --------
    >>> decision_rule("multiclass", ("no", "yes"), {"operating_points": [0.3]})
    '“yes” is predicted from a probability of 0.3 on'
    """
    points = evaluation.get("operating_points")
    if points and task == "multilabel":
        each = (f"{point:.3g} (“{name}”)" for name, point in zip(classes, points, strict=True))
        return f"a label counts as found from a probability of {', '.join(each)} on"
    if points:
        return f"“{classes[1]}” is predicted from a probability of {points[0]:.3g} on"
    if task == "multilabel":
        return f"a label counts as found from a probability of {evaluation['threshold']:g} on"
    return "the class with the highest probability is the prediction"


def cautions(
    *,
    counts: tuple[ClassCount, ...],
    n_patients: int,
    metrics: Mapping[str, Estimate],
    n_resamples: int,
    n_unknown: int = 0,
) -> tuple[str, ...]:
    """
    Say what the numbers can't be trusted for.

    Parameters
    ----------
    counts : tuple of ClassCount
        One per class.
    n_patients : int
        Patients in all.
    metrics : mapping of str to Estimate
        The metrics.
    n_resamples : int
        Resamples drawn.
    n_unknown : int
        Images whose patient is unknown.

    Returns
    -------
    tuple of str
        Sentences; empty where there is nothing to warn of.

    Examples
    --------
    >>> counts = (ClassCount("no", 2, 2, 40), ClassCount("yes", 1, 1, 20))
    >>> few, *_ = cautions(counts=counts, n_patients=3, metrics={}, n_resamples=1000)
    >>> few
    'Only 3 patients: these scores mean nothing. They show that the software runs, not how good the model is.'
    """
    sentences = [*_few_patients(n_patients), *_unknown_patients(n_unknown), *_rare_classes(counts)]
    accuracy = metrics.get("accuracy")
    if accuracy is not None and accuracy.value == 1.0:
        sentences.append(_no_errors(n_patients))
    elif any(e.value == 1.0 for name, e in metrics.items() if name.startswith("auroc")):
        sentences.append(
            "An AUROC is 1: every positive scored above every negative, so that neither resampling nor "
            "DeLong's variance can show how uncertain that is."
        )
    # a score that is undefined on the whole set has no interval to be too narrow
    dropped = max((e.dropped for e in metrics.values() if not math.isnan(e.value)), default=0)
    if n_patients > 1 and dropped > NOTABLE_SHARE_DROPPED * n_resamples:
        sentences.append(
            f"Up to {dropped:,} of {n_resamples:,} resamples lacked a class and were left out of an "
            "interval. Such intervals are too narrow; where more than half were left out, none is given."
        )
    return tuple(sentences)


def is_undiscerning(predicted: NDArray[np.bool_], classes: tuple[str, ...], task: str) -> tuple[str, ...]:
    """
    Say where a model decides the same for all that it is shown.

    Parameters
    ----------
    predicted : ndarray of bool, shape (n, K)
        Decisions.
    classes : tuple of str
        Names of the classes.
    task : str
        ``"multiclass"`` or ``"multilabel"``.

    Returns
    -------
    tuple of str
        Sentences.

    Examples
    --------
    >>> same = np.array([[True, False], [True, False]])
    >>> is_undiscerning(same, ("no", "yes"), "multiclass")[0].partition(":")[0]
    'Everything was predicted to be “no”'
    """
    if len(predicted) < 2:
        return ()
    always = [name for name, column in zip(classes, predicted.T, strict=True) if column.all()]
    if task == "multiclass":
        return tuple(
            f"Everything was predicted to be “{name}”: its recall is 1 and that of other classes 0 whatever "
            "the images show. The AUROC tells whether the order is right."
            for name in always
        )
    never = [name for name, column in zip(classes, predicted.T, strict=True) if not column.any()]
    return tuple(
        f"{', '.join(f'“{name}”' for name in names)} {was}: recall and specificity are {values} whatever the "
        "images show."
        for names, was, values in (
            (always, "was found in everything", "1 and 0"),
            (never, "was found in nothing", "0 and 1"),
        )
        if names
    )


def _unknown_patients(n_unknown: int) -> list[str]:
    if not n_unknown:
        return []
    return [
        f"{n_unknown} images have no known patient, and each counts as one of its own: if some share one, "
        "there are fewer patients than it says here, and the intervals are too narrow."
    ]


def _few_patients(n_patients: int) -> list[str]:
    if n_patients >= FEW_PATIENTS:
        return []
    if n_patients == 1:
        return [
            "Only 1 patient: these scores mean nothing, and there are no intervals, because they come from "
            "resampling patients."
        ]
    if n_patients <= MEANINGLESS_PATIENTS:
        return [
            f"Only {n_patients} patients: these scores mean nothing. They show that the software runs, not "
            "how good the model is."
        ]
    return [
        f"Only {n_patients} patients: these scores are a first hint at best, and with so few the intervals "
        "are too narrow."
    ]


def _rare_classes(counts: tuple[ClassCount, ...]) -> list[str]:
    absent = [count.name for count in counts if not count.units]
    sentences = []
    if absent:
        names = ", ".join(f"“{name}”" for name in absent)
        sentences.append(
            f"Nothing evaluated is of class {names}: its recall, precision, F1 and AUROC are not defined, "
            "and the averages run over the other classes."
        )
    rare = [f"“{count.name}” ({count.patients})" for count in counts if 0 < count.patients < FEW_OF_A_CLASS]
    if rare:
        sentences.append(f"Scores by class can't be relied on where patients are few: {', '.join(rare)}.")
    return sentences


def _no_errors(n_patients: int) -> str:
    """Give the rule of three: Hanley JA, Lippman-Hand A. JAMA 1983;249:1743-1745."""
    if n_patients < MEANINGLESS_PATIENTS:
        return "There was no error at all, so resampling can't show how uncertain the scores are."
    bound = math.ceil(300 / n_patients)
    return (
        "There was no error at all, so resampling can't show how uncertain the scores are: with "
        f"{n_patients} patients the true error rate could still be about {min(bound, 100)} % "
        "(rule of three)."
    )
