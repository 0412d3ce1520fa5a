"""Tables and folders to labeled series."""

from __future__ import annotations

import io
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeAlias, cast
from urllib.parse import quote

import numpy as np

from medimg._validation import check_path, did_you_mean
from medimg.core.parallel import ordered_map
from medimg.core.progress import Progress, progress_bar
from medimg.data.identifiers import FilePatients, add_file_patients
from medimg.data.patients import check_exact, normalize_number, normalize_patient
from medimg.errors import DatasetError, MedimgError, also
from medimg.io.detect import FORMATS
from medimg.io.dicomweb.service_url import is_dicomweb_url
from medimg.io.files.object_storage import is_remote_url, is_web_url, name_url, redact_url, refuse_url_as_path
from medimg.io.files.regular_file import explain_irregular
from medimg.io.files.remote_folder import list_subfolders, open_blob
from medimg.io.own_results import leave_out_results
from medimg.io.read import find_series
from medimg.io.scan import scan
from medimg.io.sources import REMOTE_WORKERS, name_source

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from medimg.core.read_report import Skipped
    from medimg.io.series import Series
    from medimg.io.series_index import SeriesIndex

__all__ = [
    "LabeledSeries",
    "PatientRule",
    "find_table_folder",
    "is_one_column",
    "label_folders",
    "label_rows",
    "list_unlabeled",
    "read_table",
]

#: Patient by path: a regular expression with one group, or a function of the path.
PatientRule: TypeAlias = str | Callable[[Path], str] | None


#: File names as images have.
_MAX_TABLE: Final = 2**31
_FILE_NAME: Final = re.compile(
    r"\.(dcm|dicom|ima|nii|hdr|img|nrrd|nhdr|mha|mhd|png|jpe?g|tiff?|bmp|webp|gif|zip)(\.gz)?$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class LabeledSeries:
    """One series with its labels, if it has any; patients are normalized, and stay out of the repr."""

    series: Series
    label: str | tuple[float, ...] | None
    patient: str = field(repr=False)
    domain: str = ""
    file_patient: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "patient", normalize_patient(self.patient))
        object.__setattr__(self, "file_patient", normalize_patient(self.file_patient))


def _extract_patient(rule: PatientRule, series: Series, root: Path | str) -> str:
    """Return the patient of a series by a rule for its path; without one, its Patient ID."""
    if rule is None:
        return series.patient_id
    if isinstance(root, str):
        # what follows the scheme of a URL is a path
        relative = series.path[len(name_url(root)) :].lstrip("/")
        path = Path(series.path.partition("://")[2])
    else:
        path = Path(series.path)
        relative = "" if callable(rule) else path.relative_to(root).as_posix()
    if callable(rule):
        return str(rule(path))
    match = re.search(rule, relative)
    if match is None:
        raise DatasetError(f"patient={rule!r} does not match the path {relative!r}")
    return match.group(1) if match.groups() else match.group(0)


def label_folders(
    root: str | Path,
    *,
    patient: PatientRule,
    file_patients: FilePatients = "check",
    progress: Progress,
) -> tuple[list[LabeledSeries], list[Skipped]]:
    """Return the series below each subfolder, labeled with the subfolder's name, and the skipped files."""
    folder = root.rstrip("/") if is_remote_url(root) else _open_folder(root)
    classes = _list_class_folders(folder)
    if not classes:
        raise DatasetError(
            f"{name_source(folder)} has no subfolders; expected one for each class, or label=None for images "
            "without labels"
        )
    found: list[LabeledSeries] = []
    skipped: list[Skipped] = []
    for name, class_folder in classes:
        index = _scan_images(class_folder, "the class folder ", progress=progress)
        skipped += index.skipped
        label = normalize_number(name)
        found += [LabeledSeries(series, label, _extract_patient(patient, series, folder)) for series in index]
    return add_file_patients(found, file_patients, "item"), skipped


