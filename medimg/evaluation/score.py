"""Scores of anybody's predictions, given as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medimg._public import set_module
from medimg._validation import check_number, check_text
from medimg.errors import DatasetError
from medimg.evaluation._prediction_arrays import check_same_order, read_predictions, read_values
from medimg.evaluation._scored_items import ScoredItems, describe_copies, is_dataset, make_getter
from medimg.evaluation.aggregation import Unit, check_units
from medimg.evaluation.build_report import NOT_CHECKED, ReportSettings, build_report
from medimg.evaluation.subgroups import Subgroups, find_subgroups

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Literal

    from numpy.typing import ArrayLike

    from medimg.evaluation.report.report import Report
    from medimg.metrics.intervals import IntervalMethod

__all__ = ["score"]

_DECISIONS = (
    "All probabilities are 0 or 1, as decisions are: AUROC, AUPRC, curves and calibration say little of them."
)


@set_module("medimg")
def score(
    y_true: ArrayLike,
    y_prob: ArrayLike,
    *,
    classes: Iterable[object] | None = None,
    task: Literal["multiclass", "multilabel"] | None = None,
    patients: ArrayLike | None = None,
    series: ArrayLike | None = None,
    images: Any = None,
    thresholds: float | Sequence[float] | None = None,
    unit: Unit | None = None,
    ci: float = 0.95,
    ci_method: IntervalMethod = "auto",
    n_resamples: int = 2000,
    seed: int = 0,
    salt: str | None = None,
    subgroups: Subgroups | None = None,
    model: str | None = None,
) -> Report:
    """
    Score the predictions of any model, with the metrics, intervals and report of :func:`medimg.evaluate`.

    Arrays may be NumPy's, torch tensors, tables and columns of pandas, or lists; they have one row for each
    image and are matched by position.

    Parameters
    ----------
    y_true : array-like, shape (n,) or (n, K)
        Labels: names or indices of the classes; in a multilabel task 0 and 1, one column for each label.
    y_prob : array-like, shape (n,), (n, 1) or (n, K)
        Probabilities from 0 to 1: one column for each class, in the order of `classes`; of two classes, that
        of the second suffices. Multiclass rows sum to 1. Columns of a table that are named after the classes
        (or ``p_`` and the class, as in ``Report.predictions``) may have any order.
    classes : sequence of str, optional
        Names of the classes, in the order of the columns; by default the names of the table's columns, else
        "0", "1", …
    task : {"multiclass", "multilabel"}, optional
        By default multilabel if `y_true` has several columns, unless it is one-hot and rows of `y_prob` sum
        to 1, which is ambiguous and an error.
    patients : array-like, shape (n,), optional
        Patient of each row. Intervals resample patients: without them every row counts as a patient of its
        own, which the report lists as a limitation.
    series : array-like, shape (n,), optional
        Series of each row, for ``unit="series"``.
    images : ImageDataset or sequence, optional
        Images, of which the report shows examples: paths and other sources of :func:`medimg.read`, arrays or
        tensors. A dataset also gives patients, series, and the headers for `subgroups`.
    thresholds : float or sequence of float, optional
        Probability from which on the second of two classes, or each label, is predicted; by default the most
        probable class, and 0.5 for labels.
    unit : {"patient", "series", "image"}, optional
        Unit of the scores; see :func:`medimg.evaluate`. By default "patient", or "image" if no patient is
        known.
    ci, ci_method, n_resamples, seed, salt
        Intervals, their resamples, and secret for hashing patients; see :func:`medimg.evaluate`.
    subgroups : mapping, DataFrame, str or sequence of str, optional
        Groups of patients that are scored separately: columns by name, with a value for each row. Names of
        attributes, such as "sex", need a dataset as `images`.
    model : str, optional
        Name of the model, for the report.

    Returns
    -------
    Report
        What is not known of the model, such as its training and preprocessing, is left out of the report.

    Raises
    ------
    DatasetError
        If `y_prob` has no probabilities (but logits, say), the arrays do not match, a label is missing or
        unknown, or a setting is invalid.

    Examples
    --------
    >>> import medimg
    >>> report = medimg.score(
    ...     ["ill", "well", "ill", "well"],
    ...     [0.9, 0.2, 0.6, 0.7],
    ...     classes=["well", "ill"],
    ...     patients=["a", "b", "c", "d"],
    ... )
    >>> report.metrics["auroc"].value, report.metrics["specificity"].value
    (0.75, 0.5)
    """
    if model is not None:
        check_text("model", model, error=DatasetError)
    found = read_predictions(y_true, y_prob, classes=classes, task=task)
    given = [("y_prob", y_prob), ("patients", patients), ("series", series)]
    check_same_order(*(read_values(name, values) for name, values in given if values is not None))
    from_dataset = images is not None and is_dataset(images)
    if from_dataset:
        items = ScoredItems.of_dataset(found, images, patients=patients, series=series)
    else:
        items = ScoredItems.of_arrays(found, patients=patients, series=series)
    has_patients = from_dataset or items.n_unknown_patients < len(items)
    unit = unit or ("patient" if has_patients else "image")
    settings = ReportSettings(
        unit=unit, ci=ci, ci_method=ci_method, n_resamples=n_resamples, seed=seed, salt=salt
    )
    if unit == "patient" and not has_patients:
        raise DatasetError(
            "unit='patient' needs to know the patients; found none: pass patients=, one for each row, or "
            "unit='image'"
        )
    if unit == "series" and not from_dataset and not any(items.series_uids):
        raise DatasetError(
            "unit='series' needs to know the series; found none: pass series=, one for each row, or "
            "unit='image'"
        )
    get_pixels = None if images is None else make_getter(images, len(items))
    check_units(items, unit)
    groups = find_subgroups(items, subgroups)
    notes = [NOT_CHECKED]
    if np.isin(found.probabilities, (0, 1)).all():
        notes.append(_DECISIONS)
    if images is not None:
        notes += describe_copies(images, items.patients)
    recipe = items.preprocess
    return build_report(
        items,
        found.probabilities,
        settings,
        groups=groups,
        facts={
            "model": {} if model is None else {"name": model},
            "recipe": None if recipe is None else recipe.to_dict(),
            "recipe_fingerprint": None if recipe is None else recipe.fingerprint,
        },
        thresholds=_check_thresholds(thresholds, found.task, len(found.classes)),
        notes=notes,
        get_pixels=get_pixels,
    )


def _check_thresholds(
    thresholds: float | Sequence[float] | None, task: str, count: int
) -> tuple[float, ...] | None:
    """Return the threshold of the second of two classes, or of each label."""
    if thresholds is None:
        return None
    if task == "multiclass" and count != 2:
        raise DatasetError(
            f"thresholds are for two classes, or for the labels of a multilabel task; found {count} classes, "
            "of which the most probable is predicted"
        )
    expected = 1 if task == "multiclass" else count
    given: Any = thresholds.tolist() if hasattr(thresholds, "tolist") else thresholds
    several = list(given) if hasattr(given, "__len__") and not isinstance(given, str) else [given] * expected
    if len(several) != expected:
        raise DatasetError(
            f"there are {len(several)} thresholds; expected "
            + ("one, of the second class" if task == "multiclass" else f"{expected}, one for each label")
        )
    return tuple(check_number("thresholds", one, least=0, most=1, error=DatasetError) for one in several)
