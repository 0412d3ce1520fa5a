"""SeriesIndex: the series of a scan, selected and as a table."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index as as_index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias, overload

from pydicom.datadict import dictionary_has_tag, dictionary_VR

from medimg._public import set_module
from medimg._tables import make_table
from medimg._validation import did_you_mean
from medimg.core.parallel import ordered_map
from medimg.core.progress import Progress, progress_bar
from medimg.core.read_report import Skipped
from medimg.errors import MedimgError, MedimgWarning, SeriesError, also
from medimg.io.series import HTML_COLUMNS, Series, list_facts, read_series_tags
from medimg.io.tag_names import KEYWORDS, TagName, TagValues, parse_tag_names

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd

    from medimg.io.tag_names import AttributeName

__all__ = ["COLUMNS", "SeriesIndex", "SkippedFiles", "check_columns", "list_rows"]

#: What selects several series; see :class:`SeriesIndex`.
Selection: TypeAlias = (
    "slice | Sequence[int] | Sequence[str] | npt.NDArray[Any] | pd.Series[Any] | pd.Index[Any]"
)

COLUMNS: Final = (
    "uid", "modality", "description", "channels", "slices", "rows", "columns", "slice_spacing",
    "row_spacing", "column_spacing", "files", "format", "path", "patient_id", "study_uid",
)  # fmt: skip
#: Columns of numbers, which a search of a server does not give; the others are texts.
_NUMBERS: Final = frozenset(COLUMNS[3:11])
#: Shorter names of attributes for :meth:`SeriesIndex.where`.
_ALIASES: Final = {"body_part": "BodyPartExamined"}
_NUMERIC: Final = frozenset({"DS", "FD", "FL", "IS", "SL", "SS", "SV", "UL", "US", "UV"})
#: Value representations of bytes and sequences.
_NO_TEXT: Final = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UN"})
_MOST_ROWS: Final = 20
_THREADS: Final = 8


@set_module("medimg")
class SkippedFiles(tuple[Skipped, ...]):
    """Files that were skipped, a tuple of objects with ``path`` and ``reason``."""

    __slots__ = ()

    def to_pandas(self) -> pd.DataFrame:
        """
        Return a table with one row for each file.

        Returns
        -------
        pandas.DataFrame
            Columns ``path`` and ``reason``.
        """
        return make_table([(s.path, s.reason) for s in self], ["path", "reason"])

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import rows_html

        # folders can be named after patients
        rows = [(Path(s.path).name, s.reason.replace(s.path, Path(s.path).name)) for s in self[:_MOST_ROWS]]
        hidden = len(self) - len(rows)
        notes = [f"and {hidden} more; to_pandas() has all of them"] if hidden else []
        return rows_html(f"{len(self)} files skipped", ("file", "reason"), rows, notes=notes)


_NONE_SKIPPED: Final = SkippedFiles()


@set_module("medimg")
@dataclass(frozen=True, slots=True)
class SeriesIndex(Sequence[Series]):
    """
    Series found by :func:`medimg.scan`, and the files that were skipped.

    ``index[3]`` and ``index["1.2.840…"]`` give one series, by its position or UID. A slice, a mask (a list,
    array or pandas Series of bool, one for each series), and a list of positions or UIDs give a
    ``SeriesIndex`` with the same skipped files. A mask that is a pandas Series is matched by its own index,
    which has to be that of :meth:`to_pandas`, or UIDs, in any order.

    Attributes
    ----------
    series : tuple of Series
        Series, sorted by path.
    skipped : SkippedFiles
        Files that are not images or are damaged, with the reason; ``skipped.to_pandas()`` is a table.

    Examples
    --------
    >>> table = index.to_pandas(tags=["SliceThickness"])  # doctest: +SKIP
    >>> index[table.SliceThickness <= 2]  # doctest: +SKIP
    SeriesIndex(3 series, 2 files skipped)
    """

    series: tuple[Series, ...]
    skipped: SkippedFiles = _NONE_SKIPPED

    def __post_init__(self) -> None:
        object.__setattr__(self, "series", tuple(self.series))
        object.__setattr__(self, "skipped", SkippedFiles(self.skipped))

    @overload
    # a str is a sequence of str, too
    def __getitem__(self, index: int | np.integer[Any] | str) -> Series: ...  # type: ignore[overload-overlap]  # a str is a sequence, too
    @overload
    def __getitem__(self, index: Selection) -> SeriesIndex: ...
    def __getitem__(self, index: int | np.integer[Any] | str | Selection) -> Series | SeriesIndex:
        if isinstance(index, str):
            return self._find_uid(index)
        if isinstance(index, slice):
            return SeriesIndex(self.series[index], self.skipped)
        labels, chosen = _get_labels(index), _to_python(index)
        if isinstance(chosen, Iterable):
            return SeriesIndex(tuple(self._select(list(chosen), labels)), self.skipped)
        return self._get(chosen)

    def __contains__(self, item: object) -> bool:
        uid = item if isinstance(item, str) else None
        return any(item is series or series.uid == uid for series in self.series)

    def __len__(self) -> int:
        return len(self.series)

    def __repr__(self) -> str:
        return f"SeriesIndex({len(self.series)} series, {len(self.skipped)} files skipped)"

    def _repr_html_(self) -> str:
        from medimg.plotting.html_repr import format_size, rows_html

        shown = self.series[:_MOST_ROWS]
        rows = [(n, *list_facts(series, format_size)) for n, series in enumerate(shown)]
        hidden = len(self.series) - len(shown)
        notes = [f"and {hidden} more; to_pandas() has all of them"] if hidden else []
        return rows_html(repr(self), ("", *HTML_COLUMNS), rows, notes=notes)

    def where(self, /, **conditions: object) -> SeriesIndex:
        """
        Return the series that meet all conditions.

        Parameters
        ----------
        **conditions
            Value, or several possible ones in a list, tuple, set or range, of a column of :meth:`to_pandas`,
            such as ``modality``, ``description`` or ``slices``; of ``body_part`` (Body Part Examined); or of
            a DICOM keyword, which is read from the first file of each series. Texts are compared without
            regard to case; of an attribute with several values, one has to be equal; None means that it is
            absent or blank.

        Returns
        -------
        SeriesIndex
            Series, possibly none, and the skipped files of the whole index.

        Raises
        ------
        MedimgError
            If there is no such column or keyword; it is a ``KeyError``, too. If a value is of another type
            than the column, such as the text "120" for numbers; it is a ``TypeError``, too.
        ReadError
            If a file can no longer be read, or has changed since the scan.

        Warns
        -----
        MedimgWarning
            If an attribute of some series is present but invalid: they meet no condition on it.

        Examples
        --------
        >>> index.where(modality="CT", body_part=["CHEST", "LUNG"])  # doctest: +SKIP
        SeriesIndex(12 series, 2 files skipped)
        """
        check_columns(conditions, (*COLUMNS, *_ALIASES))
        values = {name: _list_values(name, wanted) for name, wanted in conditions.items()}
        columns = [(name, wanted) for name, wanted in values.items() if name in COLUMNS]
        others = [(_ALIASES.get(n, n), wanted) for n, wanted in values.items() if n not in COLUMNS]
        reads = any(name in _NUMBERS for name, _ in columns)
        names = parse_tag_names(name for name, _ in others)
        for name, wanted in columns:
            _check_type(name, wanted, "numbers" if name in _NUMBERS else "texts")
        for tag, (name, wanted) in zip(names, others, strict=True):
            _check_type(name, wanted, _find_type(tag))
        found = [series for series in self.series if _meets(_to_row(series, reads=reads), columns)]
        if others:
            read = _read_tags(found, names, "auto")
            found = [
                s for s, values in zip(found, read, strict=True) if _meets(_without_invalid(values), others)
            ]
        return SeriesIndex(tuple(found), self.skipped)

    def to_pandas(self, tags: Iterable[AttributeName] = (), *, progress: Progress = "auto") -> pd.DataFrame:
        """
        Return a table with one row for each series.

        The column ``patient_id`` identifies patients: store the table where the images are stored.

        Parameters
        ----------
        tags : list of str, int or tuple
            DICOM attributes for further columns, named as for :meth:`Series.tags`; they are read from the
            first file of each series. Those that identify a patient are in the table only if named here.
        progress : "auto" or bool
            Whether to show a progress bar while files are read. "auto": in a terminal or a notebook, after
            1 s.

        Returns
        -------
        pandas.DataFrame
            Columns ``uid``, ``modality``, ``description``, ``channels``, ``slices``, ``rows``, ``columns``,
            ``slice_spacing``, ``row_spacing``, ``column_spacing``, ``files``, ``format``, ``path``,
            ``patient_id`` and ``study_uid``; then those of `tags`, with a missing value where an attribute is
            absent, blank or invalid, or the series is not DICOM.

        Raises
        ------
        MedimgError
            If there is no such attribute; it is a ``KeyError``, too.
        ReadError
            If a file can no longer be read, or has changed since the scan.

        Warns
        -----
        MedimgWarning
            If an attribute of some series is present but invalid.
        """
        names = parse_tag_names([tags] if isinstance(tags, str | int) else tags)
        rows = list_rows(self, names, progress)
        return make_table(rows, list(dict.fromkeys([*COLUMNS, *(name.label for name in names)])))

    def _find_uid(self, uid: str) -> Series:
        for series in self.series:
            if series.uid == uid:
                return series
        raise also(SeriesError, KeyError)(
            f"no series {uid!r} among {len(self)}; index.to_pandas().uid has the UIDs of all"
            f"{did_you_mean(uid, [series.uid for series in self.series])}"
        )

    def _get(self, position: object) -> Series:
        number = _check_position(position)
        if not -len(self) <= number < len(self):
            raise also(SeriesError, IndexError)(f"there is no series {number} among {len(self)}")
        return self.series[number]

    def _select(self, chosen: list[Any], labels: list[Any] | None) -> list[Series]:
        """Return the series of a mask, or of a list of positions or UIDs."""
        if any(map(_is_bool, chosen)) and any(map(_is_missing, chosen)):
            raise SeriesError(
                "the mask has missing values; expected True or False for each series: use mask.fillna(False)"
            )
        if chosen and all(map(_is_bool, chosen)):
            return [
                series for series, keep in zip(self.series, self._align(chosen, labels), strict=True) if keep
            ]
        if all(isinstance(one, str) for one in chosen):
            return [self._find_uid(uid) for uid in chosen]
        return [self._get(one) for one in chosen]

    def _align(self, mask: list[Any], labels: list[Any] | None) -> list[bool]:
        """Return a mask in the order of the series, to which the labels of a pandas Series belong."""
        if len(mask) != len(self):
            raise also(SeriesError, IndexError)(
                f"the mask has {len(mask)} values, but there are {len(self)} series; make it from the table "
                "of this index"
            )
        if labels is None:
            return [bool(keep) for keep in mask]
        by_label = dict(zip(labels, mask, strict=True))
        for known in (range(len(self)), [series.uid for series in self.series]):
            if by_label.keys() == set(known) and len(labels) == len(by_label):
                return [bool(by_label[label]) for label in known]
        raise also(SeriesError, KeyError)(
            "the index of the pandas Series is neither that of index.to_pandas(), nor UIDs; pass "
            "mask.to_numpy() if its values are in the order of the series"
        )


def _check_position(index: object) -> int:
    try:
        if _is_bool(index):
            raise TypeError
        return as_index(index)  # type: ignore[arg-type]  # it refuses what is no integer
    except TypeError:
        raise also(SeriesError, TypeError)(
            f"a series can't be selected by an object of type {type(index).__name__}; expected its position "
            "or UID, a slice, a mask with True or False for each series, or a list of positions or UIDs"
        ) from None


def _is_bool(value: object) -> bool:
    # numpy's own is no subclass
    return isinstance(value, bool) or type(value).__name__ in ("bool", "bool_")


def _is_missing(value: object) -> bool:
    return (
        value is None or type(value).__name__ == "NAType" or (isinstance(value, float) and math.isnan(value))
    )


def _to_python(selection: Any) -> Any:
    """Return arrays, tensors and columns as lists or numbers; SeriesError for what has no order."""
    if isinstance(selection, Mapping | bytes) or hasattr(selection, "columns"):
        what = (
            "a table; pass one of its columns, such as table.KVP > 100"
            if hasattr(selection, "columns")
            else (f"an object of type {type(selection).__name__}; expected positions, UIDs or a mask")
        )
        raise also(SeriesError, TypeError)(f"series can't be selected by {what}")
    return selection.tolist() if hasattr(selection, "tolist") else selection


def _get_labels(selection: object) -> list[Any] | None:
    """Return the index of a pandas Series; None for anything else."""
    is_pandas = hasattr(selection, "to_numpy") and hasattr(selection, "index")
    return list(selection.index) if is_pandas else None  # type: ignore[attr-defined]  # of pandas


def list_rows(index: SeriesIndex, names: Sequence[TagName], progress: Progress) -> list[dict[str, Any]]:
    """Return the rows of :meth:`SeriesIndex.to_pandas` as dictionaries."""
    rows = [_to_row(series) for series in index]
    if not names:
        return rows
    read = _read_tags(index.series, names, progress)
    return [{**row, **found.values} for row, found in zip(rows, read, strict=True)]


def _read_tags(several: Sequence[Series], names: Sequence[TagName], progress: Progress) -> list[TagValues]:
    """Return attributes of each series; warn of invalid ones."""
    read = ordered_map(lambda series: read_series_tags(series, names), several, _THREADS)
    found = list(progress_bar(read, desc="headers", unit="series", progress=progress, total=len(several)))
    counts = Counter(label for one in found for label in one.invalid)
    for label, count in counts.items():
        warnings.warn(
            f"{label} is present but invalid in {count} of {len(several)} series; it is not used",
            MedimgWarning,
            stacklevel=4,
        )
    return found


def check_columns(names: Iterable[str], known: Sequence[str]) -> None:
    """Raise a MedimgError for a name that is neither a column nor a DICOM attribute."""
    for name in names:
        if name in known:
            continue
        try:
            parse_tag_names([name])
        except KeyError:
            raise also(MedimgError, KeyError)(
                f"there is no column or DICOM attribute {name!r}; expected one of {', '.join(known)}, or a "
                f"keyword such as RepetitionTime{did_you_mean(name, [*known, *KEYWORDS])}"
            ) from None


def _without_invalid(found: TagValues) -> dict[str, Any]:
    """Return values, with an object that equals nothing for invalid ones, which are not absent."""
    return {**found.values, **{label: object() for label in found.invalid}}


def _meets(values: Mapping[str, object], conditions: Sequence[tuple[str, tuple[object, ...]]]) -> bool:
    return all(_is_one_of(values[name], wanted) for name, wanted in conditions)


def _is_one_of(value: object, wanted: tuple[object, ...]) -> bool:
    """Whether a value, or one of several, is one of those wanted."""
    found = [_normalize(one) for one in (value if isinstance(value, tuple) else (value,))]
    return any(_normalize(one) in found for one in wanted)


def _find_type(tag: TagName) -> str | None:
    """Return what the values of an attribute are: "numbers", "texts", or None for others and private ones."""
    if tag.creator or not dictionary_has_tag(tag.number):
        return None
    several = set(dictionary_VR(tag.number).split(" or "))
    if several <= _NUMERIC:
        return "numbers"
    return None if several & _NO_TEXT or several & _NUMERIC else "texts"


def _check_type(name: str, wanted: Iterable[object], expected: str | None) -> None:
    """Raise a MedimgError for values that can equal none of a column, because they are of another type."""
    for value in wanted:
        if value is None or expected is None:
            continue
        if isinstance(value, float) and math.isnan(value):
            raise also(MedimgError, TypeError)(
                f"{name} has {expected}, and none equals NaN: pass None for what is absent or blank"
            )
        is_text = isinstance(value, str)
        if is_text if expected == "texts" else not is_text and _is_number(value):
            continue
        hint = "the number itself, such as 120" if expected == "numbers" else "text in quotes"
        raise also(MedimgError, TypeError)(
            f"{name} has {expected}; found a value of type {type(value).__name__}, which equals none: "
            f"pass {hint}"
        )


def _is_number(value: object) -> bool:
    # a scalar of numpy or torch, too
    return hasattr(value, "__float__") and not _is_bool(value)


def _list_values(name: str, wanted: object) -> tuple[object, ...]:
    """Return one value, or several, of a condition."""
    if callable(wanted):
        raise also(MedimgError, TypeError)(
            f"where compares {name} with values; found a function: use index[mask], with a mask of "
            "index.to_pandas(tags=[…])"
        )
    if isinstance(wanted, Iterable) and not isinstance(wanted, str | bytes):
        return tuple(wanted)
    return (wanted,)


def _normalize(value: object) -> object:
    return (value.strip().casefold() or None) if isinstance(value, str) else value


def _to_row(series: Series, *, reads: bool = False) -> dict[str, Any]:
    """Return the row of a series; of one that a server lists, metadata are read only if `reads`."""
    if series.is_listed and not reads:
        known = {name: getattr(series, name) for name in COLUMNS if name not in _NUMBERS}
        known["files"] = getattr(series, "instance_count", None)
        return {name: known.get(name) for name in COLUMNS}
    values = (
        series.uid, series.modality, series.description, *series.shape, *series.spacing, len(series.files),
        series.format, series.path, series.patient_id, series.study_uid,
    )  # fmt: skip
    return dict(zip(COLUMNS, values, strict=True))