def list_unlabeled(
    root: str | Path,
    *,
    patient: PatientRule,
    file_patients: FilePatients = "check",
    progress: Progress,
) -> tuple[list[LabeledSeries], list[Skipped]]:
    """Return all series below a folder, without labels, and the skipped files."""
    folder = root.rstrip("/") if is_remote_url(root) else _open_folder(root)
    index = _scan_images(folder, "", progress=progress)
    found = [LabeledSeries(series, None, _extract_patient(patient, series, folder)) for series in index]
    return add_file_patients(found, file_patients, "item"), list(index.skipped)


def _list_class_folders(folder: Path | str) -> list[tuple[str, Path | str]]:
    """Return names and paths, or URLs, of the folders of classes."""
    if isinstance(folder, str):
        return [(name, f"{folder}/{name}") for name in list_subfolders(folder)]
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return [(path.name, path) for path in found]


def _scan_images(folder: Path | str, role: str, *, progress: Progress) -> SeriesIndex:
    """Scan a folder that must have an image; results of medimg are none."""
    index, _ = leave_out_results(scan(folder, progress=progress), [])
    if not index:
        raise DatasetError(
            f"no image in {role}{name_source(folder)} ({len(index.skipped)} files skipped); "
            f"expected {FORMATS}"
        )
    return index


def _open_folder(root: str | Path) -> Path:
    refuse_url_as_path(root)
    folder = Path(root)
    try:
        is_folder = folder.is_dir()
        if is_folder:
            next(folder.iterdir(), None)
    except OSError as error:
        raise also(DatasetError, type(error))(f"{folder} can't be opened: {error.strerror}") from None
    if not is_folder:
        raise also(DatasetError, FileNotFoundError)(f"there is no folder {folder}")
    return folder


def read_table(csv: Any) -> pd.DataFrame:
    """Read a CSV file as text, so that no identifier loses its leading zeros."""
    import pandas as pd

    if isinstance(csv, pd.DataFrame):
        return csv
    if not isinstance(csv, str | os.PathLike) and not hasattr(csv, "read"):
        raise DatasetError(f"csv must be the path of a table or a DataFrame; found a {type(csv).__name__}")
    if is_remote_url(csv):
        csv = _fetch_table(csv)
    elif isinstance(csv, os.PathLike):
        refuse_url_as_path(csv)
    elif isinstance(csv, str):
        check_path("csv", csv, error=DatasetError)  # pandas would open URLs of other protocols
    irregular = "" if _is_special(csv) else explain_irregular(csv)
    if irregular:
        raise DatasetError(f"{csv} can't be opened: it is {irregular}; expected a CSV table")
    try:
        # "NA" and "None" are labels in use; of a header pandas would rename columns that occur twice
        rows = pd.read_csv(csv, dtype=str, keep_default_na=False, na_values=[""], header=None)
    except FileNotFoundError:
        raise also(DatasetError, FileNotFoundError)(f"there is no file {csv}") from None
    except OSError as error:
        raise also(DatasetError, type(error))(
            f"{csv} can't be opened: {error.strerror or type(error).__name__}"
        ) from None
    except ValueError as error:
        raise DatasetError(f"{csv} is not a CSV table in UTF-8 ({type(error).__name__})") from None
    names = [f"Unnamed: {n}" if pd.isna(name) else str(name) for n, name in enumerate(rows.iloc[0])]
    return rows.iloc[1:].set_axis(names, axis=1).reset_index(drop=True)


def _fetch_table(url: str) -> BinaryIO:
    """Return the bytes of a table at a URL, decompressed."""
    blob = open_blob(url)
    if blob.start(2) == b"\x1f\x8b":
        blob = blob.unzipped()
    if blob.bound() > _MAX_TABLE and blob.size() > _MAX_TABLE:
        raise DatasetError(f"{blob.name} has more than {_MAX_TABLE >> 20} MB, too many for a table")
    with blob.stream() as file:
        return io.BytesIO(file.read())


