"""The metrics of groups of patients: by sex, age, scanner, site, or whatever else."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import DatasetError
from medimg.evaluation.report.cautions import FEWEST_SHOWN
from medimg.metrics.bootstrap import Estimate
from medimg.metrics.classification import Support
from medimg.metrics.intervals import estimates

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
    "age_band",
    "few_in_subgroups",
    "groups_of",
    "named_groups",
    "subgroup_table",
]

#: A name, a function of a series, a group for each patient, or one for each item.
GroupRule: TypeAlias = "str | Callable[[Series], object] | Mapping[str, object] | Sequence[object]"

UNKNOWN: Final = "unknown"

_BANDS: Final = ((18, "0-17"), (40, "18-39"), (60, "40-59"), (80, "60-79"), (math.inf, "80+"))
_AGE: Final = re.compile(r"(\d{1,3}(?:\.\d+)?)([YMWD]?)", re.ASCII)
_PER_YEAR: Final = {"Y": 1.0, "": 1.0, "M": 12.0, "W": 52.18, "D": 365.25}
_OLDEST: Final = 130.0
_ALIASES: Final = {"sex": "PatientSex", "age": "PatientAge", "scanner": "ManufacturerModelName"}
_SITE: Final = "InstitutionName"
_MOST: Final = 50


def groups_of(dataset: Any, name: str, rule: GroupRule) -> list[str]:
    """
    Say which group each item of a data set is of.

    Parameters
    ----------
    dataset : ImageDataset
        The images.
    name : str
        What the groups differ in; values named "age" become bands.
    rule : str, callable, mapping or sequence
        "sex", "age", "scanner", "site", "modality", "domain", or a DICOM keyword (see
        :func:`medimg.data.acquisition_tags.read_acquisition_tags`); a function of a :class:`medimg.Series`; a
        mapping of patients; or a value for each item, such as a column of a table.

    Returns
    -------
    list of str
        "unknown" where nothing is said.

    Raises
    ------
    DatasetError
        If the rule is none of these, no item has a group, or there are more than 50.

    Examples
    --------
    >>> groups_of(range(4), "age", [17, 80.5, "045Y", None])
    ['0-17', '80+', '40-59', 'unknown']
    """
    values = _values(dataset, name, rule)
    is_age = name.lower() == "age" or (isinstance(rule, str) and rule in {"age", "PatientAge"})
    found = [age_band(value) if is_age else _shown(value) for value in values]
    if set(found) <= {UNKNOWN}:
        raise DatasetError(
            f"No image says its group (subgroup {name!r}). Give a value for each item or each patient, such "
            f"as subgroups={{{name!r}: column}}."
        )
    if len(set(found)) > _MOST:
        raise DatasetError(
            f"Subgroup {name!r} has {len(set(found))} groups; expected at most {_MOST}. Put values together "
            "in ranges or kinds; an identifier is no group."
        )
    return found


def age_band(age: object) -> str:
    """
    Give the band of an age.

    Parameters
    ----------
    age : number or str
        In years, or as DICOM writes it (PS3.5 6.2, AS): "045Y", "006M", "003W", "012D".

    Returns
    -------
    str
        "0-17", "18-39", "40-59", "60-79", "80+", or "unknown" where it can't be an age.

    Examples
    --------
    >>> age_band(39.9), age_band("030M"), age_band("old")
    ('18-39', '0-17', 'unknown')
    """
    match = _AGE.fullmatch(str(age).strip().upper())
    years = float(match[1]) / _PER_YEAR[match[2]] if match else math.inf
    return next(band for below, band in _BANDS if years < below) if years < _OLDEST else UNKNOWN


def _shown(value: object) -> str:
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, float | np.floating):
        return f"{value:g}"
    text = str(value).strip()
    return UNKNOWN if text in {"", "<NA>", "NaT"} else text


def _values(dataset: Any, name: str, rule: GroupRule) -> list[Any]:
    if isinstance(rule, str):
        return _by_name(dataset, rule)
    if isinstance(rule, Mapping):
        return [rule.get(patient) for patient in dataset.patients]
    if callable(rule):
        known = {id(series): rule(series) for series in {id(s): s for s in dataset.series}.values()}
        return [known[id(series)] for series in dataset.series]
    size = len(rule) if hasattr(rule, "__len__") else None
    if size != len(dataset):
        raise DatasetError(
            f"Subgroup {name!r} has {'no' if size is None else size} values; expected one for each of the "
            f"{len(dataset)} items, a name, a DICOM keyword, a function of a series, or a mapping of "
            "patients."
        )
    return list(rule)


def _by_name(dataset: Any, rule: str) -> list[Any]:
    # without pictures and files there is nothing to import for
    from medimg.data.acquisition_tags import read_acquisition_tags

    if rule == "modality":
        return list(dataset.modalities)
    if rule == "domain" or (rule == "site" and any(dataset.domains)):
        return list(dataset.domains)
    keyword = _SITE if rule == "site" else _ALIASES.get(rule, rule)
    if keyword in {"PatientSex", "PatientAge"}:
        return _of_people(dataset.series, keyword)
    return [tags[keyword] for tags in read_acquisition_tags(dataset.series, [keyword])]


def _of_people(several: Sequence[Series], keyword: str) -> list[str]:
    """Sex or age: given out as groups of many only."""
    from medimg.data.acquisition_tags import find_first_file
    from medimg.io.dicom.header.attributes import get_code
    from medimg.io.dicom.header.open import open_header, to_tag_numbers

    wanted = to_tag_numbers("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate")
    known: dict[int, str] = {}
    for series in several:
        if id(series) not in known:
            header = open_header(find_first_file(series), wanted) if series.format == "DICOM" else None
            found = "" if header is None else get_code(header, keyword)
            if keyword == "PatientSex":
                found = found if found in {"F", "M", "O"} else ""
            elif header is not None and age_band(found) == UNKNOWN:
                found = _age_at_study(header)
            known[id(series)] = found
    return [known[id(series)] for series in several]


def _age_at_study(header: Any) -> str:
    from medimg.io.dicom.header.attributes import get_text
    from medimg.io.dicom.header.datetimes import SECONDS_PER_DAY, parse_datetime

    days = [
        parse_datetime(f"{get_text(header, keyword)}000000") for keyword in ("PatientBirthDate", "StudyDate")
    ]
    born, studied = days
    if born is None or studied is None or studied < born:
        return ""
    return f"{(studied - born) / SECONDS_PER_DAY / _PER_YEAR['D']:.3f}"


#: Names of rules, or rules by name.
Subgroups: TypeAlias = "str | Sequence[str] | Mapping[str, GroupRule]"
FEW_PATIENTS: Final = 30
FEW_POSITIVES: Final = 10
"""Below these, a note says so."""

OTHER: Final = f"other (fewer than {FEWEST_SHOWN} patients each)"
SEVERAL: Final = "several"
_LAST: Final = {SEVERAL: 1, UNKNOWN: 2, OTHER: 3}
_COLUMNS: Final = (
    "subgroup",
    "group",
    "n_patients",
    "n_units",
    "metric",
    "value",
    "low",
    "high",
    "dropped",
    "note",
)


def named_groups(dataset: Any, subgroups: Subgroups | None) -> dict[str, list[str]]:
    """
    Say which group of each subgroup each item is of.

    Parameters
    ----------
    dataset : ImageDataset
        The items.
    subgroups : str, sequence of str, mapping, or None
        See :func:`medimg.evaluation.subgroups.groups_of`.

    Returns
    -------
    dict of str to list of str
        By name of the subgroup.

    Raises
    ------
    DatasetError
        See :func:`medimg.evaluation.subgroups.groups_of`.
    """
    rules = {} if subgroups is None else _rules(subgroups)
    return {name: groups_of(dataset, name, rule) for name, rule in rules.items()}


def subgroup_table(
    groups: Mapping[str, Sequence[str]],
    units: ScoredUnits,
    task: str,
    classes: tuple[str, ...],
    **settings: Any,
) -> pd.DataFrame:
    """
    Score each group of each subgroup.

    Parameters
    ----------
    groups : mapping of str to sequence of str
        See :func:`named_groups`.
    units : ScoredUnits
        What is scored. A unit whose items are of several groups is in a group "several".
    task : {"multiclass", "multilabel"}
        The task.
    classes : tuple of str
        Names of the classes.
    **settings
        Of :func:`medimg.metrics.intervals.estimates`.

    Returns
    -------
    pandas.DataFrame
        See ``Report.subgroups``. Averages over classes run over those that occur in the group.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for name, of_item in groups.items():
        group = _groups_of_units(units, np.asarray(of_item, dtype=object))
        group = _without_small(group, units.patient)
        for label in sorted(set(group), key=lambda label: (_LAST.get(label, 0), label)):
            part = units.part(group == label)
            rows += [{"subgroup": name, "group": label} | row for row in _rows(part, classes, task, settings)]
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype({"n_patients": "Int64", "n_units": "Int64"})


