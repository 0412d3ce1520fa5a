"""The application without a server: requests, answers, errors, limits."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import logging
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import RLELossless

import medimg
from medimg.errors import MedimgError, MissingDependencyError, TrainingError
from medimg.serve import ServiceLimits, make_app
from tests.dicom_files import make_instance
from tests.serve.uploads import dicom, make_model, stack, zipped

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
httpx = pytest.importorskip("httpx")

DICOM = {"Content-Type": "application/dicom"}
ZIP = {"Content-Type": "application/zip"}
SMALL = ServiceLimits(max_upload_mb=4, max_unpacked_mb=8, max_files=50, upload_memory_mb=1)


@pytest.fixture(scope="module")
def model() -> medimg.TransferClassifier:
    return make_model()


@pytest.fixture(scope="module")
def app(model: medimg.TransferClassifier) -> Any:
    return make_app(model, limits=SMALL)


@pytest.fixture(scope="module", params=[0, 1], ids=["on disk", "in memory"])
def either(request: pytest.FixtureRequest, model: medimg.TransferClassifier) -> Any:
    """An application that keeps bodies on disk, or in memory."""
    return make_app(model, limits=ServiceLimits(upload_memory_mb=request.param))


def ask(app: Any, *requests: dict[str, Any]) -> list[Any]:
    """Send requests one after another; by default they are posted to /predict."""

    async def send() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            return [await client.request(**{"method": "POST", "url": "/predict"} | one) for one in requests]

    return asyncio.run(send())


def problem(answer: Any, status: int) -> str:
    """The error of an answer that is a problem of this status."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    found = answer.json()
    assert found["status"] == status
    assert found["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
    detail: str = found["detail"]
    assert detail
    assert not detail.endswith(".")
    return f"{found['error']}: {detail}"


def typed(content_type: str, body: bytes = b"x") -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Type": content_type}}


def nifti(shape: tuple[int, ...] = (9, 8, 4)) -> bytes:
    return bytes(nibabel.Nifti1Image(np.ones(shape, np.int16), np.eye(4)).to_bytes())


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(64, 48)).save(file, "png")
    return file.getvalue()


def overlapping() -> bytes:
    """An archive whose entries all are the same data."""
    kernel = zipped({"0": bytes(2**20)})
    start = kernel.index(b"PK\x01\x02")
    end = kernel.index(b"PK\x05\x06")
    entry = kernel[start:end]
    directory = b"".join(entry.replace(b"0", b"%c" % (65 + n)) if n else entry for n in range(20))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 20, 20, len(directory), start, 0)
    return kernel[:start] + directory + tail


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (dicom(), "application/dicom"),
        (stack(), "application/zip"),
        (nifti(), "application/octet-stream"),
        (gzip.compress(nifti()), "application/gzip"),
        (zipped({"a.nii.gz": gzip.compress(nifti())}), "application/zip"),
        (png(), "image/png"),
    ],
    ids=["DICOM", "zip", "NIfTI", "NIfTI gz", "zip of NIfTI gz", "PNG"],
)
def test_predictions_are_those_of_the_model(
    either: Any, model: medimg.TransferClassifier, body: bytes, content_type: str
) -> None:
    for unit in ("series", "image"):
        url = f"/predict?unit={unit}"
        (answer,) = ask(either, {"url": url, "content": body, "headers": {"Content-Type": content_type}})
        assert answer.status_code == 200, answer.text
        expected = model.predict(body, unit=unit)
        rows = answer.json()["predictions"]
        assert len(rows) == len(expected)
        for row, (_, wanted) in zip(rows, expected.iterrows(), strict=True):
            assert row["predicted"] == wanted["predicted"]
            assert row["probabilities"] == {name: wanted[f"p_{name}"] for name in model.classes}
            assert (row["slice"], row["error"]) == (wanted.get("slice"), None)


