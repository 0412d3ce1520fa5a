"""Where the scored images come from: what was found, what was left out and why, the split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from medimg.data.protocols import EvaluationDataset
from medimg.metrics.units import ScoredUnits

__all__ = ["Subset", "count_reasons", "data_flow", "shared_patients", "split_subsets"]

#: What messages say, and what reports say for it: messages name files, and files can be named after patients.
_REASONS: Final = (
    (r"none of DICOM", "no image (none of DICOM, NIfTI, NRRD, MetaImage, PNG and JPEG)"),
    (r"without pixels", "DICOM object without pixels"),
    (r"whole slide image", "whole slide image"),
    (r"Instance Numbers|order is unknown", "slices whose order is unknown"),
    (r"zip archive in a folder", "archive within the folder"),
    (r"not supported|are supported", "kind of image that is not supported"),
    (
        r"there is no file|that is not there|can't be opened|no ordinary file|not a regular file",
        "could not be opened",
    ),
    (r"truncated|ends (before|within|after)|bytes long|does not end", "truncated"),
    (r"encrypted", "encrypted"),
    (r"damaged|decode|unpack|declares|contradict|expected", "damaged, or contradicts itself"),
)
_OTHER: Final = "another reason"


@dataclass(frozen=True, slots=True)
class Subset:
    """
    What is on one side of a split.

    Attributes
    ----------
    name : str
        "train", "val", …
    patients, series, items : int
        How many; `series` counts images that are of no series as one each.
    classes : mapping of str to int
        Items of each class.
    digest : str
        Tells these images, labels and recipe from others; nothing can be read from it.
    """

    name: str
    patients: int
    series: int
    items: int
    classes: Mapping[str, int]
    digest: str


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """
    Count why files were left out, in words that name no file.

    Parameters
    ----------
    reasons : iterable of str
        What ``Skipped.reason`` says; the files it names are not passed on.

    Returns
    -------
    dict of str to int
        The most frequent first.

    Examples
    --------
    >>> count_reasons(["/data/DOE^JANE/notes.txt is none of DICOM, NIfTI, NRRD, MetaImage, PNG and JPEG"])
    {'no image (none of DICOM, NIfTI, NRRD, MetaImage, PNG and JPEG)': 1}
    """
    return dict(Counter(map(_kind, reasons)).most_common())


def data_flow(dataset: EvaluationDataset, units: ScoredUnits) -> dict[str, Any]:
    """
    Say how many files, patients, series and slices became how many scores.

    Parameters
    ----------
    dataset : ImageDataset
        What was evaluated: a part of what was found, or all of it.
    units : ScoredUnits
        What was scored.

    Returns
    -------
    dict
        Fit for JSON: ``skipped`` (reasons with counts), ``found`` (all that the dataset was made of, before
        it was split; absent where that is not known), ``evaluated`` (``patients``, ``series``, ``slices``),
        ``pictures``, ``units``, ``modalities`` (series of each) and ``digest``.
    """
    from medimg.training.resume import data_digest

    flow: dict[str, Any] = {
        "skipped": count_reasons(s.reason.replace(s.path, "") for s in getattr(dataset, "skipped", ())),
        "evaluated": {"patients": units.n_patients, "series": _n_series(dataset)},
        "units": len(units),
        # any dataset of this protocol has what is hashed
        "digest": data_digest(dataset),  # type: ignore[arg-type]
    }
    series = getattr(dataset, "series", None)
    if series is None:
        return flow
    distinct = list({id(one): one for one in series}.values())
    flow["evaluated"]["slices"] = _n_slices(distinct)
    flow["pictures"] = sum(map(_counter(dataset), series)) if dataset.unit == "series" else len(dataset)
    flow["modalities"] = dict(Counter(one.modality or "unknown" for one in distinct).most_common())
    labeled = getattr(dataset, "_labeled", ())
    if labeled:
        flow["found"] = {
            "patients": len({one.patient or one.series.uid for one in labeled}),
            "series": len(labeled),
            "slices": _n_slices(one.series for one in labeled),
        }
    return flow


def split_subsets(split: Mapping[str, EvaluationDataset]) -> list[Subset]:
    """
    Count what is on the sides of a split.

    Parameters
    ----------
    split : mapping of str to ImageDataset
        The sides by name.

    Returns
    -------
    list of Side
        In the same order.
    """
    from medimg.training.resume import data_digest

    return [
        Subset(
            name=str(name),
            patients=len(set(part.patients)),
            series=_n_series(part),
            items=len(part),
            classes=_class_counts(part),
            digest=str(data_digest(part)),  # type: ignore[arg-type]  # as above
        )
        for name, part in split.items()
    ]


def shared_patients(split: Mapping[str, EvaluationDataset]) -> int:
    """
    Count the patients that are on more than one side.

    Parameters
    ----------
    split : mapping of str to ImageDataset
        The sides by name.

    Returns
    -------
    int
        0 where no score can profit from a patient that was trained on.
    """
    on = Counter(patient for part in split.values() for patient in set(part.patients))
    return sum(count > 1 for count in on.values())


def _kind(reason: str) -> str:
    return next((words for pattern, words in _REASONS if re.search(pattern, reason)), _OTHER)


def _n_series(dataset: EvaluationDataset) -> int:
    return len(set(zip(dataset.series_uids, _sources_of_unknown(dataset), strict=True)))


def _sources_of_unknown(dataset: EvaluationDataset) -> list[str]:
    """Give the file of an item whose series is not known, else nothing."""
    return ["" if uid else source for uid, source in zip(dataset.series_uids, dataset.sources, strict=True)]


def _n_slices(series: Iterable[Any]) -> int:
    return sum(int(one.shape[1]) for one in series)


def _counter(dataset: EvaluationDataset) -> Any:
    return getattr(dataset.preprocess, "count", lambda _: 0)


def _class_counts(dataset: EvaluationDataset) -> dict[str, int]:
    labels = np.asarray(dataset.labels)
    if dataset.task != "multilabel":
        labels = labels[:, None] == np.arange(len(dataset.classes))
    return {name: int(n) for name, n in zip(dataset.classes, (labels > 0).sum(axis=0), strict=True)}
