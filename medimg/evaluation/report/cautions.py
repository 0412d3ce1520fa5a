"""Limitations of the scores of an evaluation, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from medimg.evaluation.report._metric_names import describe_metric
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.interval_coverage import find_worst_coverage

__all__ = [
    "FEWEST_SHOWN",
    "FEW_PATIENTS",
    "ClassCount",
    "describe_constant_predictions",
    "describe_decision_rule",
    "list_cautions",
]

#: Groups of fewer patients are merged, and not shown if they still are so few.
FEWEST_SHOWN: Final = 5
#: Below this, the scores are a first indication at best.
FEW_PATIENTS: Final = 20
_FEW_OF_A_CLASS: Final = 5
_MEANINGLESS_PATIENTS: Final = 5
_NOTABLE_SHARE_DROPPED: Final = 0.01


@dataclass(frozen=True)
class ClassCount:
    """
    Size of a class in an evaluation.

    Attributes
    ----------
    name : str
        Name of the class.
    patients, units, images : int
        Number of patients with at least one unit of the class, of units, and of items of the dataset.
    """

    name: str
    patients: int
    units: int
    images: int


def describe_decision_rule(task: str, classes: tuple[str, ...], evaluation: Mapping[str, Any]) -> str:
    """
    Describe how probabilities become predictions, as part of a sentence.

    >>> describe_decision_rule("multiclass", ("no", "yes"), {"operating_points": [0.3]})
    '“yes” is predicted if its probability is at least 0.3'
    """
    points = evaluation.get("operating_points")
    if points and task == "multilabel":
        each = (f"{point:.3g} (“{name}”)" for name, point in zip(classes, points, strict=True))
        return f"a label is predicted if its probability is at least {', '.join(each)}"
    if points:
        return f"“{classes[1]}” is predicted if its probability is at least {points[0]:.3g}"
    if task == "multilabel":
        return f"a label is predicted if its probability is at least {evaluation['threshold']:g}"
    return "the class with the highest probability is predicted"


def list_cautions(
    *,
    counts: tuple[ClassCount, ...],
    n_patients: int,
    metrics: Mapping[str, Estimate],
    n_resamples: int,
    n_unknown: int = 0,
) -> tuple[str, ...]:
    """
    List the limitations of the scores; `n_unknown` images have no known patient.

    >>> counts = (ClassCount("no", 2, 2, 40), ClassCount("yes", 1, 1, 20))
    >>> few, *_ = list_cautions(counts=counts, n_patients=3, metrics={}, n_resamples=1000)
    >>> few.partition(".")[0]
    'Only 3 patients: these scores are meaningless'
    """
    sentences = [
        *_describe_few_patients(n_patients),
        *_describe_unknown_patients(n_unknown),
        *_describe_rare_classes(counts),
        *_describe_coverage(counts, n_patients, metrics),
    ]
    accuracy = metrics.get("accuracy")
    if accuracy is not None and accuracy.value == 1.0:
        sentences.append(_describe_no_errors(n_patients))
    elif any(e.value == 1.0 for name, e in metrics.items() if name.startswith("auroc")):
        sentences.append(
            "An AUROC is 1: every positive scored above every negative, so that neither resampling nor "
            "DeLong’s method can show the uncertainty of this value. That of a single class has Newcombe’s "
            "score interval, a mean over several classes has none."
        )
    # a score that is undefined on the whole dataset has no interval to be too narrow
    dropped = max((e.dropped for e in metrics.values() if not math.isnan(e.value)), default=0)
    if n_patients > 1 and dropped > _NOTABLE_SHARE_DROPPED * n_resamples:
        sentences.append(
            f"Up to {dropped:,} of {n_resamples:,} resamples lacked a class and were left out of an "
            "interval. Such intervals are too narrow; if more than half were left out, none is given."
        )
    return tuple(sentences)


def describe_constant_predictions(
    predicted: NDArray[np.bool_], classes: tuple[str, ...], task: str
) -> tuple[str, ...]:
    """
    Describe which classes of `predicted`, (n, K), are predicted for all units, or for none.

    >>> same = np.array([[True, False], [True, False]])
    >>> describe_constant_predictions(same, ("no", "yes"), "multiclass")[0].partition(":")[0]
    'Every prediction is “no”'
    """
    if len(predicted) < 2:
        return ()
    always = [name for name, column in zip(classes, predicted.T, strict=True) if column.all()]
    if task == "multiclass":
        return tuple(
            f"Every prediction is “{name}”: its recall is 1 and that of the other classes 0, whatever the "
            "images show. The AUROC shows whether the ranking is right."
            for name in always
        )
    never = [name for name, column in zip(classes, predicted.T, strict=True) if not column.any()]
    return tuple(
        f"{', '.join(f'“{name}”' for name in names)} {was}: recall and specificity are {values}, whatever "
        "the images show."
        for names, was, values in (
            (always, "was always predicted", "1 and 0"),
            (never, "was never predicted", "0 and 1"),
        )
        if names
    )


def _describe_unknown_patients(n_unknown: int) -> list[str]:
    if not n_unknown:
        return []
    return [
        f"{n_unknown} images have no known patient, and each counts as a patient of its own: if some are of "
        "the same patient, there are fewer patients than reported here, and the intervals are too narrow."
    ]


def _describe_few_patients(n_patients: int) -> list[str]:
    if n_patients >= FEW_PATIENTS:
        return []
    if n_patients == 1:
        return [
            "Only 1 patient: these scores are meaningless, and there are no intervals, because they come "
            "from resampling patients."
        ]
    if n_patients <= _MEANINGLESS_PATIENTS:
        return [
            f"Only {n_patients} patients: these scores are meaningless. They show that the software runs, "
            "not how good the model is."
        ]
    return [
        f"Only {n_patients} patients: these scores are a first indication at best, and the intervals are too "
        "narrow."
    ]


def _describe_rare_classes(counts: tuple[ClassCount, ...]) -> list[str]:
    absent = [count.name for count in counts if not count.units]
    sentences = []
    if absent:
        names = ", ".join(f"“{name}”" for name in absent)
        sentences.append(
            f"The evaluation data have no example of class {names}: its recall, precision, F1 and AUROC are "
            "undefined, and means over the classes are without it."
        )
    rare = [f"“{count.name}” ({count.patients})" for count in counts if 0 < count.patients < _FEW_OF_A_CLASS]
    if rare:
        sentences.append(f"Metrics by class are unreliable for classes of few patients: {', '.join(rare)}.")
    return sentences


def _describe_coverage(
    counts: tuple[ClassCount, ...], n_patients: int, metrics: Mapping[str, Estimate]
) -> list[str]:
    """Say by how much intervals of few patients are too narrow at worst."""
    sizes = [size for count in counts for size in (count.patients, n_patients - count.patients) if size > 0]
    given = [name for name, estimate in metrics.items() if not math.isnan(estimate.low)]
    worst = find_worst_coverage(min(sizes), given) if sizes else {}
    if not worst:
        return []
    least = min(sizes)
    listed = ", ".join(f"{100 * share:.0f} % ({describe_metric(name)})" for name, share in worst.items())
    return [
        f"The smallest class, or the rest, has {least} patient{'s' * (least > 1)}, and intervals of so few "
        "can be too narrow: in the worst of simulated studies, 95 % intervals contained the true value in "
        f"only {listed}."
    ]


def _describe_no_errors(n_patients: int) -> str:
    """Give the rule of three: Hanley JA, Lippman-Hand A. JAMA 1983;249:1743-1745."""
    if n_patients < _MEANINGLESS_PATIENTS:
        return "There are no errors, so that resampling cannot show the uncertainty of the scores."
    bound = math.ceil(300 / n_patients)
    return (
        f"There are no errors, so that resampling cannot show the uncertainty of the scores: with "
        f"{n_patients} patients the true error rate may be up to about {min(bound, 100)} % (rule of three)."
    )