def test_files_of_a_form_are_one_source(either: Any, model: medimg.TransferClassifier) -> None:
    form = [("file", (f"{n}.dcm", dicom(n), "application/dicom")) for n in range(5)]
    (answer,) = ask(either, {"files": form})
    (row,) = answer.json()["predictions"]
    assert row["source"] == "0.dcm"
    assert row["series_uid"] == "1.2.3.4"
    assert row["probabilities"]["nodule"] == model.predict(stack())["p_nodule"][0]


def test_a_header_finds_its_values_in_the_form(either: Any) -> None:
    header = (
        b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 2\nElementType = MET_SHORT\nElementDataFile = a.raw\n"
    )
    form = [("file", ("a.mhd", header)), ("file", ("a.raw", np.arange(32, dtype="<i2").tobytes()))]
    (answer,) = ask(either, {"files": form})
    (row,) = answer.json()["predictions"]
    assert (row["source"], row["error"]) == ("a.mhd", None)


def test_multipart_related_of_dicomweb(app: Any, model: medimg.TransferClassifier) -> None:
    parts = b"".join(b"--b\r\nContent-Type: application/dicom\r\n\r\n" + dicom(n) + b"\r\n" for n in range(5))
    headers = {"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'}
    (answer,) = ask(app, {"content": parts + b"--b--\r\n", "headers": headers})
    (row,) = answer.json()["predictions"]
    assert row["probabilities"]["nodule"] == model.predict(stack())["p_nodule"][0]


def test_several_series_and_what_cannot_be_read(app: Any) -> None:
    second: dict[str, Any] = {"SeriesInstanceUID": "1.2.3.5"}
    third: dict[str, Any] = {"SeriesInstanceUID": "1.2.3.6"}
    files = {"a": dicom(0), "b": dicom(1, **second), "c": dicom(2, **third)[:-40], "d.txt": b"no image"}
    (answer,) = ask(app, {"content": zipped(files), "headers": ZIP})
    rows = answer.json()["predictions"]
    assert [row["series_uid"] for row in rows] == ["1.2.3.4", "1.2.3.5", "1.2.3.6"]
    assert [row["error"] is None for row in rows] == [True, True, False]
    assert rows[2]["error"].startswith("TruncatedError: ")
    assert rows[2]["probabilities"] is None


def test_a_damaged_member_of_an_archive_is_named(app: Any) -> None:
    data = stack()
    (answer,) = ask(app, {"content": data[:300] + b"\xff" * 300 + data[600:]})
    found, lost = answer.json()["predictions"]
    assert found["error"] is None
    assert lost["source"] == "body/ct/0.dcm"
    assert lost["error"].startswith("DecodeError: body/ct/0.dcm is damaged")


@pytest.mark.filterwarnings("ignore::medimg.errors.MedimgWarning")
def test_facts_of_the_model(tmp_path: Path) -> None:
    model = make_model(pool="mean")
    data = medimg.phantom.write_xray_dataset(tmp_path, patients=6, size=(40, 40), classes=list(model.classes))
    val = medimg.ImageDataset.from_csv(
        data,
        path="file",
        patient="patient_id",
        classes=model.classes,
        preprocess=model.preprocess,
        unit="series",
    )
    medimg.calibrate(model, val, coverage=0.9, operating_point="youden")
    version, answer = ask(
        make_app(model), {"method": "GET", "url": "/version"}, {"content": dicom(), "headers": DICOM}
    )
    facts = version.json()
    assert model.calibration is not None
    assert facts == answer.json()["model"]
    assert facts["digest"].startswith(model.predict(dicom()).attrs["model"])
    assert (facts["recipe"], facts["medimg"]) == (model.preprocess.fingerprint, medimg.__version__)
    assert (facts["classes"], facts["pool"]) == (["normal", "nodule"], "mean")
    assert facts["calibration"]["temperature"] == list(model.calibration.temperature)
    assert facts["calibration"]["patients"] == 6
    (row,) = answer.json()["predictions"]
    assert row["set"] == model.predict(dicom())["set"][0]
    assert str(tmp_path) not in version.text


def test_warnings_are_part_of_the_answer(
    model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = dicom(0)
    duplicate = dicom(0, SOPInstanceUID="1.2.3.4.99")
    (answer,) = ask(make_app(model), {"content": zipped({"a": one, "b": duplicate, "c": dicom(1)})})
    assert any("duplicate" in text or "identical" in text for text in answer.json()["warnings"]), answer.text


def test_state_and_interface(app: Any) -> None:
    paths = ("/health", "/ready", "/openapi.json", "/docs")
    health, ready, interface, docs = ask(app, *({"method": "GET", "url": url} for url in paths))
    assert health.json() == {"status": "alive"}
    assert ready.status_code in (200, 503)
    assert docs.status_code == 404
    schema = interface.json()
    assert set(schema["paths"]) == {"/predict", "/health", "/ready", "/version"}
    assert "application/dicom" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]
    answers = schema["paths"]["/predict"]["post"]["responses"]
    assert {"200", "400", "413", "415", "422", "503"} <= set(answers)
    assert set(schema["components"]["schemas"]["Prediction"]["properties"]) >= {"source", "probabilities"}
    assert health.headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("request_", "status", "words"),
    [
        ({"content": b""}, 400, "empty"),
        ({"content": dicom(), "url": "/predict?unit=study"}, 400, "unit must be"),
        ({"content": dicom(), "url": "/predict?untt=image"}, 400, "unknown setting 'untt'"),
        (typed("text/plain"), 415, "'text/plain'; expected multipart"),
        (typed("application/x-www-form-urlencoded"), 415, "curl"),
        ({"json": {"url": "https://host/studies/1.2"}}, 415, "'application/json'"),
        ({"content": dicom(), "headers": {"Content-Encoding": "gzip"}}, 415, "Content-Encoding"),
        ({"content": dicom(), "headers": {"Accept": "text/html"}}, 406, "application/json"),
        ({"content": dicom(), "url": "/predict?results=sr"}, 400, "results= is for answers in DICOM"),
        ({"url": "/predict?results=x", "headers": {"Accept": "application/dicom"}}, 400, "found 'x'"),
        (typed("multipart/form-data"), 400, "without a boundary"),
        (typed("multipart/form-data; boundary=x", b"--x"), 400, "last boundary"),
        (typed("multipart/form-data; boundary=x", b"junk"), 400, "multipart"),
        (typed("multipart/related; boundary=x", b"--x\r\nA: b\r\n\r\ncut"), 400, "last boundary"),
        (typed(f"multipart/related; boundary={'x' * 600}"), 400, "too long"),
        ({"files": {"file": ("a.dcm", dicom())}, "data": {"unit": "image"}}, 400, "not a file"),
        ({"content": b"no image"}, 415, "NotAnImageError: body is none of DICOM"),
        ({"content": zipped({})}, 415, "no files"),
        ({"content": zipped({"a.txt": b"text", "b.txt": b"text"})}, 415, "none of the 2 files"),
        ({"content": zipped({"inner.zip": stack()})}, 415, "NotAnImageError"),
        ({"content": dicom()[:-50]}, 422, "TruncatedError"),
        ({"content": stack()[:-200]}, 422, "ReadError: body is a damaged zip"),
        ({"content": overlapping()}, 422, "damaged"),
        ({"content": gzip.compress(nifti())[:-40]}, 422, "TruncatedError"),
        ({"content": zipped({f"{n}": dicom(n) for n in (0, 1, 2, 5)})}, 422, "MissingSlicesError"),
        ({"method": "GET"}, 405, "/predict"),
        ({"url": "/etc/passwd", "content": b"x"}, 404, "/predict"),
    ],
)  # fmt: skip
def test_refusals(app: Any, request_: dict[str, Any], status: int, words: str) -> None:
    refused, accepted = ask(app, request_, {"content": dicom(), "headers": DICOM})
    assert words in problem(refused, status)
    assert accepted.status_code == 200


