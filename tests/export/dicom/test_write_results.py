"""Files of results: idempotent, and paired with predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest

import medimg
from medimg.cli.main import main
from medimg.errors import ConversionError, MedimgError, MedimgWarning, NotAnImageError
from medimg.export import make_results, segmentation, write_results
from tests.export.dicom.checks import list_errors
from tests.io.dicomweb.fake_pacs import FakePacs, Reply, Seen

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


@pytest.fixture
def mixed(ct: Path, tmp_path: Path) -> Path:
    """A folder with a CT and a NIfTI image."""
    folder = tmp_path / "mixed"
    shutil.copytree(ct, folder / "ct")
    volume = medimg.read(ct)
    volume.save(folder / "z.nii.gz")
    return folder


def test_images_that_are_not_dicom_are_no_unreadable_ones(
    model: medimg.TransferClassifier, mixed: Path, tmp_path: Path
) -> None:
    expected = [one.SOPInstanceUID for one in make_results(model, mixed / "ct", kinds=("sr",))]
    for table in (None, model.predict(mixed), model.predict(mixed, on_error="collect")):
        with pytest.raises(ConversionError, match="is NIfTI; a DICOM result needs DICOM"):
            list(make_results(model, mixed, kinds=("sr",), predictions=table))
        with pytest.warns(MedimgWarning, match="1 of 2 images are not DICOM"):
            found = list(make_results(model, mixed, kinds=("sr",), predictions=table, on_other_format="warn"))
        assert [one.SOPInstanceUID for one in found] == expected
    with pytest.raises(ConversionError, match="is NIfTI; a DICOM result needs"):
        list(make_results(model, mixed / "z.nii.gz"))
    with pytest.raises(ConversionError, match="none of the 1 images is DICOM"):
        list(make_results(model, mixed / "z.nii.gz", on_other_format="warn"))
    with pytest.raises(ConversionError, match="on_other_format"):
        list(make_results(model, mixed, on_other_format="skip"))  # type: ignore[arg-type]  # wrong on purpose
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(next((mixed / "ct").iterdir()).read_bytes()[:700])
    sources = [broken, mixed]
    table = model.predict(sources, on_error="collect")
    assert table["error"].notna().tolist() == [True, False, False]
    with pytest.warns(MedimgWarning, match="1 of 2 images are not DICOM"):
        found = list(make_results(model, sources, kinds=("sr",), predictions=table, on_other_format="warn"))
    assert [one.SOPInstanceUID for one in found] == expected


def test_several_predictions_of_no_series_are_refused(
    model: medimg.TransferClassifier, ct: Path, mixed: Path
) -> None:
    table = model.predict(mixed / "z.nii.gz")
    with pytest.raises(ConversionError, match="other sources"):
        list(make_results(model, mixed / "absent", kinds=("sr",), predictions=table))
    with pytest.raises(ConversionError, match="can't predict on a int"):
        list(make_results(model, 3))


def test_parametric_maps_need_positions(model: medimg.TransferClassifier, xray: Path, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"ImagePositionPatient.*secondary_capture needs none"):
        write_results(model, xray, tmp_path, kinds=("pm",))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:no pixel spacing")
def test_results_are_not_taken_for_images(model: medimg.TransferClassifier, ct: Path, tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    shutil.copytree(ct, scans / "ct")
    first = write_results(model, scans, scans / "results", kinds=("sr", "sc", "pm"), most=2)
    mask = np.zeros(medimg.scan(ct)[0].shape[1:], np.uint8)
    mask[1, 5:9, 5:9] = 1
    segmentation(mask, ct, {1: "box"}).save_as(scans / "results" / "mask.dcm")
    # a scan lists them, as they can be read and looked at
    assert len(medimg.scan(scans)) > 1
    assert len(medimg.scan(scans / "results").skipped) == 1
    before = set(scans.rglob("*"))
    assert write_results(model, scans, scans / "results", kinds=("sr", "sc", "pm"), most=2) == first
    assert set(scans.rglob("*")) == before
    assert len(model.predict(scans)) == 1
    with pytest.raises(NotAnImageError, match="is a result that medimg made of other images"):
        model.predict(first[1])
    with pytest.raises(NotAnImageError, match="no image among the 5 file"):
        model.predict(scans / "results")
    assert len(model.predict(medimg.scan(first[1])[0])) == 1
    data = medimg.ImageDataset.from_folder(scans, label=None, unit="series")
    assert len(data) == 1
    assert {Path(one.path).parent.name for one in data.skipped} == {"results"}
    assert sum("made of other images" in one.reason for one in data.skipped) == 4


@pytest.mark.filterwarnings("ignore:no pixel spacing")
def test_images_of_others_are_images(model: medimg.TransferClassifier, ct: Path, tmp_path: Path) -> None:
    page = next(make_results(model, ct, kinds=("sc",)))
    for name in ("Maker", ""):
        page.Manufacturer = name
        page.save_as(tmp_path / "page.dcm")
        assert len(model.predict(tmp_path)) == 1


def test_an_unreadable_source_is_an_error(model: medimg.TransferClassifier, tmp_path: Path) -> None:
    with pytest.raises(MedimgError):
        list(make_results(model, tmp_path / "absent"))


# From the command line


def test_a_folder_of_images_of_several_formats(
    saved: Path, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["predict", str(saved), str(mixed), "--no-progress", "--dicom-out", str(mixed / "results")]
    for _ in range(2):
        assert main([*command, "--dicom-kinds", "sr", "sc"]) == 0
        captured = capsys.readouterr()
        assert len(captured.out.splitlines()) == 3
        assert "1 of 2 images are not DICOM" in captured.err
        assert "5 DICOM files" in captured.err
        assert len(list((mixed / "results").iterdir())) == 5
    command[2] = str(mixed / "z.nii.gz")
    assert main(command) == 1
    assert "none of the 1 images is DICOM" in capsys.readouterr().err


class Refusing(FakePacs):
    """A server that has some instances already, and refuses others."""

    def _store(self, seen: Seen) -> Reply:
        before = len(self.stored)
        super()._store(seen)
        names = "00081155", "00081197"
        items: list[list[dict[str, dict[str, object]]]] = [[], []]
        for n, data in enumerate(self.stored[before:]):
            uid = pydicom.dcmread(pydicom.filebase.DicomBytesIO(data)).SOPInstanceUID
            item: dict[str, dict[str, object]] = {names[0]: {"vr": "UI", "Value": [str(uid)]}}
            if n:
                item[names[1]] = {"vr": "US", "Value": [0x0111 if n == 1 else 0xA700]}
            items[bool(n)].append(item)
        answer = {"00081199": {"vr": "SQ", "Value": items[0]}, "00081198": {"vr": "SQ", "Value": items[1]}}
        return Reply(202, json.dumps(answer).encode())


def test_instances_that_are_not_stored_are_named(
    saved: Path, ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("requests")
    command = ["predict", str(saved), str(ct), "--no-progress"]
    with Refusing([]) as pacs:
        for more in ([], ["--dicom-out", str(tmp_path / "out")]):
            assert main([*command, "--stow", pacs.url, *more]) == 1
            captured = capsys.readouterr()
            assert len(captured.out.splitlines()) == 2
            assert "1 DICOM instances stored, 1 were on the server already, 3 not stored:" in captured.err
            assert captured.err.count("SC.2.25.") == 3
            assert "the server is out of resources" in captured.err
        assert len(list((tmp_path / "out").iterdir())) == 5
    assert main([*command, "--stow", pacs.url, "--dicom-kinds", "sr"]) == 1
    assert "1 not stored:" in capsys.readouterr().err
    for wrong, message in (
        (["--stow", "ftp://host"], "http"),
        (["--verify", "ca.pem"], "--stow"),
        (["--stow", pacs.url, "--unit", "image"], "--stow makes results of series"),
    ):
        assert main([*command, *wrong]) == 1
        captured = capsys.readouterr()
        assert message in captured.err
        assert captured.out == ""
