"""Search for series on a server (QIDO-RS), page by page."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from datetime import date, datetime
from fnmatch import translate
from itertools import product
from typing import TYPE_CHECKING, Any, Final

from medimg._validation import did_you_mean
from medimg.core.read_report import Skipped
from medimg.errors import MedimgError, MedimgWarning, ReadError, also
from medimg.io.dicomweb.dicom_json import get_json_value, parse_json
from medimg.io.dicomweb.remote_series import ListedSeries
from medimg.io.dicomweb.retrieval import JSON
from medimg.io.dicomweb.service_url import ResourceUrl, check_uid
from medimg.io.tag_names import KEYWORDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from medimg.io.dicomweb.dicom_json import JsonObject
    from medimg.io.dicomweb.retrieval import Retriever

__all__ = ["search_series"]

#: Columns of an index that servers can search by, and shorter names, as in :meth:`medimg.SeriesIndex.where`.
_COLUMNS: Final = {
    "body_part": "BodyPartExamined",
    "description": "SeriesDescription",
    "modality": "Modality",
    "patient_id": "PatientID",
    "study_uid": "StudyInstanceUID",
    "uid": "SeriesInstanceUID",
}
#: Attributes that a table of the result shows.
_FIELDS: Final = ("Modality", "SeriesDescription", "PatientID", "NumberOfSeriesRelatedInstances")
_UIDS: Final = frozenset({"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"})
_PAGE: Final = 500
_MAX_PAGE: Final = 2**26
_MAX_RESULTS: Final = 100_000
_MAX_QUERIES: Final = 100
_STUDY, _SERIES = "0020000D", "0020000E"
_ISO_DATE: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_RANGE: Final = re.compile(r"([0-9.:+]*)-([0-9.:+]*)")


def search_series(
    retriever: Retriever, base: str, conditions: Mapping[str, object], limit: int | None
) -> tuple[list[ListedSeries], list[Skipped]]:
    """Return the series that meet all conditions, at most `limit`, and those that have no valid UIDs."""
    wanted = [_parse_condition(name, value) for name, value in conditions.items()]
    queries = list(product(*(values for _, values in wanted)))
    if len(queries) > _MAX_QUERIES:
        raise ReadError(
            f"these values make {len(queries)} searches; at most {_MAX_QUERIES} are made: search for fewer "
            "values at a time"
        )
    most = _MAX_RESULTS if limit is None else min(limit, _MAX_RESULTS)
    found: dict[str, ListedSeries] = {}
    skipped: list[Skipped] = []
    for values in queries:
        matched = {keyword: value for (keyword, _), value in zip(wanted, values, strict=True)}
        for item in _search(retriever, matched, most):
            try:
                series = _list(retriever, base, item)
            except ReadError as error:
                skipped.append(Skipped(base, f"a series found by the search can't be addressed: {error}"))
                continue
            found.setdefault(series.path, series)
    if limit is None and len(found) >= _MAX_RESULTS:
        raise ReadError(f"the search finds {_MAX_RESULTS} series or more; narrow it, or pass limit=")
    return sorted(found.values(), key=lambda series: series.path)[:most], skipped


def _parse_condition(name: str, value: object) -> tuple[str, list[str]]:
    """Return the keyword of a condition, and its possible values; several UIDs are one value."""
    keyword = _COLUMNS.get(name, name)
    if keyword not in KEYWORDS:
        raise also(MedimgError, KeyError)(
            f"servers can't be searched by {name!r}; expected {', '.join(_COLUMNS)}, or a DICOM keyword such "
            f"as StudyDate{did_you_mean(name, [*_COLUMNS, *KEYWORDS])}"
        )
    several = value if isinstance(value, Iterable) and not isinstance(value, str | bytes) else (value,)
    texts = [_to_text(name, one) for one in several]
    # servers answer it with nothing, or with an error
    if keyword.endswith("Date") and any(map(_ISO_DATE.search, texts)):
        raise ReadError(
            f"{name} must be a date as YYYYMMDD, a range as YYYYMMDD-YYYYMMDD, or a datetime.date; found "
            "YYYY-MM-DD"
        )
    if not texts:
        raise ReadError(f"{name} has no value to search for")
    if keyword in _UIDS:
        return keyword, [",".join(check_uid(text, name) for text in texts)]
    return keyword, texts


def _to_text(name: str, value: object) -> str:
    if isinstance(value, datetime):
        return value.strftime("%Y%m%d%H%M%S")
    if isinstance(value, date):
        return value.strftime("%Y%m%d")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value == "":
        raise ReadError(
            f"{name} must be a text, number or date to search for, or a list of these; found a "
            f"{type(value).__name__}"
        )
    return str(value)


def _search(retriever: Retriever, matched: Mapping[str, str], most: int) -> list[JsonObject]:
    """Return what a server finds, and what it was asked for alone."""
    study = matched.get("StudyInstanceUID", "")
    is_one_study = bool(study) and "," not in study
    path = f"/studies/{study}/series" if is_one_study else "/series"
    asked = {k: v for k, v in matched.items() if not (is_one_study and k == "StudyInstanceUID")}
    fields = dict.fromkeys((*_FIELDS, *asked))
    query = [*asked.items(), *(("includefield", f"{KEYWORDS[k]:08X}") for k in fields)]
    found: dict[tuple[str, str], JsonObject] = {}
    while len(found) < most:
        page = [*query, ("limit", str(min(_PAGE, most - len(found)))), ("offset", str(len(found)))]
        answer = retriever.transport.get(path, JSON, most=_MAX_PAGE, query=page, compressed=True)
        items = parse_json(answer.body, f"the result of {retriever.transport.host}")
        before = len(found)
        for item in items:
            found.setdefault((get_json_value(item, _STUDY), get_json_value(item, _SERIES)), item)
        # servers that know no offset give the first page again
        if len(found) == before:
            break
    return _drop_others(list(found.values()), asked, retriever.transport.host)


def _drop_others(items: list[JsonObject], asked: Mapping[str, str], host: str) -> list[JsonObject]:
    """Return results that meet the conditions: servers ignore those that they don't know (PS3.18 8.3.4)."""
    kept = [item for item in items if all(_may_match(item, *one) for one in asked.items())]
    if len(kept) < len(items):
        warnings.warn(
            f"{host} also found {len(items) - len(kept)} series that do not meet the conditions, which are "
            "left out: it may not search by all of them",
            MedimgWarning,
            stacklevel=4,
        )
    return kept


