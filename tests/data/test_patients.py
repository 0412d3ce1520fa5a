"""Spellings of one patient are one patient, in tables and in files; placeholders are nobody."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from medimg import ImageDataset, Preprocess, check_leaks
from medimg.data.patients import check_exact, normalize_number, normalize_patient, patient_key
from medimg.errors import DatasetError, LeakageError, MedimgWarning
from medimg.training.checks import check_disjoint
from tests.dicom_files import make_instance, write

SMALL = Preprocess(size=16)

#: Ways in which spreadsheets, pandas and people write the whole number n.
SPELLINGS: dict[str, Callable[[int], Any]] = {
    "int": lambda n: n,
    "float": float,
    "numpy": np.float64,
    "text": str,
    "float text": lambda n: f"{n}.0",
    "zeros": lambda n: f"{n:06d}",
    "blank": lambda n: f" {n}\t",
    "padded": lambda n: f"{n}\0",
    "wide": lambda n: "".join(chr(0xFF10 + int(digit)) for digit in str(n)),
    "plus": lambda n: f"+{n}",
    "decimal comma": lambda n: f"{n},0",
    "invisible": lambda n: f"\ufeff{n}\u200b",
}


@given(st.integers(0, 2**50), st.sampled_from(sorted(SPELLINGS)), st.sampled_from(sorted(SPELLINGS)))
def test_a_whole_number_is_one_patient_however_it_is_written(number: int, one: str, other: str) -> None:
    assert normalize_patient(SPELLINGS[one](number)) == normalize_patient(SPELLINGS[other](number))
    assert normalize_patient(SPELLINGS[one](number)) != normalize_patient(SPELLINGS[other](number + 1))


@given(st.text())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    for rule in (normalize_number, normalize_patient, patient_key):
        assert rule(rule(text)) == rule(text)
    assert patient_key(f" {text} ") == patient_key(text)
    assert patient_key(text.upper()) == patient_key(text.upper().lower())


@pytest.mark.parametrize(
    "name", ["ANONYMOUS", "NA", "n/a", "NaN", "None", " ", "--", "Unknown", "<NA>", "XXXX"]
)
def test_a_placeholder_is_nobody(name: str) -> None:
    assert normalize_patient(name) == ""


def pictures(root: Path, count: int) -> list[str]:
    rng = np.random.default_rng(count)
    for n in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16)).astype(np.uint8)).save(root / f"{n}.png")
    return [f"{n}.png" for n in range(count)]


def data(root: Path, patients: list[Any], **options: Any) -> ImageDataset:
    table = pd.DataFrame(
        {"path": pictures(root, len(patients)), "label": ["a", "b"] * (len(patients) // 2)}
    ).assign(patient=pd.Series(patients, dtype=object))
    return ImageDataset.from_csv(table, root=root, patient="patient", preprocess=SMALL, **options)


@pytest.mark.parametrize("other", [3.0, "003", "3 ", "3.0", np.int64(3)])
def test_no_leak_slips_through_by_spelling(tmp_path: Path, other: Any) -> None:
    found = data(tmp_path, [3, other, "p1", "P1"])
    assert found.patients[0] == found.patients[1]
    assert found.patients[2] == found.patients[3]
    (tmp_path / "more").mkdir()
    second = data(tmp_path / "more", ["x1", other, "y", "z"])
    with pytest.raises(LeakageError, match="patient"):
        check_disjoint(found.subset([0, 2]), second)
    with pytest.raises(LeakageError, match="1 × patient"):
        check_leaks(found.subset([0, 2]), second)


def test_tables_paths_and_files_have_one_rule(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for n, stated in enumerate(["003", "3", " 3", "ANONYMOUS"]):
        pixels = rng.integers(0, 99, (16, 16)).astype(np.uint16)
        uids = {f"{level}InstanceUID": f"1.2.{n}.{len(level)}" for level in ("Study", "Series", "SOP")}
        write(
            make_instance(pixels, PatientID=stated, **uids), tmp_path / "ab"[n % 2] / f"p{n // 2:03d}-{n}.dcm"
        )
    with pytest.warns(MedimgWarning, match="1 of 4 images have no known patient"):
        of_files = ImageDataset.from_folder(tmp_path, SMALL)
    assert sorted(of_files.patients)[:3] == ["3", "3", "3"]
    options: dict[str, Any] = {"file_patients": "ignore"}
    of_paths = ImageDataset.from_folder(tmp_path, SMALL, patient=r"p(\d+)-", **options)
    assert set(of_paths.patients) == {"0", "1"}
    with pytest.warns(MedimgWarning, match="4 of 4 images have no known patient"):
        of_rule = ImageDataset.from_folder(tmp_path, SMALL, patient=lambda _: None, **options)  # type: ignore[arg-type,return-value]
    assert len(set(of_rule.patients)) == 4


def test_a_patient_0_of_a_table_is_a_patient(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert data(tmp_path, [0, 1, "x", "y"]).patients == ("0", "1", "x", "y")


@pytest.mark.parametrize("value", [1.2345678901234567e17, "1.23457E+11"])
def test_rounded_identifiers_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DatasetError, match="rounded"):
        data(tmp_path, [value, 2])


@given(
    st.sampled_from("\u2010\u2011\u2013\u2014\u2212\ufe58\uff0d"),
    st.text("AB1", min_size=1),
    st.text("AB1"),
)
def test_a_dash_is_a_hyphen(dash: str, start: str, end: str) -> None:
    assert patient_key(f"{start}{dash}{end}") == patient_key(f"{start}-{end}")


@pytest.mark.parametrize("text", ["Anonymous Patient", "ANON^FEMALE", "unknown subject", "Unbekannt"])
def test_words_for_nobody(text: str) -> None:
    assert normalize_patient(text) == ""


@pytest.mark.parametrize("text", ["NO", "anon-7", "patient 7", "nona", "ID7"])
def test_words_that_may_be_somebody(text: str) -> None:
    assert normalize_patient(text) == text


@pytest.mark.parametrize("text", ["1.23E+17", "1,23E+17", "1E+16", 1e16])
def test_rounded_numbers_are_refused(text: Any) -> None:
    with pytest.raises(DatasetError, match="rounded number"):
        check_exact(["P1", text])
    check_exact(["1E5", "12e4", 12.0])
