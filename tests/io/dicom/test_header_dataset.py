"""``Series.header``: the whole header by name, and nothing that identifies in all that goes through it."""

from __future__ import annotations

import copy
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, ImplicitVRLittleEndian

import medimg
from medimg.errors import MedimgError, ReadError
from medimg.io.dicom.header.attributes import quiet_pydicom
from tests.dicom_files import make_instance, write
from tests.io.dicom.kinds import of_first_files

PIXELS = np.arange(48, dtype=np.uint16).reshape(6, 8)
#: What must appear nowhere.
SECRETS = ("SENTINEL", "Sentinel", "1.2.3.4", "20200101")


def make_header(**attributes: Any) -> FileDataset:
    inner, item = Dataset(), Dataset()
    inner.PersonName, inner.CodeMeaning = "Sentinel^Inner", "code"
    item.OperatorsName, item.RadionuclideTotalDose = "Sentinel^Nested", "370"
    item.PatientOrientationCodeSequence = [inner]
    item.add_new(0x00291010, "LO", "SENTINEL")
    ds = make_instance(PIXELS, KVP=120, StudyDate="20200101", SeriesDescription="SENTINEL", **attributes)
    ds.RadiopharmaceuticalInformationSequence = [item]
    block = ds.private_block(0x0029, "MAKER", create=True)
    block.add_new(0x0C, "LO", "SENTINEL")
    ds.add_new(0x00181234, "UN", b"SENTINEL")
    ds.file_meta.PrivateInformationCreatorUID = UID("1.2.3.4")
    ds.file_meta.PrivateInformation = b"SENTINEL"
    return ds


def header_of(source: Any) -> Any:
    return medimg.scan(source)[0].header


def save(header: Dataset) -> str:
    buffer = io.BytesIO()
    header.save_as(buffer)
    return buffer.getvalue().decode("latin-1")


def update(header: Dataset) -> str:
    other = Dataset()
    other.update(header)
    return save_part(other)


def save_part(part: Dataset) -> str:
    buffer = io.BytesIO()
    part.save_as(buffer, implicit_vr=False, little_endian=True)
    return buffer.getvalue().decode("latin-1")


WAYS: dict[str, Callable[[Any], str]] = {
    "str": str,
    "repr": repr,
    "top": lambda header: str(header.top()),
    "elements": lambda header: "".join(map(str, header)),
    "raw elements": lambda header: "".join(map(str, header.elements())),
    "flattened": lambda header: "".join(map(str, header.iterall())),
    "lines": lambda header: "".join(header.formatted_lines()),
    "items": lambda header: str(list(header.items())),
    "values": lambda header: str(list(header.values())),
    "json": lambda header: str(header.to_json()),
    "file": save,
    "update": update,
    "slice": lambda header: save_part(header[0x00080000:0x7FE00000]),
    "copy": lambda header: str(copy.deepcopy(header)) + save(copy.deepcopy(header)),
    "pickle": lambda header: str(pickle.loads(pickle.dumps(header))),
    "pickled bytes": lambda header: pickle.dumps(header, 0).decode("latin-1"),
    "shallow copy": lambda header: str(header.copy()) + str(vars(header.copy())),
    "dataset": lambda header: save_part(Dataset(header)),
    "attributes": lambda header: str(vars(header)),
    "meta": lambda header: str(header.file_meta) + str(vars(header.file_meta)),
    "item": lambda header: str(header.RadiopharmaceuticalInformationSequence[0]),
}


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_going_through_the_header_gives_nothing_that_identifies(
    way: str, implicit: bool, tmp_path: Path
) -> None:
    ds = make_header()
    if implicit:
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    said = WAYS[way](header_of(write(ds, tmp_path / "a.dcm")))
    for secret in SECRETS:
        assert secret not in said.replace("Sentinel Name", "")
    assert "120" in said or "370" in said or way == "meta"


def test_named_attributes_are_given(tmp_path: Path) -> None:
    header = header_of(write(make_header(), tmp_path / "a.dcm"))
    assert header.PatientName == "Sentinel^Name"
    assert header["PatientID"].value == header[0x0010, 0x0020].value == "SENTINEL-ID"
    assert header.get("StudyDate") == header.get_item(0x00080020).value == "20200101"
    assert "SeriesDescription" in header
    assert "AccessionNumber" not in header
    assert header.get("AccessionNumber", 3) == 3
    assert header.get_private_item(0x0029, 0x0C, "MAKER").value == "SENTINEL"
    assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
    item = header.RadiopharmaceuticalInformationSequence[0]
    assert item.OperatorsName == "Sentinel^Nested"
    assert item.PatientOrientationCodeSequence[0].PersonName == "Sentinel^Inner"
    listed = str(header).splitlines()[-1]
    assert listed.startswith("withheld")
    assert "PatientName" in listed
    assert listed.endswith("1 private")
    assert header.file_meta.PrivateInformation == b"SENTINEL"


