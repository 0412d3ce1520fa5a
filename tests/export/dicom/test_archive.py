"""Results and a real Orthanc: stored, found, retrieved, and made of images that only the server has."""

from __future__ import annotations

import base64
import urllib.request
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

import medimg
from medimg.cli.main import main
from medimg.export import Segment, make_results, segmentation, structured_report
from medimg.io.dicomweb.retrieval import Retriever
from tests.export.dicom.checks import NOON, read_again, save
from tests.orthanc import PASSWORD, USER, Orthanc

pytest.importorskip("requests")

LIDC = "dicom_misc/lidc_3pat_excerpt/tests/assets/test_image_data/small/LIDC-IDRI-0003"
MODALITIES = {"SR": "SR", "SCImage": "OT", "ParametricMap": "OT", "Segmentation": "SEG"}


@pytest.fixture
def archive(orthanc: Orthanc) -> medimg.DicomWebServer:
    """A connection to an empty Orthanc."""
    return medimg.dicomweb(orthanc.url, auth=(USER, PASSWORD), timeout=30)


@pytest.fixture
def lidc(real_data: Path) -> Path:
    """The CT of a patient."""
    return real_data / LIDC


def retrieve(orthanc: Orthanc, uid: str) -> Dataset:
    """An instance as Orthanc's own interface gives it."""
    (found,) = orthanc.call("tools/lookup", uid.encode())
    request = urllib.request.Request(f"http://127.0.0.1:{orthanc.port}/instances/{found['ID']}/file")
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    request.add_header("Authorization", f"Basic {login}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return pydicom.dcmread(BytesIO(answer.read()))


def without_character_set(dataset: Dataset) -> bytes:
    """A file without what it declares; metadata of a server are always UTF-8."""
    again = read_again(dataset)
    again.pop("SpecificCharacterSet", None)
    return save(again)


def list_content(item: Dataset) -> list[str]:
    """Content of a structured report: relationship, name and value of each item, in order."""
    found = []
    for one in item.ContentSequence:
        texts = [str(one.get(name, "")) for name in ("RelationshipType", "ValueType", "TextValue", "UID")]
        for keyword in ("ConceptNameCodeSequence", "ConceptCodeSequence", "MeasuredValueSequence"):
            texts += [str(part) for part in one.get(keyword, ())]
        texts += [str(part) for part in one.get("ReferencedSOPSequence", ())]
        found.append(" ".join(texts))
        if "ContentSequence" in one:
            found += list_content(one)
    return found


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_all_kinds_are_stored_and_found_again(
    model: medimg.TransferClassifier,
    archive: medimg.DicomWebServer,
    orthanc: Orthanc,
    lidc: Path,
) -> None:
    source = pydicom.dcmread(next(lidc.rglob("*.dcm")), stop_before_pixels=True)
    volume = medimg.read(lidc)
    assert len(archive.store(lidc).stored) == volume.shape[1]
    mask = np.zeros(volume.shape[1:], np.uint8)
    mask[2:9][volume.array[0, 2:9] < -500] = 1
    mask[3:7, 200:300, 210:260] = 2
    names: dict[int, str | Segment] = {1: Segment("lung", ("39607008", "SCT", "Lung")), 2: "box"}
    heat = medimg.explain(model, lidc)
    results = [
        *make_results(model, lidc, kinds=("sr", "sc", "pm"), most=2, created=NOON),
        segmentation(mask, lidc, names, created=NOON),
    ]
    report, first_page, second_page, heat_map, masks = results
    uids = [str(one.SOPInstanceUID) for one in results]
    assert archive.store(iter(results)).stored == tuple(uids)
    # storing it twice is no error, and adds nothing
    assert set(archive.store(results).stored) == set(uids)
    assert len(orthanc.call("instances")) == volume.shape[1] + len(results)

    for dataset, modality in ((report, "SR"), (first_page, "OT"), (heat_map, "OT"), (masks, "SEG")):
        found = archive.search(
            study_uid=str(source.StudyInstanceUID),
            modality=modality,
            uid=str(dataset.SeriesInstanceUID),
            PatientID=str(source.PatientID),
        )
        assert [one.uid for one in found] == [dataset.SeriesInstanceUID]
        assert [one.patient_id for one in found] == [source.PatientID]
    assert len(archive.search(study_uid=str(source.StudyInstanceUID))) == 5
    assert len(archive.search(AccessionNumber="no such")) == 0

    kept = [retrieve(orthanc, uid) for uid in uids]
    for result, again in zip(results, kept, strict=True):
        assert again.StudyInstanceUID == source.StudyInstanceUID
        for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber"):
            assert again[keyword].value == source[keyword].value, keyword
        assert again == read_again(result)
    assert list_content(kept[0]) == list_content(report)
    np.testing.assert_array_equal(kept[1].pixel_array, first_page.pixel_array)
    np.testing.assert_array_equal(kept[2].pixel_array, second_page.pixel_array)

    # with medimg's own reading, over WADO-RS
    base = f"{orthanc.url}/studies/{source.StudyInstanceUID}/series"
    read = medimg.read(f"{base}/{heat_map.SeriesInstanceUID}")
    np.testing.assert_array_equal(read.array[0], heat.heat)
    np.testing.assert_allclose(read.affine, volume.affine, atol=1e-4)
    page = medimg.read(f"{base}/{first_page.SeriesInstanceUID}/instances/{first_page.SOPInstanceUID}")
    np.testing.assert_array_equal(np.moveaxis(page.array[:, 0], 0, -1), first_page.pixel_array)
    found_masks = hd.seg.Segmentation.from_dataset(kept[4])
    assert [one.SegmentLabel for one in found_masks.SegmentSequence] == ["lung", "box"]
    aligned = found_masks.get_volume(combine_segments=True, allow_missing_positions=True).match_geometry(
        medimg.to_highdicom(volume)
    )
    np.testing.assert_array_equal(aligned.array, mask)


def test_results_of_a_series_of_a_server(
    model: medimg.TransferClassifier,
    archive: medimg.DicomWebServer,
    orthanc: Orthanc,
    ct: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    archive.store(ct)
    fetched: list[str] = []
    fetch = Retriever._fetch_file

    def note_and_fetch(self: Retriever, resource: Any, most: int) -> memoryview:
        fetched.append(resource.instance)
        return fetch(self, resource, most)

    monkeypatch.setattr(Retriever, "_fetch_file", note_and_fetch)
    (listed,) = archive.search()
    expected = list(make_results(model, ct, kinds=("sr", "sc", "pm"), created=NOON))
    row = {str(name): value for name, value in model.predict(ct).iloc[0].items()}
    report = structured_report(model, listed, prediction=row, created=NOON)
    assert fetched == []
    assert without_character_set(report) == without_character_set(
        structured_report(model, ct, prediction=row, created=NOON)
    )
    results = list(make_results(model, [listed], kinds=("sr", "sc", "pm"), created=NOON))
    assert set(fetched) == {str(pydicom.dcmread(path).SOPInstanceUID) for path in ct.iterdir()}
    assert [without_character_set(one) for one in results] == [without_character_set(one) for one in expected]
    mask = np.zeros(listed.shape[1:], np.uint8)
    mask[1, 5:9, 5:9] = 1
    of_server = segmentation(mask, listed, {1: "box"}, created=NOON)
    assert without_character_set(of_server) == without_character_set(
        segmentation(mask, ct, {1: "box"}, created=NOON)
    )


@pytest.fixture
def netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the password of the server, as users of the command line have it."""
    path = tmp_path / "netrc"
    path.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n", encoding="utf-8")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    return path


@pytest.fixture
def command(model: medimg.TransferClassifier, orthanc: Orthanc, tmp_path: Path) -> list[str]:
    """``medimg predict`` that stores its results, with the source to be added."""
    saved = str(model.save(tmp_path / "model.safetensors"))
    return ["predict", "--no-progress", "--stow", orthanc.url, "--dicom-out", str(tmp_path / "out"), saved]


@pytest.mark.usefixtures("netrc")
def test_predict_stores_its_results_once(
    command: list[str],
    model: medimg.TransferClassifier,
    orthanc: Orthanc,
    ct: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for _ in range(2):
        assert main([*command, str(ct)]) == 0
        captured = capsys.readouterr()
        assert "5 DICOM instances stored\n" in captured.err
        assert len(captured.out.splitlines()) == 2
        assert PASSWORD not in captured.err
        assert len(orthanc.call("instances")) == 5
    for one in make_results(model, ct):
        found = retrieve(orthanc, str(one.SOPInstanceUID))
        assert (found.StudyInstanceUID, found.PatientID) == (one.StudyInstanceUID, one.PatientID)


def test_images_and_results_of_one_study(
    command: list[str], netrc: Path, orthanc: Orthanc, ct: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in ct.iterdir():
        orthanc.upload(path.read_bytes())
    study = pydicom.dcmread(next(ct.iterdir())).StudyInstanceUID
    for _ in range(2):
        assert main([*command, f"{orthanc.url}/studies/{study}"]) == 0
        captured = capsys.readouterr()
        # results are not taken for images
        assert len(captured.out.splitlines()) == 2
        assert "5 DICOM files in" in captured.err
        assert len(orthanc.call("instances")) == len(list(ct.iterdir())) + 5
    netrc.write_text(f"machine 127.0.0.1 login {USER} password wrong\n")
    assert main([*command, str(ct)]) == 1
    captured = capsys.readouterr()
    assert "5 not stored" in captured.err
    assert "401" in captured.err
    assert "wrong" not in captured.err