def bomb_of_entries() -> bytes:
    """A small archive with more entries than anybody has files."""
    return zipped({f"{n}": b"" for n in range(60)})


def bomb_of_directory() -> bytes:
    """An archive whose directory is larger than those of as many files as may be sent."""
    return zipped({f"{n:0>1000}": b"" for n in range(40)})


def lying() -> bytes:
    """An archive whose member is larger than its directory says."""
    data = bytearray(zipped({"a.nii": nifti() + bytes(2**24)}))
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = struct.pack("<L", 2**16)
    return bytes(data)


def large_image() -> bytes:
    """A DICOM file of a few bytes that promises 10^9 pixels."""
    ds = make_instance(np.zeros((4, 4), np.uint8), Rows=30000, Columns=30000)
    ds.file_meta.TransferSyntaxUID = RLELossless
    ds.PixelData = encapsulate([b"\x01" + bytes(63) + b"\x81\x00" * 100])
    ds["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (bytes(2**22 + 1), "larger than 4 MiB"),
        (zipped({"a.nii": bytes(2**24)}), "expands to more than 8 MiB (its files)"),
        (zipped({f"{n}": bytes(2**21) for n in range(5)}), "expands to more than 8 MiB (its files)"),
        (gzip.compress(bytes(2**24)), "expands to more than 8 MiB (its files)"),
        (zipped({"a.nii.gz": gzip.compress(bytes(2**24))}), "expands to more than 8 MiB (its files)"),
        (bomb_of_entries(), "more than 50 files"),
        (bomb_of_directory(), "the directory of an archive has"),
        (large_image(), "pixels: its pixels"),
        (nifti((1, 1, 2000)), "its preprocessed images"),
    ],
    ids=["body", "zip", "many", "gzip", "gzip in zip", "entries", "directory", "pixels", "images"],
)
def test_bombs(app: Any, body: bytes, words: str) -> None:
    refused, accepted = ask(app, {"content": body}, {"content": dicom(), "headers": DICOM})
    assert words in problem(refused, 413)
    assert accepted.status_code == 200