def find_table_folder(csv: object) -> Path | str:
    """Return the folder of a table, or its URL, that paths in it are relative to."""
    if is_remote_url(csv):
        plain = redact_url(csv) if is_web_url(csv) else csv
        return plain.rpartition("/")[0]
    return Path(csv).parent if isinstance(csv, str | os.PathLike) else Path()


def _is_special(csv: object) -> bool:
    """Whether a table is no path on disk: a buffer, or the pipe that a shell makes of a command."""
    return not isinstance(csv, str | os.PathLike) or str(csv).startswith(("/dev/", "/proc/"))


def _check_columns(table: pd.DataFrame, wanted: Sequence[str]) -> None:
    absent = [name for name in wanted if name not in table.columns]
    if absent:
        hint = did_you_mean(absent[0], map(str, table.columns))
        raise also(DatasetError, KeyError)(
            f"the table has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, map(str, table.columns)))}; name columns by path=, label= (None for "
            f"images without labels), patient= and domain={hint}"
        )
    counts = Counter(table.columns)
    twice = [name for name in wanted if counts[name] > 1]
    if twice:
        raise DatasetError(
            f"the table has {counts[twice[0]]} columns named {twice[0]!r}; expected one: rename or remove "
            "the others"
        )
    if table.empty:
        raise DatasetError("the table has no rows")
    for name in wanted:
        empty = np.flatnonzero([_is_empty(value) for value in table[name]])
        if empty.size:
            raise DatasetError(
                f"column {name!r} is empty in {empty.size} row(s), the first is row {empty[0]}"
            )
        infinite = np.flatnonzero([_is_infinite(value) for value in table[name]])
        if infinite.size:
            raise DatasetError(
                f"column {name!r} is infinite in {infinite.size} row(s), the first is row {infinite[0]}: "
                "correct or remove these rows"
            )


def is_one_column(label: object) -> bool:
    """Whether a label is in one column, of class names; columns of a frame may also be numbers."""
    return isinstance(label, str | int)


def list_label_columns(label: str | Sequence[str] | None) -> list[str]:
    """Return the names of the columns of labels."""
    if label is None:
        return []
    return [cast("str", label)] if is_one_column(label) else list(label)


def _is_empty(value: object) -> bool:
    import pandas as pd

    return not value.strip() if isinstance(value, str) else bool(pd.isna(value))  # type: ignore[call-overload]


def _is_infinite(value: object) -> bool:
    return isinstance(value, float | np.floating) and math.isinf(value)


_INDICATORS: Final = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0}
#: CheXpert's code of an uncertain label.
_UNCERTAIN: Final = "-1"


def _parse_label(
    number: int, row: dict[str, Any], label: str | Sequence[str] | None
) -> str | tuple[float, ...] | None:
    if label is None:
        return None
    if is_one_column(label):
        return normalize_number(row[cast("str", label)])
    return tuple(_parse_indicator(number, name, row[name]) for name in label)


def _parse_indicator(number: int, column: str, value: object) -> float:
    """Return the 0 or 1 of a cell; others but -1 are not quoted, as those of a wrong column can be names."""
    text = normalize_number(value).lower()
    if text in _INDICATORS:
        return _INDICATORS[text]
    expected = "several label columns must hold 0 or 1, or False or True"
    if text == _UNCERTAIN:
        raise DatasetError(
            f"{expected}; found {_UNCERTAIN} in column {column!r} of row {number}, which means uncertain in "
            f"CheXpert and others: decide on 0 or 1, as df[{column!r}].replace({_UNCERTAIN}, 0) does, or "
            "remove these rows"
        )
    raise DatasetError(
        f"{expected}; found something else in column {column!r} of row {number}: check the columns of "
        "labels; an unknown label must be decided, or its row be removed"
    )


