"""Metrics of groups of patients: by sex, age, scanner, site, or any other attribute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias, cast

import numpy as np
from pydicom.datadict import tag_for_keyword

from medimg._tables import make_table
from medimg._validation import did_you_mean
from medimg.data.acquisition_tags import (
    NUMBERED,
    NUMBERS,
    TEXTS,
    ages_of,
    parse_age,
    read_acquisition_tags,
    sexes_of,
)
from medimg.data.items import ItemFacts
from medimg.data.patients import patient_key
from medimg.errors import DatasetError, also
from medimg.evaluation.report.cautions import FEWEST_SHOWN
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.classification import Support
from medimg.metrics.intervals import estimate_metrics

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from medimg.io.series import Series
    from medimg.metrics.units import ScoredUnits

__all__ = [
    "FEW_PATIENTS",
    "FEW_POSITIVES",
    "UNKNOWN",
    "GroupRule",
    "Subgroups",
    "find_groups",
    "find_subgroups",
    "list_small_subgroups",
    "score_subgroups",
    "to_age_band",
]

#: A name, a function of a series, a group for each patient, or one for each item.
GroupRule: TypeAlias = "str | Callable[[Series], object] | Mapping[str, object] | Sequence[object]"
#: Names of rules, or rules by name.
Subgroups: TypeAlias = "str | Sequence[str] | Mapping[str, GroupRule]"

UNKNOWN: Final = "unknown"
SEVERAL: Final = "several"
OTHER: Final = f"other (fewer than {FEWEST_SHOWN} patients each)"
#: A note is given to groups of fewer patients, or of fewer patients of a class.
FEW_PATIENTS: Final = 30
FEW_POSITIVES: Final = 10

_BANDS: Final = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (math.inf, "80+"))
_MAX_GROUPS: Final = 50
_NAMES: Final = ("sex", "age", "scanner", "site", "modality", "domain")
_TAGS: Final = frozenset({*TEXTS, *NUMBERED, *NUMBERS})
_LAST: Final = {SEVERAL: 1, UNKNOWN: 2, OTHER: 3}
_COLUMNS: Final = (
    "subgroup", "group", "n_patients", "n_units",
    "metric", "value", "low", "high", "dropped", "reason", "note",
)  # fmt: skip


def find_subgroups(dataset: Any, subgroups: Subgroups | None) -> dict[str, list[str]]:
    """Return the group of each item by name of the subgroup; see :func:`find_groups`."""
    if subgroups is None:
        return {}
    rules: dict[str, GroupRule]
    if isinstance(subgroups, str):
        rules = {subgroups: subgroups}
    elif isinstance(subgroups, Mapping) or hasattr(subgroups, "columns"):
        # a table has a column for each
        rules = {str(name): rule for name, rule in cast("Mapping[str, GroupRule]", subgroups).items()}
    elif isinstance(subgroups, Sequence) and all(isinstance(name, str) for name in subgroups):
        rules = {name: name for name in subgroups}
    else:
        raise DatasetError(
            'subgroups must be a list of names, such as ["sex", "age"], or a mapping, such as '
            f'{{"sex": column}}; found {type(subgroups).__name__}'
        )
    if not rules:
        raise DatasetError('subgroups is empty; give one or more names, such as ["sex", "age"], or None')
    return {name: find_groups(dataset, name, rule) for name, rule in rules.items()}


def find_groups(dataset: Any, name: str, rule: GroupRule) -> list[str]:
    """
    Return the group of each item, "unknown" if it has none; values of the name or rule "age" become bands.

    >>> find_groups(range(4), "age", [17, 80.5, "045Y", None])
    ['0-17', '80+', '40-59', 'unknown']
    """
    values = _find_values(dataset, name, rule)
    is_age = name.lower() == "age" or (isinstance(rule, str) and rule in {"age", "PatientAge"})
    groups = [to_age_band(value) if is_age else _to_group_name(value) for value in values]
    if set(groups) <= {UNKNOWN}:
        raise DatasetError(
            f"no image has a group (subgroup {name!r}); give a value for each item or each patient, such as "
            f"subgroups={{{name!r}: column}}"
        )
    if len(set(groups)) > _MAX_GROUPS:
        raise DatasetError(
            f"subgroup {name!r} has {len(set(groups))} groups; expected at most {_MAX_GROUPS}: merge values "
            "into ranges or types; an identifier is not a group"
        )
    return groups


def to_age_band(age: object) -> str:
    """
    Return the band of an age in years, or as DICOM writes it; "unknown" if it isn't an age.

    >>> to_age_band(39.9), to_age_band("030M"), to_age_band("old")
    ('18-39', '0-17', 'unknown')
    """
    years = parse_age(age)
    return UNKNOWN if years is None else next(band for below, band in _BANDS if years < below)


def score_subgroups(
    groups: Mapping[str, Sequence[str]],
    units: ScoredUnits,
    task: str,
    classes: tuple[str, ...],
    **settings: Any,
) -> pd.DataFrame:
    """
    Score each group of each subgroup; the columns are those of ``Report.subgroups``.

    A unit whose items are in several groups is in a group "several". Averages over classes include those that
    occur in the group. `settings` are those of :func:`medimg.metrics.intervals.estimate_metrics`.
    """
    rows: list[dict[str, Any]] = []
    for name, of_item in groups.items():
        group = _merge_small_groups(_find_unit_groups(units, of_item), units.patient)
        for label in sorted(set(group), key=lambda label: (_LAST.get(label, 0), label)):
            part = units.part(group == label)
            scores = _score_group(part, classes, task, settings)
            rows += [{"subgroup": name, "group": label} | row for row in scores]
    return make_table(rows, list(_COLUMNS)).astype({"n_patients": "Int64", "n_units": "Int64"})


def list_small_subgroups(table: pd.DataFrame) -> list[str]:
    """Return a sentence that names the groups too small to rely on, or none."""
    noted = table[table["note"] != ""]
    names = dict.fromkeys(f"{s} {g}" for s, g in zip(noted["subgroup"], noted["group"], strict=True))
    if not names:
        return []
    return [
        f"Subgroups with fewer than {FEW_PATIENTS} patients, or fewer than {FEW_POSITIVES} of a class, are "
        f"not reliable: {', '.join(names)}."
    ]


def _find_values(dataset: Any, name: str, rule: GroupRule) -> list[Any]:
    if isinstance(rule, str):
        return _find_named_values(dataset, rule)
    if isinstance(rule, Mapping):
        by_key = {patient_key(patient): value for patient, value in rule.items()}
        values = {patient: by_key.get(patient_key(patient)) for patient in set(dataset.patients)}
        return [values[patient] for patient in dataset.patients]
    if callable(rule):
        if dataset.series is None:
            raise DatasetError(
                f"subgroup {name!r} is a function of a series, and only arrays were given; give a value for "
                "each row, or a dataset as images="
            )
        known = {id(series): rule(series) for series in {id(s): s for s in dataset.series}.values()}
        return [known[id(series)] for series in dataset.series]
    size = len(rule) if hasattr(rule, "__len__") else None
    if size != len(dataset):
        raise DatasetError(
            f"subgroup {name!r} has {'no' if size is None else size} values; expected one for each of the "
            f"{len(dataset)} items, a name, a DICOM keyword, a function of a series, or a mapping of patients"
        )
    return list(rule)


def _find_named_values(dataset: Any, rule: str) -> list[Any]:
    if rule == "modality" and dataset.series is not None:
        return list(dataset.modalities)
    if (rule == "domain" and dataset.series is not None) or (rule == "site" and any(dataset.domains)):
        return list(dataset.domains)
    if dataset.series is None:
        raise DatasetError(
            f"subgroup {rule!r} is read from headers, and only arrays were given; give a value for each row, "
            f"subgroups={{{rule!r}: column}}, or a dataset as images="
        )
    # a dataset keeps what its headers gave; others have series
    images = dataset if isinstance(dataset, ItemFacts) else dataset.series
    if rule in {"sex", "PatientSex"}:
        return sexes_of(images)
    if rule in {"age", "PatientAge"}:
        return ages_of(images)
    keyword = {"scanner": "ManufacturerModelName", "site": "InstitutionName"}.get(rule, rule)
    # tags that are withheld say so themselves
    hint = "" if tag_for_keyword(keyword) is not None else did_you_mean(rule, [*_NAMES, *_TAGS])
    if hint:
        raise also(DatasetError, KeyError)(
            f"there is no subgroup {rule!r}; expected {', '.join(_NAMES)}, a DICOM keyword, or values{hint}"
        )
    return [tags[keyword] for tags in read_acquisition_tags(images, [keyword])]


def _to_group_name(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    text = str(value).strip()
    return UNKNOWN if text in {"", "<NA>", "NaT"} else text


def _find_unit_groups(units: ScoredUnits, of_item: Sequence[str]) -> NDArray[np.object_]:
    """Return the group of each unit, (n,); "several" if its items differ."""
    groups: list[set[str]] = [set() for _ in range(len(units))]
    for unit, group in zip(units.item_unit.tolist(), of_item, strict=True):
        if group != UNKNOWN:
            groups[unit].add(group)
    names = [SEVERAL if len(several) > 1 else next(iter(several), UNKNOWN) for several in groups]
    return np.asarray(names, dtype=object)


def _merge_small_groups(group: NDArray[np.object_], patient: NDArray[np.int64]) -> NDArray[np.object_]:
    """Return groups (n,) with those of few patients merged into one."""
    small = [label for label in set(group) if len(np.unique(patient[group == label])) < FEWEST_SHOWN]
    return np.where(np.isin(group.astype(str), small), OTHER, group).astype(object) if small else group


def _score_group(
    part: ScoredUnits, classes: tuple[str, ...], task: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a row for each metric of a group; values of very small groups are hidden."""
    support = Support.count(part.truth, task, classes)
    hidden = part.n_patients < FEWEST_SHOWN
    rows = []
    for name, estimate in estimate_metrics(part, support, **settings).items():
        if "[" in name:
            continue
        shown = Estimate(math.nan, math.nan, math.nan) if hidden else estimate
        rows.append(
            {
                "n_patients": None if hidden else part.n_patients,
                "n_units": None if hidden else len(part),
                "metric": name,
                "value": shown.value,
                "low": shown.low,
                "high": shown.high,
                "dropped": shown.dropped,
                "reason": shown.reason,
                "note": _describe_size(part, classes),
            }
        )
    return rows


def _describe_size(part: ScoredUnits, classes: tuple[str, ...]) -> str:
    if part.n_patients < FEWEST_SHOWN:
        return f"fewer than {FEWEST_SHOWN} patients: not shown"
    few = [
        name
        for k, name in enumerate(classes)
        if len(np.unique(part.patient[part.truth[:, k]])) < FEW_POSITIVES
    ]
    notes = [f"fewer than {FEW_PATIENTS} patients"] if part.n_patients < FEW_PATIENTS else []
    notes += [f"fewer than {FEW_POSITIVES} patients of {', '.join(few)}"] if few else []
    return "; ".join(notes)