def test_a_member_is_no_larger_than_it_says(app: Any) -> None:
    (answer,) = ask(app, {"content": lying()})
    assert "damaged" in problem(answer, 422)


def test_a_body_of_unknown_length_is_counted(app: Any) -> None:
    async def pieces() -> Any:
        for _ in range(80):
            yield bytes(2**16)

    (answer,) = ask(app, {"content": pieces()})
    assert "larger than 4 MiB" in problem(answer, 413)


def test_names_in_a_form_are_harmless(app: Any) -> None:
    form = [
        ("file", (name, b"no image"))
        for name in ("../../etc/passwd", "C:\\x\\etc.dcm", "a" * 3000, "é^\u202e")
    ]
    form.append(("file", ("x.dcm", dicom())))
    form.append(("file", ("x.dcm", dicom(SeriesInstanceUID="1.2.3.5")[:-40])))
    (answer,) = ask(app, {"files": form})
    assert "/etc" not in answer.text
    assert "\u202e" not in answer.text
    assert len(answer.text) < 4000
    assert [row["source"] for row in answer.json()["predictions"]] == ["x.dcm", "x.dcm (2)"]


def test_every_part_is_a_file_that_counts(app: Any) -> None:
    (answer,) = ask(app, {"files": [("file", (f"{n}", b"x")) for n in range(51)]})
    assert "more than 50 files" in problem(answer, 413)


