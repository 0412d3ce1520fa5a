"""All metrics by scikit-learn's own averages, and plainly resampled: what the fast ways are compared with."""

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn import metrics as sk

from medimg.metrics.bootstrap import find_strata
from medimg.metrics.classification import Support
from medimg.metrics.units import ScoredUnits

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
#: Checks of arguments take most of the time that scikit-learn needs for a few images.
UNCHECKED: dict[str, Any] = {"assume_finite": True, "skip_parameter_validation": True}


def by_sklearn(truth: Flags, predicted: Flags, scores: Floats, support: Support) -> dict[str, float]:
    """Every metric; NaN where the whole set has it but this one has not."""
    with warnings.catch_warnings(), sklearn.config_context(**UNCHECKED):
        warnings.simplefilter("ignore")
        found = {"accuracy": sk.accuracy_score(truth, predicted), **averages(truth, predicted, support)}
        found |= areas(truth, scores, support)
        found |= agreements(truth, predicted, support)
        found |= calibrations(truth, scores, support)
        found |= by_class(truth, predicted, scores, support)
        if support.task == "multiclass":
            complete = truth[:, support.has_positives].any(axis=0).all()
            balanced = sk.balanced_accuracy_score(truth.argmax(axis=1), predicted.argmax(axis=1))
            found["balanced_accuracy"] = balanced if complete else np.nan
    return found


def averages(truth: Flags, predicted: Flags, support: Support) -> dict[str, float]:
    present = [k for k, n in enumerate(support.positives) if n]
    lacking = any(not truth[:, k].any() for k in present) or not present
    if support.task == "multiclass":
        y, z = truth.argmax(axis=1), predicted.argmax(axis=1)
        kinds = ["macro", "weighted"]
    else:
        # a column more, which nothing is of: one alone would be taken for a binary task
        y, z = (np.column_stack([x, np.zeros(len(x), bool)]).astype(int) for x in (truth, predicted))
        kinds = ["macro", "weighted", "micro"]
    found: dict[str, float] = {}
    for kind in kinds:
        labels = present if kind != "micro" else list(range(len(support.classes)))
        undefined = lacking if kind != "micro" else not truth.any()
        scores = (
            (np.nan,) * 3
            if undefined
            else sk.precision_recall_fscore_support(y, z, labels=labels, average=kind, zero_division=0)[:3]
        )
        names = (f"{name}_{kind}" for name in ("precision", "recall", "f1"))
        found |= dict(zip(names, map(float, scores), strict=True))
    del found["recall_weighted"]
    return found


def areas(truth: Flags, scores: Floats, support: Support) -> dict[str, float]:
    both = [k for k, n in enumerate(support.positives) if n and support.negatives[k]]
    both = [k for k in both if not support.is_binary or k == 1]
    found: dict[str, float] = {}
    for name, score in (("auroc", sk.roc_auc_score), ("auprc", sk.average_precision_score)):
        values = [
            score(truth[:, k], scores[:, k]) if 0 < truth[:, k].sum() < len(truth) else np.nan for k in both
        ]
        sizes = truth[:, both].sum(axis=0)
        found[name] = float(np.mean(values)) if both else np.nan
        if not support.is_binary:
            complete = bool(both) and not np.isnan(values).any()
            found[f"{name}_weighted"] = float(np.average(values, weights=sizes)) if complete else np.nan
    return found


def agreements(truth: Flags, predicted: Flags, support: Support) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, score in (("mcc", sk.matthews_corrcoef), ("kappa", sk.cohen_kappa_score)):
        if support.task == "multiclass":
            value = score(truth.argmax(axis=1), predicted.argmax(axis=1))
            found[name] = float(value) if (truth.any(axis=0)).sum() > 1 else np.nan
            continue
        both = [k for k, n in enumerate(support.positives) if n and support.negatives[k]]
        values = [
            score(truth[:, k], predicted[:, k]) if 0 < truth[:, k].sum() < len(truth) else np.nan
            for k in both
        ]
        found[name] = float(np.mean(values)) if both else np.nan
    return found


