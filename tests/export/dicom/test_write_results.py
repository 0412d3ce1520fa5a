"""Files of results: idempotent, and paired with predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest

import medimg
from medimg.cli.main import main
from medimg.errors import ConversionError, MedimgError
from medimg.export import make_results, write_results
from tests.export.dicom.checks import list_errors

CLASS_NAMES = {
    "1.2.840.10008.5.1.4.1.1.88.33": "SR",
    "1.2.840.10008.5.1.4.1.1.7": "SC",
    "1.2.840.10008.5.1.4.1.1.30": "PM",
}


def test_files_are_written_once(model: medimg.TransferClassifier, ct: Path, tmp_path: Path) -> None:
    paths = write_results(model, ct, tmp_path / "out", kinds=("sr", "sc", "pm"), most=2)
    assert [path.name[:2] for path in paths] == ["SR", "SC", "SC", "PM"]
    for path in paths:
        found = pydicom.dcmread(path)
        assert path.name == f"{CLASS_NAMES[found.SOPClassUID]}.{found.SOPInstanceUID}.dcm"
    before = [path.read_bytes() for path in paths]
    paths[1].unlink()
    assert write_results(model, ct, tmp_path / "out", kinds=("sr", "sc", "pm"), most=2) == paths
    after = [path.read_bytes() for path in paths]
    assert [a == b for a, b in zip(before, after, strict=True)][::2] == [True, True]
    assert set((tmp_path / "out").iterdir()) == set(paths)


def test_another_file_is_not_replaced(model: medimg.TransferClassifier, xray: Path, tmp_path: Path) -> None:
    (path,) = write_results(model, xray, tmp_path, kinds=("sr",))
    path.write_bytes(b"something else")
    with pytest.raises(ConversionError, match="is another file"):
        write_results(model, xray, tmp_path, kinds=("sr",))
    assert path.read_bytes() == b"something else"


def test_results_of_several_sources_use_given_predictions(
    model: medimg.TransferClassifier, ct: Path, xray: Path
) -> None:
    sources = [str(ct), str(xray)]
    table = model.predict(sources)
    direct = [one.SOPInstanceUID for one in make_results(model, sources, kinds=("sr",))]
    given = [one.SOPInstanceUID for one in make_results(model, sources, kinds=("sr",), predictions=table)]
    assert direct == given
    with pytest.raises(ConversionError, match="other sources"):
        list(make_results(model, sources[::-1], kinds=("sr",), predictions=table))
    with pytest.raises(ConversionError, match="more sources"):
        list(make_results(model, sources[:1], kinds=("sr",), predictions=table))
    with pytest.raises(ConversionError, match="other sources"):
        list(make_results(model, [*sources, str(ct)], kinds=("sr",), predictions=table))
    with pytest.raises(ConversionError, match='unit="series"'):
        list(make_results(model, sources, kinds=("sr",), predictions=model.predict(sources, unit="image")))


@pytest.mark.parametrize("kinds", ["sr", (), ("seg",), ("sr", "xx")])
def test_unknown_kinds_are_refused(kinds: object, model: medimg.TransferClassifier, ct: Path) -> None:
    with pytest.raises(ConversionError, match="kinds"):
        list(make_results(model, ct, kinds=kinds))  # type: ignore[arg-type]  # wrong on purpose


def test_what_has_no_patient_is_refused(model: medimg.TransferClassifier) -> None:
    volume = medimg.Volume.from_array(np.zeros((2, 32, 32), np.int16))
    with pytest.raises(ConversionError, match="no patient"):
        list(make_results(model, volume))


@pytest.fixture
def saved(model: medimg.TransferClassifier, tmp_path: Path) -> Path:
    return Path(model.save(tmp_path / "model.safetensors"))


def test_from_the_command_line(
    saved: Path, ct: Path, xray: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, model = tmp_path / "results", medimg.load(saved)
    command = ["predict", str(saved), str(ct), str(xray), "--no-progress", "--dicom-out", str(out)]
    assert main([*command, "--dicom-kinds", "sr"]) == 0
    captured = capsys.readouterr()
    assert "2 DICOM files" in captured.err
    assert len(captured.out.splitlines()) == 3
    expected = [one.SOPInstanceUID for one in make_results(model, [ct, xray], kinds=("sr",))]
    assert {path.name for path in out.iterdir()} == {f"SR.{uid}.dcm" for uid in expected}
    for path in out.iterdir():
        assert list_errors(path) == set()
    assert main([*command, "--unit", "image"]) == 1
    assert "--dicom-out" in capsys.readouterr().err


def test_unreadable_sources_have_rows_and_no_results(
    saved: Path, ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(next(ct.iterdir()).read_bytes()[:700])
    out = tmp_path / "results"
    command = ["predict", str(saved), str(broken), str(ct), "--on-error", "collect", "--no-progress"]
    assert main([*command, "--dicom-out", str(out), "--dicom-kinds", "sr"]) == 1
    assert "1 DICOM files" in capsys.readouterr().err
    assert len(list(out.iterdir())) == 1


def test_an_unreadable_source_is_an_error(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    with pytest.raises(MedimgError):
        list(make_results(model, tmp_path / "absent"))