def few_in_subgroups(table: pd.DataFrame) -> list[str]:
    """
    Say which groups are too small to rely on.

    Parameters
    ----------
    table : pandas.DataFrame
        See :func:`subgroup_table`.

    Returns
    -------
    list of str
        One sentence, or none.
    """
    noted = table[table["note"] != ""]
    names = dict.fromkeys(f"{s} {g}" for s, g in zip(noted["subgroup"], noted["group"], strict=True))
    if not names:
        return []
    return [
        f"Subgroups with fewer than {FEW_PATIENTS} patients, or fewer than {FEW_POSITIVES} of a class, can't "
        f"be relied on: {', '.join(names)}."
    ]


def _rules(subgroups: Subgroups) -> dict[str, GroupRule]:
    if isinstance(subgroups, str):
        return {subgroups: subgroups}
    if isinstance(subgroups, Mapping):
        rules = {str(name): rule for name, rule in subgroups.items()}
    elif isinstance(subgroups, Sequence) and all(isinstance(name, str) for name in subgroups):
        rules = {name: name for name in subgroups}
    else:
        raise DatasetError(
            'subgroups is a list of names, such as ["sex", "age"], or a mapping, such as {"sex": column}; '
            f"found {type(subgroups).__name__}."
        )
    if not rules:
        raise DatasetError('subgroups is empty; name one or more, such as ["sex", "age"], or pass None.')
    return rules