class Gate:
    """A model whose predictions wait until they may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.may_go = threading.Event(), threading.Event()
        self.calls = 0
        predict = medimg.TransferClassifier.predict

        def wait(*arguments: Any, **settings: Any) -> Any:
            self.calls += 1
            self.entered.set()
            assert self.may_go.wait(30)
            return predict(*arguments, **settings)

        monkeypatch.setattr(medimg.TransferClassifier, "predict", wait)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def together(app: Any, gate: Gate, count: int, then: Callable[[], None]) -> list[Any]:
    """Send requests at the same time, do something once the first is predicted on, and let it go on."""

    async def send() -> list[Any]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            first = asyncio.ensure_future(client.post("/predict", content=dicom(), headers=DICOM))
            await asyncio.to_thread(gate.entered.wait, 30)
            rest = [client.post("/predict", content=dicom(), headers=DICOM) for _ in range(count - 1)]
            others = [asyncio.ensure_future(one) for one in rest]
            await asyncio.sleep(0.2)
            then()
            return list(await asyncio.gather(first, *others))

    return asyncio.run(send())


def test_a_full_queue_refuses(model: medimg.TransferClassifier, gate: Gate) -> None:
    app = make_app(model, limits=ServiceLimits(queue=2))
    answers = together(app, gate, 5, gate.may_go.set)
    assert [answer.status_code for answer in answers] == [200, 200, 503, 503, 503]
    assert "all 2 places" in problem(answers[2], 503)
    assert 1 <= int(answers[2].headers["retry-after"]) <= 120
    assert gate.calls == 2
    (answer,) = ask(app, {"content": dicom()})
    assert answer.status_code == 200


def test_a_prediction_that_takes_too_long(model: medimg.TransferClassifier, gate: Gate) -> None:
    app = make_app(model, limits=ServiceLimits(queue=2, request_timeout=0.3))
    answers = together(app, gate, 2, lambda: None)
    for answer in answers:
        assert "not done within 0.3 s" in problem(answer, 504)
    gate.may_go.set()
    # the second was taken out of the queue; the first holds its place until it ends
    assert gate.calls == 1


def test_unexpected_errors_are_not_quoted(
    model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("SENTINEL^NAME")

    caplog.set_level(logging.DEBUG)
    app = make_app(model)
    with monkeypatch.context() as patched:
        patched.setattr(medimg.TransferClassifier, "predict", fail)
        (answer,) = ask(app, {"content": dicom()})
    assert "unexpected error" in problem(answer, 500)
    assert "SENTINEL" not in answer.text + caplog.text
    assert f"unexpected RuntimeError in request {answer.headers['x-request-id']}" in caplog.text
    assert "test_service.py" in caplog.text
    with monkeypatch.context() as patched:
        patched.setattr(
            medimg.TransferClassifier, "predict", lambda *_, **__: (_ for _ in ()).throw(MemoryError)
        )
        (answer,) = ask(app, {"content": dicom()})
    assert "not enough memory" in problem(answer, 503)
    (answer,) = ask(app, {"content": dicom()})
    assert answer.status_code == 200


def test_the_log_names_no_patient(
    app: Any, caplog: pytest.LogCaptureFixture, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)  # of the client
    name = "SENTINEL"
    bodies = [
        dicom(PatientName=name),
        dicom(PatientName=name)[:-40],
        name.encode(),
        zipped({name: dicom(), "x": b""}),
    ]
    requests: list[dict[str, Any]] = [{"content": body} for body in bodies]
    requests += [{"url": f"/{name}"}, {"url": f"/predict?patient={name}"}, {"method": name}]
    requests += [{"files": {"file": (f"{name}.dcm", dicom()[:-40])}}]
    answers = ask(app, *requests)
    assert len(answers) == len(requests)
    said = caplog.text + "".join(capfd.readouterr())
    assert said.count("POST /predict 200") == 2
    assert "(unknown path) 404" in said
    assert name not in said


def test_a_full_disk_is_an_error_of_the_service(
    model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, _: Any) -> int:
            raise OSError(28, "No space left on device")

    app = make_app(model, limits=ServiceLimits(upload_memory_mb=0))
    with monkeypatch.context() as patched:
        patched.setattr("tempfile.TemporaryFile", lambda **_: Full())
        (answer,) = ask(app, {"content": dicom()})
    assert "no room" in problem(answer, 507)
    (answer,) = ask(app, {"content": dicom()})
    assert answer.status_code == 200


def test_only_names_that_are_allowed(model: medimg.TransferClassifier) -> None:
    app = make_app(model, allowed_hosts=["localhost", "Models.example.org"])
    allowed = [
        "localhost",
        "localhost:8000",
        "LOCALHOST",
        "models.example.org.:80",
        "127.0.0.1:8000",
        "[::1]:80",
    ]
    refused = [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "*",
        "[x",
    ]
    hosts = [{"method": "GET", "url": "/health", "headers": {"Host": name}} for name in allowed + refused]
    answers = ask(app, *hosts)
    assert [one.status_code for one in answers] == [200] * len(allowed) + [421] * len(refused)
    assert "not known as 'evil.example'" in problem(answers[len(allowed)], 421)
    for name in ("http://x", "x:80", "", "*.example.org"):
        with pytest.raises(TrainingError, match="without scheme and port"):
            make_app(model, allowed_hosts=[name])


def test_a_loopback_address_has_names_of_this_machine_only() -> None:
    from medimg.serve.run_server import choose_hosts

    assert choose_hosts("127.0.0.1") == ("localhost", "127.0.0.1")
    assert choose_hosts("localhost") == ("localhost", "localhost")
    assert choose_hosts("::1") == ("localhost",)
    assert choose_hosts("0.0.0.0") == choose_hosts("256.1.1.1") == ("*",)


def test_no_redirect_to_a_host_that_the_client_states(app: Any) -> None:
    paths = [{"url": "/predict/"}, {"method": "GET", "url": "/health/"}]
    for answer in ask(app, *({**one, "headers": {"Host": "evil.example"}} for one in paths)):
        assert "evil" not in problem(answer, 404) + str(answer.headers)


def test_balancers_ask_without_a_body(app: Any) -> None:
    for answer in ask(app, *({"method": "HEAD", "url": url} for url in ("/health", "/ready"))):
        assert answer.status_code in (200, 503)
        assert answer.content == b""


def test_arguments(model: medimg.TransferClassifier) -> None:
    with pytest.raises(TrainingError, match=r"medimg\.load"):
        make_app("model.safetensors")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(TrainingError, match="limits must be ServiceLimits"):
        make_app(model, limits={"queue": 3})  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(MedimgError, match="unit must be"):
        make_app(model, unit="study")  # type: ignore[arg-type]  # wrong on purpose
    for field in fields(ServiceLimits):
        with pytest.raises(MedimgError, match=f"{field.name} must be"):
            ServiceLimits(**{field.name: -1})


def test_a_missing_library_names_the_extra(
    model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "medimg\[serve\]"'):
        make_app(model)


def test_an_answer_is_valid_json(app: Any) -> None:
    (answer,) = ask(app, {"content": nifti(), "url": "/predict?unit=image"})
    rows = json.loads(answer.content, parse_constant=pytest.fail)["predictions"]
    assert [row["slice"] for row in rows] == [0, 1, 2, 3]


def test_clients_open_no_urls(model: medimg.TransferClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    from medimg.io.files import byte_ranges

    def refuse(url: str) -> None:
        raise AssertionError("a client had a URL opened")

    monkeypatch.setattr(byte_ranges, "find_storage", refuse)
    app = make_app(model, dicomweb=["https://pacs.example.org/dicom-web"])
    urls = [
        "s3://bucket/a.dcm", "memory://a.dcm", "http://127.0.0.1/a.dcm", "file:///etc/passwd",
        "https://other.example.org/dicom-web/studies/1.2", "s3://pacs.example.org/dicom-web/studies/1.2",
    ]  # fmt: skip
    for answer in ask(app, *({"json": {"url": url}} for url in urls)):
        assert answer.status_code in (400, 403)
    header = "ObjectType = Image\nNDims = 2\nDimSize = 2 2\nElementType = MET_UCHAR\nElementDataFile = "
    for url in urls:
        files = [("files", ("s3://bucket/x.mhd", (header + url).encode())), ("files", (url, url.encode()))]
        (answer,) = ask(app, {"files": files})
        assert answer.status_code == 422, answer.text
