"""``medimg scan``, ``info``, ``read`` and ``preview``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom.dataset import Dataset

import medimg
from medimg.cli.main import main
from tests.dicom_files import make_instance, write


def test_scan_lists_series_and_nothing_that_identifies(
    scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = medimg.scan(scans)
    assert main(["scan", str(scans)]) == 0
    captured = capsys.readouterr()
    head, *rows = captured.out.splitlines()
    assert head.split()[:3] == ["#", "modality", "channels"]
    assert len(rows) == len(index) == 3
    assert [row.split()[0] for row in rows] == ["0", "1", "2"]
    assert captured.err == f"3 series, {len(index.skipped)} files skipped\n"
    for series in index:
        for secret in (series.patient_id, series.uid, series.study_uid, series.description):
            assert secret
            assert secret not in captured.out + captured.err


def test_scan_as_json(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(scans), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    for row, series in zip(rows, medimg.scan(scans), strict=True):
        assert row["slices"] == series.shape[1]
        assert row["spacing"] == list(series.spacing)
        assert "uid" not in row
        assert "patient_id" not in row


def test_scan_shows_what_is_asked_for(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(scans), "--json", "--columns", "uid, patient_id"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows == [
        {"number": n, "uid": s.uid, "patient_id": s.patient_id} for n, s in enumerate(medimg.scan(scans))
    ]
    assert main(["scan", str(scans), "--columns", "uid,KVP,uid,0x00180060"]) == 0
    assert capsys.readouterr().out.split()[:4] == ["#", "uid", "KVP", "0x00180060"]
    assert main(["scan", str(scans), "--columns", "name"]) == 1
    assert "no column or DICOM attribute 'name'; expected one of uid" in capsys.readouterr().err


def test_attributes_are_shown_if_they_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ds = make_instance(np.zeros((4, 4), np.int16), KVP=120, PatientSex="F")
    ds.RadiopharmaceuticalInformationSequence = [Dataset()]
    write(ds, tmp_path / "a.dcm")
    columns = "modality,KVP,(0010,0040),ImageType,RadiopharmaceuticalInformationSequence,EchoTime"
    assert main(["scan", str(tmp_path), "--json", "--columns", columns]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "number": 0,
            "modality": "CT",
            "KVP": 120.0,
            "(0010,0040)": "F",
            "ImageType": r"ORIGINAL\PRIMARY\AXIAL",
            "RadiopharmaceuticalInformationSequence": "1 item(s)",
            "EchoTime": None,
        }
    ]
    assert main(["info", str(tmp_path), "--tags", "KVP, PixelSpacing,ImageType"]) == 0
    shown = capsys.readouterr().out
    assert "0.8×0.6" in shown
    assert r"ORIGINAL\PRIMARY\AXIAL" in shown
    assert main(["info", str(tmp_path), "--tags", "KVPP"]) == 1
    assert "did you mean 'KVP'?" in capsys.readouterr().err
    assert main(["info", "model.safetensors", "--tags", "KVP"]) == 1
    assert "no DICOM attributes" in capsys.readouterr().err


def test_scan_lists_skipped_files(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(scans), "--skipped", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert any(row["path"].endswith("notes.txt") and row["reason"] for row in rows)


def test_scan_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scan", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_info_of_a_series(scans: Path, capsys: pytest.CaptureFixture[str]) -> None:
    series = medimg.scan(scans)[1]
    assert main(["info", str(scans), "--series", "1", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["size"] == list(series.shape[1:])
    assert facts["spacing_mm"] == list(series.spacing)
    assert facts["orientation"] == series.read().orientation
    assert main(["info", *series.files]) == 0
    out = capsys.readouterr().out
    assert "3×48×48" in out
    assert series.patient_id not in out


def test_several_series_are_an_error_that_names_the_option(
    scans: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(scans)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 series" in line
    assert "--series" in line
    assert main(["info", str(scans), "--series", "9"]) == 1
    message = capsys.readouterr().err
    for series in medimg.scan(scans):
        assert series.uid not in line + message
        assert series.description not in line + message


def test_read_writes_what_python_reads(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    series = medimg.scan(scans)[2]
    out = tmp_path / "new" / "out.nii.gz"
    command = ["read", str(scans), str(out), "--series", series.uid]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    volume = medimg.read(out)
    np.testing.assert_array_equal(volume.array, series.read().array)
    np.testing.assert_allclose(volume.affine, series.affine, atol=1e-4)

    before = out.read_bytes()
    assert main(command) == 1
    assert "--force" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert main([*command, "--force", "--reorient", "RAS", "--spacing", "4", "4", "4"]) == 0
    changed = medimg.read(out)
    assert changed.orientation == "RAS"
    np.testing.assert_allclose(changed.spacing, 4, rtol=1e-4)


def test_policies_of_read(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, _, last = medimg.scan(scans)[0].files
    copy = str(tmp_path / "copy.dcm")
    shutil.copy(first, copy)
    out = str(tmp_path / "out.mha")
    assert main(["convert", first, last, copy, out, "--no-compress"]) == 0
    assert medimg.read(out).shape == (1, 2, 48, 48)
    assert "warning" in capsys.readouterr().err
    assert main(["convert", first, last, copy, out, "--force", "--on-duplicate", "raise"]) == 1


def test_an_unknown_format_is_refused(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["read", str(scans), str(tmp_path / "out.xyz"), "--series", "0"]) == 1
    assert ".nii.gz" in capsys.readouterr().err
    assert main(["preview", str(scans), str(tmp_path / "out.xyz")]) == 1
    assert ".png" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_preview_writes_a_montage(scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.png"
    command = ["preview", str(scans), str(out), "--series", "0", "--window", "lung", "--most", "2"]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}\n"
    with Image.open(out) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert main(command) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]
