"""Counts of the data behind the scores: files found and skipped, images evaluated, subsets of the split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from medimg.data.identifiers import identifier_digest
from medimg.data.patients import patient_key
from medimg.data.protocols import EvaluationDataset, ScoredDataset
from medimg.metrics.units import ScoredUnits

__all__ = ["Subset", "count_data_flow", "count_reasons", "count_shared_patients", "count_subsets"]

#: Pattern of a message, and the words for it: messages name files, and files may be named after patients.
_REASONS: Final = (
    (
        r"none of DICOM",
        "not an image (none of DICOM and the other formats)",
    ),
    (r"without pixels", "DICOM object without pixels"),
    (r"whole slide image", "whole slide image"),
    (r"Instance Numbers|order is unknown", "slices whose order is unknown"),
    (r"zip archive in a folder", "zip archive within a folder"),
    (r"not supported|are supported", "unsupported type of image"),
    (
        r"there is no file|that is not there|can't be opened|no ordinary file|not a regular file",
        "cannot be opened",
    ),
    (r"truncated|ends (before|within|after)|bytes long|does not end", "truncated"),
    (r"encrypted", "encrypted"),
    (r"damaged|decode|unpack|declares|contradict|expected", "damaged or inconsistent"),
)
_OTHER: Final = "another reason"


@dataclass(frozen=True, slots=True)
class Subset:
    """
    Size of a subset of a split.

    Attributes
    ----------
    name : str
        Name of the subset: "train", "val", …
    patients, series, items : int
        Counts; an image without a series counts as one in `series`.
    classes : mapping of str to int
        Items of each class.
    digest : str
        Hash that identifies this set of images, labels and preprocessing.
    """

    name: str
    patients: int
    series: int
    items: int
    classes: Mapping[str, int]
    digest: str


def count_reasons(reasons: Iterable[str]) -> dict[str, int]:
    """
    Count the reasons why files were skipped, most frequent first, in words that name no file.

    >>> count_reasons(["/data/DOE^JANE/notes.txt is none of DICOM, NIfTI and TIFF"])
    {'not an image (none of DICOM and the other formats)': 1}
    """
    return dict(Counter(map(_describe_reason, reasons)).most_common())


def count_data_flow(dataset: ScoredDataset, units: ScoredUnits) -> dict[str, Any]:
    """
    Count how many files, patients, series and slices became how many predictions.

    Returns
    -------
    dict
        Serializable as JSON: ``skipped`` (reasons with counts; None if unknown), ``found`` (the whole
        dataset before it was split; absent if unknown), ``evaluated`` (``patients``, ``series``, ``slices``),
        ``images``, ``units``, ``modalities`` (series of each) and ``digest``.
    """
    skipped = getattr(dataset, "skipped", ())
    has_series = any(dataset.series_uids) or dataset.preprocess is not None
    flow: dict[str, Any] = {
        # unknown if only predictions were given
        "skipped": None if skipped is None else count_reasons(s.reason.replace(s.path, "") for s in skipped),
        "evaluated": {
            "patients": units.n_patients,
            "series": _count_series(dataset) if has_series else None,
        },
        "units": len(units),
        "digest": identifier_digest(dataset),
    }
    series = getattr(dataset, "series", None)
    if series is None:
        return flow
    distinct = list({id(one): one for one in series}.values())
    flow["evaluated"]["slices"] = _count_slices(distinct)
    count = getattr(dataset.preprocess, "count", lambda _: 0)
    flow["images"] = sum(map(count, series)) if dataset.unit == "series" else len(dataset)
    flow["modalities"] = dict(Counter(one.modality or "unknown" for one in distinct).most_common())
    labeled = getattr(dataset, "labeled_series", ())
    if labeled:
        flow["found"] = {
            "patients": len({one.patient or one.series.uid for one in labeled}),
            "series": len(labeled),
            "slices": _count_slices(one.series for one in labeled),
        }
    return flow


def count_subsets(split: Mapping[str, EvaluationDataset]) -> list[Subset]:
    """Count patients, series, items and classes of each subset of a split."""
    return [
        Subset(
            name=str(name),
            patients=len(set(part.patients)),
            series=_count_series(part),
            items=len(part),
            classes=_count_classes(part),
            digest=identifier_digest(part),
        )
        for name, part in split.items()
    ]


def count_shared_patients(split: Mapping[str, EvaluationDataset]) -> int:
    """Count the patients that are in more than one subset of a split."""
    subsets = Counter(key for part in split.values() for key in set(map(patient_key, set(part.patients))))
    return sum(count > 1 for count in subsets.values())


def _describe_reason(reason: str) -> str:
    return next((words for pattern, words in _REASONS if re.search(pattern, reason)), _OTHER)


def _count_series(dataset: ScoredDataset) -> int:
    """Count distinct series, and distinct files of items without one."""
    pairs = zip(dataset.series_uids, dataset.sources, strict=True)
    return len({(uid, "" if uid else source) for uid, source in pairs})


def _count_slices(series: Iterable[Any]) -> int:
    return sum(int(one.shape[1]) for one in series)


def _count_classes(dataset: ScoredDataset) -> dict[str, int]:
    labels = np.asarray(dataset.labels)
    if dataset.task != "multilabel":
        labels = labels[:, None] == np.arange(len(dataset.classes))
    return {name: int(n) for name, n in zip(dataset.classes, (labels > 0).sum(axis=0), strict=True)}
