"""Selecting series of an index, its table, and what was skipped."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import medimg
from medimg.errors import MedimgError, SeriesError
from tests.dicom_files import make_instance, write

PIXELS = np.zeros((4, 4), np.int16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scans")
    facts: list[dict[str, Any]] = [
        {"BodyPartExamined": "CHEST", "KVP": 100},
        {"BodyPartExamined": "HEAD", "KVP": 120},
        {"Modality": "MR", "RepetitionTime": 2000},
    ]
    for number, attributes in enumerate(facts):
        ds = make_instance(
            PIXELS, SeriesInstanceUID=f"1.2.3.{number}", PatientBirthDate="19500102", **attributes
        )
        write(ds, root / f"SENTINEL-{number}" / "a.dcm")
    medimg.Volume.from_array(np.zeros((2, 3, 4), np.float32), spacing=(1, 1, 1)).save(root / "z.nii")
    (root / "SENTINEL-notes").mkdir()
    (root / "SENTINEL-notes" / "notes.txt").write_text("text")
    return root


@pytest.fixture
def index(folder: Path) -> medimg.SeriesIndex:
    return medimg.scan(folder)


def numbers(index: medimg.SeriesIndex, part: medimg.SeriesIndex) -> list[int]:
    assert isinstance(part, medimg.SeriesIndex)
    assert part.skipped == index.skipped
    return [index.series.index(series) for series in part]


def test_one_series(index: medimg.SeriesIndex) -> None:
    assert index["1.2.3.1"] is index[1] is index[np.int64(1)] is index[-3]
    assert index[str(index[3].uid)].format == "NIfTI"
    uids: list[Any] = ["1.2.3.1", "1.2.3.9"]
    assert uids[0] in index
    assert index[1] in index
    assert uids[1] not in index
    assert None not in index
    assert index.index(index[2]) == 2
    with pytest.raises(IndexError):
        index[4]


def test_several_series(index: medimg.SeriesIndex) -> None:
    table = index.to_pandas(tags=["KVP"])
    mask = table.KVP > 100
    selections: list[Any] = [
        mask,
        mask.to_numpy(),
        mask.to_list(),
        tuple(mask),
        mask.sort_index(ascending=False),
        table.set_index("uid").KVP.gt(100).iloc[[2, 1, 0, 3]],
        [1],
        np.array([1]),
        ["1.2.3.1"],
        slice(1, 2),
        table.index[mask],
        table.uid[mask],
    ]
    for selection in selections:
        assert numbers(index, index[selection]) == [1], selection
    assert numbers(index, index[:]) == [0, 1, 2, 3]
    assert numbers(index, index[[2, 0]]) == [2, 0]
    assert numbers(index, index[[]]) == []
    assert numbers(index, index[np.zeros(4, bool)]) == []
    assert not medimg.SeriesIndex(())[np.zeros(0, bool)]


@pytest.mark.parametrize(
    ("selection", "kind", "hint"),
    [
        ("1.2.3.11", KeyError, "did you mean '1.2.3.1'"),
        (["1.2.3.0", "other"], KeyError, "no series 'other'"),
        ([True, False], IndexError, "has 2 values, but there are 4 series"),
        (pd.Series([True] * 4, index=[0, 1, 2, 2]), KeyError, r"mask.to_numpy\(\)"),
        (pd.Series([True] * 4, index=list("abcd")), KeyError, r"mask.to_numpy\(\)"),
        (True, TypeError, "type bool"),
        (1.0, TypeError, "type float"),
        ([0.5], TypeError, "type float"),
        (None, TypeError, "type NoneType"),
        (np.ones((4, 2), bool), TypeError, "type list"),
        ([True, 1, 0, False], TypeError, "type bool"),
        (4, IndexError, "no series 4 among 4"),
        ([0, -5], IndexError, "no series -5 among 4"),
        (10**30, IndexError, "no series 10000"),
        (pd.array([True, None, False, True], dtype="boolean"), ValueError, "missing values"),
        (pd.Series([True, np.nan, False, True], dtype=object), ValueError, "missing values"),
        (pd.DataFrame({"KVP": [True] * 4}), TypeError, "a table; pass one of its columns"),
        ({0: True}, TypeError, "type dict"),
        (b"\x00\x01", TypeError, "type bytes"),
        (np.array(True), TypeError, "type bool"),
    ],
)
def test_what_selects_nothing_is_an_error(
    index: medimg.SeriesIndex, selection: Any, kind: type[Exception], hint: str
) -> None:
    with pytest.raises(SeriesError, match=hint) as caught:
        index[selection]
    assert isinstance(caught.value, kind)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"modality": "CT", "body_part": "CHEST"}, [0]),
        ({"modality": "ct", "body_part": ["chest", "HEAD"]}, [0, 1]),
        ({"modality": ("CT", "MR")}, [0, 1, 2]),
        ({"BodyPartExamined": "head"}, [1]),
        ({"body_part": "CHEST", "BodyPartExamined": "HEAD"}, []),
        ({"body_part": None}, [2, 3]),
        ({"body_part": [None, "HEAD"]}, [1, 2, 3]),
        ({"KVP": 120}, [1]),
        ({"KVP": np.array([100.0, 120.0])}, [0, 1]),
        ({"ImageType": "PRIMARY", "modality": "MR"}, [2]),
        ({"slices": range(2, 9)}, [3]),
        ({"format": "NIfTI"}, [3]),
        ({"PatientBirthDate": "19500102", "RepetitionTime": 2000}, [2]),
        ({"0018,0060": 100}, [0]),
        ({"modality": []}, []),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_where(index: medimg.SeriesIndex, conditions: dict[str, Any], expected: list[int]) -> None:
    assert numbers(index, index.where(**conditions)) == expected


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"KVP": "120"}, "KVP has numbers; found a value of type str"),
        ({"KVP": [100, "120"]}, "KVP has numbers"),
        ({"0018,0060": "100"}, "0018,0060 has numbers"),
        ({"KVP": True}, "KVP has numbers; found a value of type bool"),
        ({"KVP": float("nan")}, "none equals NaN: pass None"),
        ({"KVP": pd.NA}, "KVP has numbers; found a value of type NAType"),
        ({"slices": "4"}, "slices has numbers"),
        ({"row_spacing": b"1"}, "row_spacing has numbers"),
        ({"files": "4"}, "files has numbers"),
        ({"modality": 3}, "modality has texts; found a value of type int"),
        ({"modality": b"CT"}, "modality has texts; found a value of type bytes"),
        ({"patient_id": 31415}, "patient_id has texts; found a value of type int"),
        ({"path": Path("scan")}, "path has texts"),
        ({"body_part": 1}, "BodyPartExamined has texts"),
        ({"PatientBirthDate": 19500102}, "PatientBirthDate has texts"),
        ({"modality": "no such", "KVP": "120"}, "KVP has numbers"),
    ],
)
def test_a_value_of_another_type_is_refused(
    index: medimg.SeriesIndex, conditions: dict[str, Any], message: str
) -> None:
    with pytest.raises(MedimgError, match=message) as caught:
        index.where(**conditions)
    assert isinstance(caught.value, TypeError)
    assert "31415" not in str(caught.value)


def test_arrays_of_other_libraries_select(index: medimg.SeriesIndex) -> None:
    torch = pytest.importorskip("torch")
    assert numbers(index, index[torch.tensor([True, False, True, False])]) == [0, 2]
    assert numbers(index, index[torch.tensor([3, 1])]) == [3, 1]
    scalars: list[Any] = [np.array(2), torch.tensor(2)]
    assert all(index[one] is index.series[2] for one in scalars)
    assert numbers(index, index[(2, 0)]) == [2, 0]


def test_values_that_are_given_once_hold_for_all_series(index: medimg.SeriesIndex) -> None:
    assert numbers(index, index.where(KVP=(kvp for kvp in (100, 120)))) == [0, 1]
    with pytest.raises(MedimgError, match="compares KVP with values; found a function") as caught:
        index.where(KVP=lambda kvp: kvp > 100)
    assert isinstance(caught.value, TypeError)


def test_tags_that_are_no_list(index: medimg.SeriesIndex) -> None:
    kvp, nothing = list[Any]([0x00180060, None])
    assert index.to_pandas(tags=kvp).KVP.tolist()[:2] == [100, 120]
    with pytest.raises(MedimgError, match="tags must be a list of attributes; found a NoneType"):
        index.to_pandas(tags=nothing)


def test_unknown_names(index: medimg.SeriesIndex) -> None:
    for name, hint in {"modalty": "modality", "BodyPartExamind": "BodyPartExamined"}.items():
        with pytest.raises(MedimgError, match=f"did you mean '{hint}'") as caught:
            index.where(**{name: "x"})
        assert isinstance(caught.value, KeyError)
    with pytest.raises(MedimgError, match="did you mean 'KVP'"):
        index.to_pandas(tags=["KVPP"])


def test_table(index: medimg.SeriesIndex) -> None:
    plain = index.to_pandas()
    assert "19500102" not in plain.to_csv()
    table = index.to_pandas(
        tags=["KVP", "PatientBirthDate", (0x0018, 0x0080), "0008,0060", "KVP", "ImageType"]
    )
    assert list(table.columns[: len(plain.columns)]) == list(plain.columns)
    added = table[table.columns[len(plain.columns) :]]
    assert list(added) == ["KVP", "PatientBirthDate", "RepetitionTime", "0008,0060", "ImageType"]
    assert added.KVP.dtype == float
    assert added.KVP.to_list()[:2] == [100.0, 120.0]
    assert added.KVP.isna().to_list() == [False, False, True, True]
    assert added.PatientBirthDate.to_list()[:3] == ["19500102"] * 3
    assert added.PatientBirthDate.isna().to_list() == [False, False, False, True]
    assert added.ImageType[0] == ("ORIGINAL", "PRIMARY", "AXIAL")
    assert index.to_pandas(tags="KVP").KVP.equals(table.KVP)
    assert list(medimg.SeriesIndex(()).to_pandas(tags=["KVP"])) == [*plain.columns, "KVP"]


def test_skipped_files_as_a_table(index: medimg.SeriesIndex) -> None:
    assert isinstance(index.skipped, medimg.SkippedFiles)
    table = index.skipped.to_pandas()
    assert list(table) == ["path", "reason"]
    assert [Path(path).name for path in table.path] == ["notes.txt"]
    html = index.skipped._repr_html_()
    assert "notes.txt is none of" in html
    assert "SENTINEL" not in html
    assert list(medimg.SkippedFiles().to_pandas()) == ["path", "reason"]
    # of users who build one
    assert isinstance(medimg.SeriesIndex((), tuple(index.skipped)).skipped, medimg.SkippedFiles)  # type: ignore[arg-type]  # converted


def test_a_missing_file_is_no_missing_value(tmp_path: Path) -> None:
    paths = [
        write(make_instance(PIXELS, SeriesInstanceUID=f"1.{n}"), tmp_path / f"{n}.dcm") for n in range(3)
    ]
    index = medimg.scan(tmp_path)
    paths[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*1\.dcm"):
        index.to_pandas(tags=["KVP"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(index.to_pandas()) == 3