def calibrations(truth: Flags, scores: Floats, support: Support) -> dict[str, float]:
    of_classes = [plain_ece(y, p) for y, p in zip(truth.T, scores.T, strict=True)]
    found = {"brier": float(np.mean([np.mean((y - p) ** 2) for y, p in zip(truth.T, scores.T, strict=True)]))}
    if support.task == "multilabel":
        return found | {"ece": float(np.mean(of_classes))}
    right = truth[np.arange(len(truth)), scores.argmax(axis=1)]
    found["ece"] = plain_ece(right, scores.max(axis=1))
    return found if support.is_binary else found | {"ece_macro": float(np.mean(of_classes))}


def plain_ece(positive: Flags, probabilities: Floats) -> float:
    """Guo's formula, bin by bin."""
    edges = np.linspace(0, 1, 16)
    total = 0.0
    for n, (low, high) in enumerate(pairwise(edges)):
        inside = (probabilities > low) & (probabilities <= high) | ((n == 0) & (probabilities == 0))
        if inside.any():
            total += inside.mean() * abs(positive[inside].mean() - probabilities[inside].mean())
    return total


def by_class(truth: Flags, predicted: Flags, scores: Floats, support: Support) -> dict[str, float]:
    found: dict[str, float] = {}
    for k, name in enumerate(support.classes):
        y, z, p = truth[:, k], predicted[:, k], scores[:, k]
        positives, negatives = bool(y.any()), not y.all()
        precision, recall, f1, _ = sk.precision_recall_fscore_support(y, z, average="binary", zero_division=0)
        columns: list[tuple[str, bool, Any]] = [
            ("recall", positives, lambda recall=recall: recall),
            ("precision", positives, lambda precision=precision: precision),
            ("f1", positives, lambda f1=f1: f1),
            ("specificity", negatives, lambda y=y, z=z: sk.recall_score(~y, ~z)),
        ]
        if not support.is_binary:
            both = positives and negatives
            columns += [
                ("auroc", both, lambda y=y, p=p: sk.roc_auc_score(y, p)),
                ("auprc", both, lambda y=y, p=p: sk.average_precision_score(y, p)),
                ("mcc", both, lambda y=y, z=z: sk.matthews_corrcoef(y, z)),
                ("kappa", both, lambda y=y, z=z: sk.cohen_kappa_score(y, z)),
                ("brier", True, lambda y=y, p=p: sk.mean_squared_error(y.astype(float), p)),
                ("ece", True, lambda y=y, p=p: plain_ece(y, p)),
            ]
        found |= {f"{kind}[{name}]": float(score()) if there else np.nan for kind, there, score in columns}
    if support.is_binary:
        found |= {"sensitivity": found[f"recall[{support.classes[1]}]"]}
        found |= {"specificity": found[f"specificity[{support.classes[1]}]"]}
    if support.task == "multilabel":
        values = [
            found[f"specificity[{c}]"] for c, n in zip(support.classes, support.negatives, strict=True) if n
        ]
        found["specificity_macro"] = float(np.mean(values)) if values else np.nan
    return found


def plain_resamples(
    units: ScoredUnits, support: Support, *, n_resamples: int, seed: int
) -> list[dict[str, float]]:
    """A double loop: over resamples, and over the patients of each, whose units are copied."""
    strata = find_strata(units)
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(strata == s) for s in range(strata.max() + 1)]
    found = []
    for _ in range(n_resamples):
        drawn = [m[int(generator.random() * len(m))] for m in members for _ in m]
        rows = np.concatenate([np.flatnonzero(units.patient == patient) for patient in drawn])
        found.append(by_sklearn(units.truth[rows], units.predicted[rows], units.probabilities[rows], support))
    return found
