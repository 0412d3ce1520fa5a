"""Tables and folders to labeled series."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from medimg.core.progress import progress_bar
from medimg.data.identifiers import FilePatients, add_file_patients
from medimg.errors import DatasetError, MedimgError
from medimg.io.detect import FORMATS
from medimg.io.files.regular_file import explain_irregular
from medimg.io.read import find_series
from medimg.io.scan import scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from medimg.core.read_report import Skipped
    from medimg.io.series import Series

__all__ = ["LabeledSeries", "PatientRule", "label_folders", "label_rows", "read_table", "sort_classes"]

#: Patient by path: a regular expression with one group, or a function of the path.
PatientRule: TypeAlias = str | Callable[[Path], str] | None


#: File names as images have.
_FILE_NAME: Final = re.compile(
    r"\.(dcm|dicom|ima|nii|hdr|img|nrrd|nhdr|mha|mhd|png|jpe?g|tiff?|bmp|webp|gif|zip)(\.gz)?$", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class LabeledSeries:
    """One series with its labels; the patient stays out of the repr."""

    series: Series
    label: str | tuple[float, ...]
    patient: str = field(repr=False)
    domain: str = ""
    file_patient: str = field(default="", repr=False)


def _extract_patient(rule: PatientRule, path: Path, relative: Path) -> str:
    if rule is None:
        return ""
    if callable(rule):
        return str(rule(path))
    match = re.search(rule, relative.as_posix())
    if match is None:
        raise DatasetError(f"patient={rule!r} does not match the path {relative.as_posix()!r}")
    return match.group(1) if match.groups() else match.group(0)


def label_folders(
    root: str | Path,
    *,
    patient: PatientRule,
    file_patients: FilePatients = "check",
    progress: bool | None,
) -> tuple[list[LabeledSeries], list[Skipped]]:
    """Return the series below each subfolder, labeled with the subfolder's name, and the skipped files."""
    folder = Path(root)
    try:
        if not folder.is_dir():
            raise DatasetError(f"there is no folder {folder}")
        classes = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"{folder} can't be opened: {error.strerror}") from None
    if not classes:
        raise DatasetError(f"{folder} has no subfolders; expected one for each class")
    found: list[LabeledSeries] = []
    skipped: list[Skipped] = []
    for class_folder in classes:
        index = scan(class_folder, progress=progress)
        if not index:
            raise DatasetError(
                f"no image in the class folder {class_folder} ({len(index.skipped)} files skipped); "
                f"expected {FORMATS}"
            )
        skipped += index.skipped
        for series in index:
            path = Path(series.path)
            known = _extract_patient(patient, path, path.relative_to(folder)) or series.patient_id
            found.append(LabeledSeries(series, class_folder.name, known))
    return add_file_patients(found, file_patients, "item"), skipped


def read_table(csv: str | Path | pd.DataFrame) -> pd.DataFrame:
    """Read a CSV file as text, so that no identifier loses its leading zeros."""
    import pandas as pd

    if isinstance(csv, pd.DataFrame):
        return csv
    irregular = "" if _is_special(csv) else explain_irregular(csv)
    if irregular:
        raise DatasetError(f"{csv} can't be opened: it is {irregular}; expected a CSV table")
    try:
        # "NA" and "None" are labels in use
        return pd.read_csv(csv, dtype=str, keep_default_na=False, na_values=[""])
    except FileNotFoundError:
        raise DatasetError(f"there is no file {csv}") from None
    except OSError as error:
        raise DatasetError(f"{csv} can't be opened: {error.strerror or type(error).__name__}") from None
    except ValueError as error:
        raise DatasetError(f"{csv} is not a CSV table in UTF-8 ({type(error).__name__})") from None


def _is_special(csv: object) -> bool:
    """Whether a table is no path on disk: a buffer, or the pipe that a shell makes of a command."""
    return not isinstance(csv, str | os.PathLike) or str(csv).startswith(("/dev/", "/proc/"))


def sort_classes(names: set[str]) -> list[str]:
    """Sort class names, numerically if all are whole numbers, so that "10" follows "9"."""
    if all(name.lstrip("-").isdecimal() for name in names):
        return sorted(names, key=int)
    return sorted(names)