def label_rows(
    table: pd.DataFrame,
    root: Path | str,
    *,
    path: str,
    label: str | Sequence[str] | None,
    patient: str | None,
    domain: str | None = None,
    file_patients: FilePatients = "check",
    progress: Progress = "auto",
) -> list[LabeledSeries]:
    """Return the series that each row of a table names, with its label, patient and domain."""
    labels = list_label_columns(label)
    if len(set(labels)) < len(labels):
        raise DatasetError(f"label={labels} has a column twice; expected each once")
    if label is not None and not labels:
        raise DatasetError(
            "label=[] has no column; expected one or several, or None for images without labels"
        )
    wanted = list(dict.fromkeys([path, *labels, *(name for name in (patient, domain) if name)]))
    _check_columns(table, wanted)
    if patient:
        check_exact(table[patient])
    rows: list[dict[str, Any]] = table[wanted].to_dict("records")  # type: ignore[assignment]  # names are str
    _check_files(rows, root, path)
    found = []
    problems = []
    sources = [_locate(root, str(row[path])) for row in rows]
    workers = REMOTE_WORKERS if any(isinstance(source, str) for source in sources) else 1
    opened = ordered_map(_find_row, sources, workers)
    numbered = progress_bar(opened, desc="indexing", unit="image", progress=progress, total=len(rows))
    for number, (row, series) in enumerate(zip(rows, numbered, strict=True)):
        if isinstance(series, MedimgError):
            problems.append(str(series))
            continue
        known = row[patient] if patient else series.patient_id
        where = normalize_number(row[domain]) if domain else ""
        found.append(LabeledSeries(series, _parse_label(number, row, label), known, where))
    if problems:
        shown = "\n".join(f"  {p}" for p in problems[:5])
        raise DatasetError(
            f"{len(problems)} of {len(rows)} labeled images can't be read; correct or remove these rows; "
            f"the first:\n{shown}"
        )
    return add_file_patients(found, file_patients, "row")


def _find_row(source: Path | str) -> Series | MedimgError:
    try:
        return find_series(source)[0]
    except MedimgError as error:
        return error


def _locate(root: Path | str, name: str) -> Path | str:
    """Return the file of a row, or its URL; DatasetError for a path that leads out of a folder at a URL."""
    if is_dicomweb_url(name) or is_remote_url(name):
        return name
    if isinstance(root, Path):
        return root / name
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or "\0" in name or PureWindowsPath(name).anchor:
        raise DatasetError(
            f"a table has a path that leads out of {name_url(root)}; expected paths below it, or URLs"
        )
    parts = [part for part in parts if part not in ("", ".")]
    return "/".join((root, *(map(quote, parts) if is_web_url(root) else parts)))


def _may_exist(path: Path | str) -> bool:
    """Whether a file exists, or is on a server or in a closed folder, which reading it will report."""
    try:
        return isinstance(path, str) or path.exists()
    except OSError:
        return True


def _quote_file_name(cell: str) -> str:
    """Return a file name for a message; "" for other text, as cells of a wrong column can be names."""
    return f": {cell}" if _FILE_NAME.search(cell) else ""


def _check_files(rows: list[dict[str, Any]], root: Path | str, path: str) -> None:
    names = [str(row[path]) for row in rows]
    absent = [n for n, name in enumerate(names) if not _may_exist(_locate(root, name))]
    if absent:
        shown = "\n".join(f"  row {n}{_quote_file_name(names[n])}" for n in absent[:5])
        raise also(DatasetError, FileNotFoundError)(
            f"{len(absent)} of {len(rows)} labels have no file below {root}; pass root=, or remove "
            f"these rows, or check the column of paths ({path!r}); the first:\n{shown}"
        )
    located = (_locate(root, name) for name in names)
    paths = [one.rstrip("/") if isinstance(one, str) else os.path.realpath(one) for one in located]
    count = Counter(paths)
    if len(count) < len(paths):
        twice = next(name for name, real in zip(names, paths, strict=True) if count[real] > 1)
        twice = name_url(twice) if is_remote_url(twice) else twice
        raise DatasetError(
            f"{len(paths) - len(count)} row(s) repeat a path of the table, the first is {twice!r}; "
            "keep one row for each image"
        )
