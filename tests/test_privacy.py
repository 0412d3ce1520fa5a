"""
A name planted in everything that identifies a patient turns up in nothing that medimg says or writes.

Paths are an exception where the caller gave them: errors and tables of predictions name the files that they
are about. Here these have neutral names; the files of training and evaluation are named after patients.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

import medimg
from medimg.errors import LeakageError, MedimgError, MissingSlicesError, TruncatedError
from medimg.saliency.explain import explain
from tests.dicom_files import make_instance, write

NAME, BIRTH, UIDS = "SENTINEL", "19131103", "1.2.826.0.1.3680043.2.1143.7777"
RECIPE = medimg.Preprocess(size=48)
TEXTS = (
    "PatientName", "PatientID", "OtherPatientNames", "PatientBirthName", "PatientMotherBirthName",
    "PatientAddress", "PatientTelephoneNumbers", "PatientComments", "MedicalRecordLocator",
    "AccessionNumber", "StudyID", "ReferringPhysicianName", "RequestingPhysician", "PerformingPhysicianName",
    "OperatorsName", "NameOfPhysiciansReadingStudy", "InstitutionName", "InstitutionAddress",
    "InstitutionalDepartmentName", "StationName", "DeviceSerialNumber", "StudyDescription",
    "SeriesDescription", "ProtocolName", "ImageComments", "AdmissionID", "ContentCreatorName",
    "RequestedProcedureDescription", "PerformedProcedureStepDescription", "DerivationDescription",
)  # fmt: skip
DATES = (
    "PatientBirthDate",
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "InstanceCreationDate",
)


def instance(n: int, pixels: np.ndarray[Any, Any] | None = None, **attributes: Any) -> FileDataset:
    """An image of patient n, whose name stands wherever there is room for it."""
    rng = np.random.default_rng(n)
    values = rng.integers(0, 2000, (48, 48)).astype(np.uint16) if pixels is None else pixels
    ds = make_instance(values, **{k: v for k, v in attributes.items() if k in ("ImagePositionPatient",)})
    for keyword in TEXTS:
        setattr(ds, keyword, f"{NAME}{n}")
    for keyword in DATES:
        setattr(ds, keyword, BIRTH)
    ds.PatientBirthTime = "111213"
    ds.PatientSex, ds.PatientAge = "FM"[n % 2], f"{20 + n:03d}Y"
    ds.StudyInstanceUID = ds.FrameOfReferenceUID = f"{UIDS}.1.{n}"
    ds.SeriesInstanceUID = f"{UIDS}.2.{n}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"{UIDS}.3.{n}")
    ds.ManufacturerModelName = "Scanner 3000"
    ds.OtherPatientIDs = f"{NAME}{n}-OTHER"
    item = Dataset()
    item.PatientID, item.RequestedProcedureDescription = f"{NAME}{n}-ITEM", f"{NAME}{n}"
    ds.OtherPatientIDsSequence = ds.RequestAttributesSequence = Sequence([item])
    block = ds.private_block(0x0009, f"{NAME} CREATOR", create=True)
    block.add_new(0x01, "LO", f"{NAME}{n}")
    block.add_new(0x02, "UN", f"{NAME}{n} ".encode())
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


@dataclass
class Said:
    """All that was said and written, by where."""

    texts: dict[str, str] = field(default_factory=dict)
    #: What may hold UIDs: a table of predictions is there to be joined with images.
    with_uids: set[str] = field(default_factory=set)

    def add(self, where: str, text: str | bytes, *, uids: bool = False) -> None:
        self.texts[where] = text.decode("latin-1") if isinstance(text, bytes) else text
        if uids:
            self.with_uids.add(where)

    def add_folder(self, folder: Path) -> None:
        for path in sorted(folder.rglob("*")):
            self.add(f"name of {path.name[:40]}", str(path.relative_to(folder)))
            if path.is_file():
                self.add(f"content of {path.relative_to(folder)}", path.read_bytes())

    def check(self) -> None:
        for where, text in self.texts.items():
            lowered = text.lower()
            for secret in (NAME.lower(), NAME.lower().encode("utf-16-le").decode("latin-1"), BIRTH):
                assert secret not in lowered, f"{secret!r} in {where}"
            if where not in self.with_uids:
                assert UIDS not in lowered, f"a UID in {where}"


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each class, files named after patients, and one that is no image."""
    root = tmp_path_factory.mktemp("scans") / f"{NAME}^FOLDER"
    for n in range(36):
        ds = instance(n)
        pixels = np.random.default_rng(n).integers(0, 900 + 600 * (n % 2), (48, 48)).astype(np.uint16)
        ds.PixelData = pixels.tobytes()
        write(ds, root / ("normal", "nodule")[n % 2] / f"{NAME}^{n}" / f"{NAME}-{n}.dcm")
    (root / "normal" / f"{NAME}.txt").write_text(f"{NAME} was here on {BIRTH}")
    return root


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Iterator[Said]:
    """Collect what a test says; logs, warnings and output by themselves."""
    caplog.set_level(logging.DEBUG)
    found = Said()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield found
    found.add("log", caplog.text)
    found.add("warnings", "\n".join(str(one.message) for one in warned))
    for stream, text in zip(("output", "errors"), capsys.readouterr(), strict=True):
        found.add(stream, text)
    found.check()