def _groups_of_units(units: ScoredUnits, of_item: NDArray[np.object_]) -> NDArray[np.object_]:
    found: list[set[str]] = [set() for _ in range(len(units))]
    for unit, group in zip(units.item_unit.tolist(), of_item.tolist(), strict=True):
        if group != UNKNOWN:
            found[unit].add(group)
    names = [SEVERAL if len(groups) > 1 else next(iter(groups), UNKNOWN) for groups in found]
    return np.asarray(names, dtype=object)


def _without_small(group: NDArray[np.object_], patient: NDArray[np.int64]) -> NDArray[np.object_]:
    """Put groups of few patients together."""
    small = [label for label in set(group) if len(np.unique(patient[group == label])) < FEWEST_SHOWN]
    return np.where(np.isin(group.astype(str), small), OTHER, group).astype(object) if small else group


def _rows(
    part: ScoredUnits, classes: tuple[str, ...], task: str, settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    support = Support.of(part.truth, task, classes)
    found = estimates(part, support, **settings)
    hidden = part.n_patients < FEWEST_SHOWN
    sizes = {"n_patients": None if hidden else part.n_patients, "n_units": None if hidden else len(part)}
    nothing = Estimate(float("nan"), float("nan"), float("nan"))
    note = _note(part, classes)
    return [
        sizes | {"metric": name} | _cells(nothing if hidden else estimate) | {"note": note}
        for name, estimate in found.items()
        if "[" not in name
    ]


def _cells(estimate: Estimate) -> dict[str, Any]:
    return {name: getattr(estimate, name) for name in ("value", "low", "high", "dropped")}


def _note(part: ScoredUnits, classes: tuple[str, ...]) -> str:
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