def _check_columns(table: pd.DataFrame, wanted: Sequence[str]) -> None:
    absent = [name for name in wanted if name not in table.columns]
    if absent:
        raise DatasetError(
            f"the table has no column {', '.join(map(repr, absent))}; it has "
            f"{', '.join(map(repr, map(str, table.columns)))}"
        )
    if table.empty:
        raise DatasetError("the table has no rows")
    for name in wanted:
        empty = np.flatnonzero(table[name].isna())
        if empty.size:
            raise DatasetError(
                f"column {name!r} is empty in {empty.size} row(s), the first is row {empty[0]}"
            )


def _parse_label(row: dict[str, Any], label: str | Sequence[str], number: int) -> str | tuple[float, ...]:
    if isinstance(label, str):
        return str(row[label])
    values = {name: _parse_flag(row[name]) for name in label}
    wrong = [name for name, value in values.items() if value is None]
    if wrong:
        # cells are not quoted: those of a wrong column can be names
        raise DatasetError(
            f"several label columns must hold 0 or 1; found something else in {', '.join(map(repr, wrong))} "
            f"of row {number}; check the columns of labels"
        )
    return tuple(value for value in values.values() if value is not None)


def _parse_flag(cell: object) -> float | None:
    """Return 0 or 1; None for anything else."""
    try:
        value = float(str(cell))
    except ValueError:
        return None
    return value if value in (0.0, 1.0) else None


def label_rows(
    table: pd.DataFrame,
    root: Path,
    *,
    path: str,
    label: str | Sequence[str],
    patient: str | None,
    domain: str | None = None,
    file_patients: FilePatients = "check",
    progress: bool | None = None,
) -> list[LabeledSeries]:
    """Return the series that each row of a table names, with its label, patient and domain."""
    labels = [label] if isinstance(label, str) else list(label)
    _check_columns(table, [path, *labels, *(name for name in (patient, domain) if name)])
    rows: list[dict[str, Any]] = table.to_dict("records")  # type: ignore[assignment]  # columns are named by str
    _check_files(rows, root, path)
    found = []
    problems = []
    for number, row in enumerate(progress_bar(rows, desc="indexing", unit="image", progress=progress)):
        try:
            series, _ = find_series(root / str(row[path]))
        except MedimgError as error:
            problems.append(str(error))
            continue
        known = str(row[patient]).strip() if patient else series.patient_id
        where = str(row[domain]).strip() if domain else ""
        found.append(LabeledSeries(series, _parse_label(row, label, number), known, where))
    if problems:
        shown = "\n".join(f"  {p}" for p in problems[:5])
        raise DatasetError(
            f"{len(problems)} of {len(rows)} labeled images can't be read; correct or remove these rows; "
            f"the first:\n{shown}"
        )
    return add_file_patients(found, file_patients, "row")


def _may_exist(path: Path) -> bool:
    """Whether a file exists, or is in a folder that can't be opened, which reading it will report."""
    try:
        return path.exists()
    except OSError:
        return True


def _quote_file_name(cell: str) -> str:
    """Return a file name for a message; "" for other text, as cells of a wrong column can be names."""
    return f": {cell}" if _FILE_NAME.search(cell) else ""


def _check_files(rows: list[dict[str, Any]], root: Path, path: str) -> None:
    names = [str(row[path]) for row in rows]
    absent = [n for n, name in enumerate(names) if not _may_exist(root / name)]
    if absent:
        shown = "\n".join(f"  row {n}{_quote_file_name(names[n])}" for n in absent[:5])
        raise DatasetError(
            f"{len(absent)} of {len(rows)} labels have no file below {root}; pass root=, or remove "
            f"these rows, or check the column of paths ({path!r}); the first:\n{shown}"
        )
    paths = [os.path.realpath(root / name) for name in names]
    count = Counter(paths)
    if len(count) < len(paths):
        twice = next(name for name, real in zip(names, paths, strict=True) if count[real] > 1)
        raise DatasetError(
            f"{len(paths) - len(count)} row(s) repeat a path of the table, the first is {twice!r}; "
            "keep one row for each image"
        )