@pytest.mark.slow
def test_from_files_to_report(scans: Path, tmp_path: Path, said: Said) -> None:
    output = tmp_path / "output"
    data = medimg.ImageDataset.from_folder(scans, RECIPE, cache=tmp_path / "cache")
    assert len(data.skipped) == 1
    train, val, test = medimg.split(data, fractions=(0.4, 0.35, 0.25))
    medimg.save_split(output / "split.json", train=train, val=val, test=test)
    leaks = medimg.check_leaks(train, test)
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=RECIPE)
    fit = medimg.fine_tune(model, train, val, head_epochs=1, epochs=1, batch_size=4, output=output)
    calibration = medimg.calibrate(model, val, train=train, coverage=0.8, operating_point="youden")
    model = medimg.load(model.save(output / "model.safetensors"))
    report = medimg.evaluate(
        model, test, n_resamples=30, subgroups=["sex", "age", "site", "scanner"], saliency=True
    )
    split = {"train": train, "val": val, "test": test}
    page = report.to_html(output / "report.html", fit=fit, split=split, card=True)
    report.to_csv(output / "predictions.csv")
    assert "not an image (none of DICOM" in page.read_text()
    said.add_folder(output)
    said.add_folder(tmp_path / "cache")
    for n, picture in enumerate(pictures_of(page)):
        said.add(f"picture {n}", picture)
    for thing in (data, train, leaks, model, fit, calibration, model.training_ranges, report, report.curves):
        html = getattr(thing, "_repr_html_", str)()
        said.add(f"repr of {type(thing).__name__}", repr(thing) + html)
    said.add("text of the report", str(report) + report._repr_html_())
    said.add("provenance", json.dumps(report.provenance))
    said.add("predictions", report.predictions.to_string())
    assert report.subgroups is not None
    said.add("subgroups", report.subgroups.to_string())
    said.add("every field", repr(report.__dict__))
    said.add("summary of the training", repr(model.training_summary))


def pictures_of(page: Path) -> Iterator[bytes]:
    """The pictures of a page, as files, and what they say beside their pixels."""
    for kind, text in re.findall(r"data:image/([a-z+]+);base64,([A-Za-z0-9+/=]+)", page.read_text()):
        data = base64.b64decode(text)
        yield data
        if kind in ("png", "jpeg"):
            yield repr(Image.open(io.BytesIO(data)).info).encode()


@pytest.fixture
def neutral(tmp_path: Path) -> Path:
    """A stack of five slices of one patient; its files have neutral names."""
    for n in range(5):
        ds = instance(1, ImagePositionPatient=[0.0, 0.0, 2.0 * n], InstanceNumber=n + 1)
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = UID(f"{UIDS}.3.{n}")
        write(ds, tmp_path / "stack" / f"{n}.dcm")
    return tmp_path / "stack"


