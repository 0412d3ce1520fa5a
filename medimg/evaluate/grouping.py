"""Which group each image is of, by sex, age, scanner, site, any tag, or what the caller says."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.errors import DatasetError

if TYPE_CHECKING:
    from medimg.io.series import Series

__all__ = ["UNKNOWN", "GroupRule", "age_band", "groups_of"]

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
        :func:`medimg.data.tags.tags_of`); a function of a :class:`medimg.Series`; a mapping of patients; or a
        value for each item, such as a column of a table.

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
    from medimg.data.tags import tags_of

    if rule == "modality":
        return list(dataset.modalities)
    if rule == "domain" or (rule == "site" and any(dataset.domains)):
        return list(dataset.domains)
    keyword = _SITE if rule == "site" else _ALIASES.get(rule, rule)
    if keyword in {"PatientSex", "PatientAge"}:
        return _of_people(dataset.series, keyword)
    return [tags[keyword] for tags in tags_of(dataset.series, [keyword])]


def _of_people(several: Sequence[Series], keyword: str) -> list[str]:
    """Sex or age: given out as groups of many only."""
    from medimg.data.tags import first_blob
    from medimg.io.dicom.attributes import code
    from medimg.io.dicom.opening import numbers_of, open_header

    wanted = numbers_of("PatientSex", "PatientAge", "PatientBirthDate", "StudyDate")
    known: dict[int, str] = {}
    for series in several:
        if id(series) not in known:
            header = open_header(first_blob(series), wanted) if series.format == "DICOM" else None
            found = "" if header is None else code(header, keyword)
            if keyword == "PatientSex":
                found = found if found in {"F", "M", "O"} else ""
            elif header is not None and age_band(found) == UNKNOWN:
                found = _age_at_study(header)
            known[id(series)] = found
    return [known[id(series)] for series in several]


def _age_at_study(header: Any) -> str:
    from medimg.io.dicom.attributes import text
    from medimg.io.dicom.dates import DAY, instant

    days = [instant(f"{text(header, keyword)}000000") for keyword in ("PatientBirthDate", "StudyDate")]
    born, studied = days
    if born is None or studied is None or studied < born:
        return ""
    return f"{(studied - born) / DAY / _PER_YEAR['D']:.3f}"
