"""Patients by the table and by the files: one grouping, or an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pydicom.uid import generate_uid

from medimg import ImageDataset, Preprocess
from medimg.errors import DatasetError, LeakageError
from tests.dicom_files import make_instance, write

SMALL = Preprocess(size=16)


def table(root: Path, named: list[tuple[str, str]]) -> pd.DataFrame:
    """Write an image for each pair of patients, as the file has it and as the table has it."""
    rng = np.random.default_rng(0)
    for n, (of_file, _) in enumerate(named):
        uids = {f"{level}InstanceUID": generate_uid() for level in ("Study", "Series")}
        pixels = rng.integers(0, 99, (16, 16)).astype(np.uint16)
        write(
            make_instance(pixels, PatientID=of_file, **uids),
            root / "ab"[n % 2] / f"person{named[n][1]}-{n}.dcm",
        )
    return pd.DataFrame(
        {
            "path": [f"{'ab'[n % 2]}/person{name}-{n}.dcm" for n, (_, name) in enumerate(named)],
            "label": ["ab"[n % 2] for n in range(len(named))],
            "patient": [name for _, name in named],
        }
    )


@pytest.mark.parametrize(
    ("named", "found"),
    [
        ([("S1", "1"), ("S1", "2"), ("S3", "3")], r"1 Patient ID\(s\).*rows 0 and 1"),
        ([("S1", "1"), ("S2", "1"), ("S3", "3")], r"1 patient\(s\) of the table have.*\n.*rows 0 and 1"),
        ([("S1", "1"), ("S2", "1"), ("S2", "2"), ("S1", "2")], r"2 Patient ID\(s\).*2 patient\(s\)"),
    ],
)
def test_contradictions_are_errors(tmp_path: Path, named: list[tuple[str, str]], found: str) -> None:
    rows = table(tmp_path, [(f"SENTINEL{a}", f"9{b}7") for a, b in named])
    with pytest.raises(LeakageError, match=r"define different patients") as error:
        ImageDataset.from_csv(rows, root=tmp_path, patient="patient", preprocess=SMALL)
    assert pd.Series([str(error.value)]).str.contains(found, regex=True, flags=16).all()
    assert "SENTINEL" not in str(error.value)
    trusted = ImageDataset.from_csv(
        rows, root=tmp_path, patient="patient", preprocess=SMALL, file_patients="ignore"
    )
    assert trusted.patients == tuple(rows.patient)
    assert set(trusted.file_patients) == {""}
    by_files = ImageDataset.from_csv(rows, root=tmp_path, preprocess=SMALL)
    assert by_files.patients == tuple(f"SENTINEL{a}" for a, _ in named)
    with pytest.raises(LeakageError, match="items"):
        ImageDataset.from_folder(tmp_path, SMALL, patient=r"person(\d+)-")
    ImageDataset.from_folder(tmp_path, SMALL, patient=r"person(\d+)-", file_patients="ignore")


@pytest.mark.parametrize(
    "of_files",
    [
        ["A", "A ", "B", "C"],
        ["ANON"] * 4,
        ["", "", "", ""],
        ["same"] * 4,
        ["Anonymous", "ANON", "anonymized", "UNKNOWN"],
        ["A", "A", "", ""],
        ["A", "anon", "B", "ANON"],
        ["00000", "xxx", "N/A", "de-identified"],
    ],
)
def test_what_agrees_or_says_nothing_passes(tmp_path: Path, of_files: list[str]) -> None:
    rows = table(tmp_path, list(zip(of_files, ["1", "1", "2", "3"], strict=True)))
    data = ImageDataset.from_csv(rows, root=tmp_path, patient="patient", preprocess=SMALL)
    assert data.patients == ("1", "1", "2", "3")


def test_a_real_identifier_is_kept_beside_words_for_nobody(tmp_path: Path) -> None:
    rows = table(tmp_path, [("A", "1"), ("ANON", "2"), ("B", "3"), ("anon", "4")])
    data = ImageDataset.from_csv(rows, root=tmp_path, patient="patient", preprocess=SMALL)
    assert data.file_patients == ("A", "", "B", "")
    with pytest.raises(DatasetError, match="file_patients"):
        ImageDataset.from_csv(rows, root=tmp_path, patient="patient", file_patients="table")  # type: ignore[arg-type]  # on purpose


def test_without_a_column_the_files_decide(tmp_path: Path) -> None:
    rows = table(tmp_path, [("A", "1"), ("A", "2"), ("B", "2")])
    data = ImageDataset.from_csv(rows, root=tmp_path, preprocess=SMALL)
    assert data.patients == ("A", "A", "B")