def test_copies_have_what_is_withheld_and_pickles_do_not(tmp_path: Path) -> None:
    header = header_of(write(make_header(), tmp_path / "a.dcm"))
    copied = copy.deepcopy(header)
    assert copied.PatientID == header.copy().PatientID == "SENTINEL-ID"
    assert copied == header == header.copy()
    copied.RadiopharmaceuticalInformationSequence[0].OperatorsName = "Other"
    assert header.RadiopharmaceuticalInformationSequence[0].OperatorsName == "Sentinel^Nested"
    assert copied != header
    copied = copy.deepcopy(header)
    copied.PatientName = "Another"
    assert copied != header
    pickled = pickle.loads(pickle.dumps(header))
    assert type(pickled) is Dataset
    assert pickled.KVP == 120
    assert "PatientID" not in pickled
    assert pickled.file_meta.TransferSyntaxUID == header.file_meta.TransferSyntaxUID


def test_the_header_is_a_copy(tmp_path: Path) -> None:
    path = write(make_header(), tmp_path / "a.dcm")
    series = medimg.scan(path)[0]
    header = series.header
    header.PatientName = "Other"
    del header.PatientID
    header.KVP = 80
    assert header.PatientName == "Other"
    assert "PatientID" not in header
    assert header.pop("StudyDate").value == "20200101"
    assert "StudyDate" not in header
    assert header.pop("StudyDate", None) is None
    with pytest.raises(KeyError):
        header.pop("StudyDate")
    del header[0x00180000:0x00190000]
    assert "KVP" not in header
    header.ReferringPhysicianName = "Sentinel"
    header.BodyPartExamined = "HEAD"
    assert "Sentinel" not in str(header)
    assert "HEAD" in str(header)
    del header.ReferringPhysicianName
    assert "ReferringPhysicianName" not in header
    tag, element = header.popitem()
    assert tag == element.tag
    assert tag not in header
    assert series.header.PatientID == "SENTINEL-ID"
    assert series.header.KVP == 120
    header.clear()
    assert "PatientName" not in header


def test_pixels_are_read_when_they_are_used(tmp_path: Path) -> None:
    deflated = make_header()
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    plain = write(make_header(), tmp_path / "a.dcm")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(plain, "a.dcm")
    sources = [plain, write(deflated, tmp_path / "b.dcm"), tmp_path / "a.zip", make_header()]
    for source in sources:
        header = header_of(source)
        assert "PixelData" in header
        assert "Pixel Data" not in str(header)
        assert "FloatPixelData" not in header
        assert np.array_equal(header.pixel_array, PIXELS)
    without = make_header()
    del without.PixelData
    assert "PixelData" not in header_of(without)


def test_files_that_are_gone_or_changed(tmp_path: Path) -> None:
    path = write(make_header(), tmp_path / "a.dcm")
    series = medimg.scan(path)[0]
    write(make_header(), path)
    for read in (lambda: series.header, lambda: series.tags("KVP")):
        with pytest.raises(ReadError, match="has changed since it was scanned"):
            read()
    path.unlink()
    for read in (lambda: series.header, lambda: series.tags("KVP")):
        with pytest.raises(FileNotFoundError, match="no file"):
            read()


def test_formats_without_dicom_header(tmp_path: Path) -> None:
    medimg.Volume.from_array(np.zeros((2, 3, 4), np.float32), spacing=(1, 1, 1), modality="MR").save(
        tmp_path / "a.nii.gz"
    )
    series = medimg.scan(tmp_path)[0]
    with pytest.raises(MedimgError, match="NIfTI, which has no DICOM header"):
        _ = series.header
    assert series.tags("Modality", "KVP") == {"Modality": series.modality or None, "KVP": None}


def test_headers_of_real_files(real_data: Path) -> None:
    """Each header has all elements of the file before its pixels, and can be shown."""
    several = [series for path in of_first_files(real_data) for series in medimg.scan(path)]
    assert len(several) > 3
    for series in several:
        header = series.header
        with quiet_pydicom():
            plain = pydicom.dcmread(series.path, force=True, stop_before_pixels=True)
            assert all(tag in header for tag in list(plain.keys())), series.path
            assert header.get("PatientID") == plain.get("PatientID")
        name = str(plain.get("PatientName", ""))
        assert len(name) < 5 or name not in str(header)


def test_damaged_elements_are_withheld_too(tmp_path: Path) -> None:
    path = write(make_header(), tmp_path / "a.dcm")
    data = path.read_bytes()
    assert data.count(b"120.0 ") == 1
    path.write_bytes(data.replace(b"120.0 ", b"Sent,l"))
    header = header_of(path)
    assert "Sent,l" not in str(header) + header.to_json()
    assert "KVP" in str(header).splitlines()[-1]
    # as pydicom gives it, since it is named
    assert header.KVP == "Sent,l"
    with pytest.raises(KeyError):
        header["AccessionNumber"]