def _may_match(item: JsonObject, keyword: str, wanted: str) -> bool:
    """Whether a result has a value like the one wanted, or none, as the server need not give it."""
    element = item.get(f"{KEYWORDS[keyword]:08X}")
    values: Any = element.get("Value") if isinstance(element, dict) else None
    if not isinstance(values, list) or not values:
        return True
    texts = [v.get("Alphabetic", "") if isinstance(v, dict) else v for v in values]
    return any(_is_like(str(text).strip(), wanted, keyword) for text in texts)


def _is_like(text: str, wanted: str, keyword: str) -> bool:
    if keyword in _UIDS:
        return text in wanted.split(",")
    dated = _RANGE.fullmatch(wanted) if keyword.endswith(("Date", "Time")) else None
    if dated:
        # a shorter time is the start of what it stands for
        first, last = dated.groups()
        return (not first or text[: len(first)] >= first) and (not last or text[: len(last)] <= last)
    if keyword.endswith(("Date", "Time")):
        return text.startswith(wanted)
    if _is_same_number(text, wanted):
        return True
    pattern = translate(wanted.strip().casefold().replace("[", "[[]"))
    if re.fullmatch(pattern, text.casefold()):
        return True
    # names match by parts, and without accents, by rules of the server's own
    return keyword.endswith("Name")


def _is_same_number(text: str, wanted: str) -> bool:
    try:
        return float(text) == float(wanted)
    except ValueError:
        return False


def _list(retriever: Retriever, base: str, item: JsonObject) -> ListedSeries:
    study, series = get_json_value(item, _STUDY), get_json_value(item, _SERIES)
    where = ResourceUrl(base, check_uid(study, "Study Instance UID")).in_series(series)
    return ListedSeries(retriever, where, item)