def test_reading_and_predicting(neutral: Path, said: Said) -> None:
    index = medimg.scan(neutral)
    volume = medimg.read(neutral)
    model = medimg.TransferClassifier("squeezenet1_1", classes=("a", "b"), weights=None, preprocess=RECIPE)
    said.add("index", repr(index) + index._repr_html_() + index[0]._repr_html_())
    said.add("volume", repr(volume) + str(volume.report) + volume._repr_html_())
    for unit in ("series", "image"):
        table = model.predict([neutral], unit=unit)
        said.add(f"table of {unit}", table.to_csv(), uids=True)
        said.add(f"attributes of {unit}", repr(table.attrs))
    said.add("explanation", repr(explain(model, volume)))
    said.add("picture", volume._repr_png_())


def truncated(folder: Path) -> None:
    path = folder / "0.dcm"
    path.write_bytes(path.read_bytes()[:-500])
    medimg.read(path)


def missing(folder: Path) -> None:
    (folder / "2.dcm").unlink()
    medimg.read(folder)


def damaged(folder: Path) -> None:
    path = folder / "0.dcm"
    content = bytearray(path.read_bytes())
    at = content.find(b"\x28\x00\x10\x00")
    content[at + 8 : at + 10] = b"\xff\xff"
    path.write_bytes(bytes(content))
    medimg.read(path)


def ambiguous(folder: Path) -> None:
    for n in (2, 3):
        # two series by their descriptions, which is what the error lists
        write(instance(n, SeriesDescription="other"), folder / f"more {n}.dcm")
    medimg.read(folder)


def leaking(folder: Path) -> None:
    data = two_classes(folder)
    model = medimg.TransferClassifier("squeezenet1_1", classes=data.classes, weights=None, preprocess=RECIPE)
    medimg.fine_tune(model, data, data, progress=False)


def disagreeing(folder: Path) -> None:
    """Of the table's patients two share a Patient ID, and the files have several."""
    write(instance(9), folder / "4.dcm")
    two_classes(folder, patient="patient")


def unsplittable(folder: Path) -> None:
    medimg.split(two_classes(folder))


def twins(folder: Path) -> None:
    """The same pixels under two patients."""
    for n in (10, 11, 12, 13):
        write(instance(n, pixels=np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)), folder / f"{n}.dcm")
    rows = [(f"{n}.dcm", "ab"[n % 2]) for n in (10, 11, 12, 13)]
    table = pd.DataFrame(rows, columns=["file", "label"])
    data = medimg.ImageDataset.from_csv(table, path="file", root=folder, preprocess=RECIPE)
    medimg.split(data, fractions=(0.5, 0.5), check="pixels")


def two_classes(folder: Path, **options: Any) -> medimg.ImageDataset:
    table = pd.DataFrame(
        [(f"{n}.dcm", "ab"[n % 2], f"p{n}") for n in range(5)], columns=["file", "label", "patient"]
    )
    return medimg.ImageDataset.from_csv(table, path="file", root=folder, preprocess=RECIPE, **options)


@pytest.mark.parametrize(
    ("provoke", "kind"),
    [
        (truncated, TruncatedError),
        (missing, MissingSlicesError),
        (damaged, MedimgError),
        (ambiguous, MedimgError),
        (leaking, LeakageError),
        (disagreeing, LeakageError),
        (unsplittable, LeakageError),
        (twins, LeakageError),
    ],
)
def test_errors(provoke: Callable[[Path], None], kind: type[MedimgError], neutral: Path, said: Said) -> None:
    if provoke is ambiguous:
        for path in sorted(neutral.glob("*.dcm")):
            relabel(path)
    with pytest.raises(kind) as caught:
        provoke(neutral)
    said.add("error", str(caught.value) + repr(caught.value), uids=provoke is ambiguous)
    # what caused it is printed with it
    cause = caught.value.__cause__ or (
        None if caught.value.__suppress_context__ else caught.value.__context__
    )
    said.add("cause", repr(cause))


def relabel(path: Path) -> None:
    """Describe a series without a name: the error that lists series shows their descriptions."""
    import pydicom

    ds = copy.deepcopy(pydicom.dcmread(path))
    ds.SeriesDescription = "chest"
    write(ds, path)


@pytest.mark.parametrize("text", [f"a {NAME}", NAME.lower(), f"born {BIRTH}", NAME.encode("utf-16-le"), UIDS])
def test_a_leak_is_found(text: str | bytes) -> None:
    found = Said()
    found.add("somewhere", text)
    with pytest.raises(AssertionError, match="somewhere"):
        found.check()
