"""Answers in DICOM, and studies of a DICOMweb server as the source of requests."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pydicom
import pytest

import medimg
from medimg.serve import make_app
from tests.io.dicomweb.fake_pacs import FakePacs, make_slice
from tests.serve.test_service import SMALL, ask, problem
from tests.serve.uploads import dicom, make_model, stack, zipped

pytest.importorskip("fastapi")
pytest.importorskip("python_multipart")
pytest.importorskip("highdicom")
pytest.importorskip("httpx")

ONE = {"Accept": "application/dicom"}
ALL = {"Accept": 'multipart/related; type="application/dicom"'}
CHART = {"PatientBirthDate": "", "StudyDate": "20240305", "StudyTime": "101112", "AccessionNumber": "A1"}
FULL: dict[str, Any] = {
    "PatientSex": "",
    "StudyID": "1",
    "ReferringPhysicianName": "",
    "SeriesNumber": 3,
    "InstanceNumber": 1,
} | CHART


@pytest.fixture(scope="module")
def model() -> medimg.TransferClassifier:
    return make_model()


@pytest.fixture(scope="module")
def app(model: medimg.TransferClassifier) -> Any:
    return make_app(model, limits=SMALL)


def parts_of(answer: Any) -> list[pydicom.Dataset]:
    assert answer.status_code == 200, answer.text
    kind, _, boundary = answer.headers["content-type"].rpartition("; boundary=")
    assert kind == 'multipart/related; type="application/dicom"'
    parts = answer.content.split(f"--{boundary}".encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    bodies = [part.removeprefix(b"\r\nContent-Type: application/dicom\r\n\r\n")[:-2] for part in parts[1:-1]]
    return [pydicom.dcmread(io.BytesIO(body)) for body in bodies]


def test_a_report_as_the_answer(app: Any, model: medimg.TransferClassifier) -> None:
    (answer,) = ask(app, {"content": dicom(**FULL), "headers": ONE})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/dicom"
    report = pydicom.dcmread(io.BytesIO(answer.content))
    assert (report.Modality, report.StudyInstanceUID, report.AccessionNumber) == ("SR", "1.2.3", "A1")
    proba = model.predict(dicom(**FULL))["p_nodule"][0]
    assert f"{proba:.4f}" in str(report)


def test_several_results_as_multipart(app: Any) -> None:
    body = zipped({f"{n}": dicom(n, **FULL) for n in range(3)})
    first, again, alone, both = ask(
        app,
        {"content": body, "headers": ALL},
        {"content": body, "headers": ALL},
        {"content": body, "headers": ALL, "url": "/predict?results=sc"},
        {"content": body, "headers": ONE, "url": "/predict?results=sr,sc"},
    )
    found = parts_of(first)
    assert found[0].Modality == "SR"
    assert len(found) > 1
    assert [one.SOPInstanceUID for one in found] == [one.SOPInstanceUID for one in parts_of(again)]
    assert "SR" not in [one.Modality for one in parts_of(alone)]
    assert "application/dicom is one" in problem(both, 406)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (["*/*"], "application/json"),
        (["application/dicom, application/json;q=0.9"], "application/dicom"),
        (["application/dicom;q=0.1, application/json;q=0.9"], "application/json"),
        (["application/json;q=0, */*"], "application/dicom"),
        (["application/*;q=0.5, multipart/related"], "multipart/related"),
        (["text/html", 'multipart/related; type="application/dicom"; q=0.3'], "multipart/related"),
        (["text/html;q=0.9, */*;q=0.1"], "application/json"),
        (["MULTIPART/*"], "multipart/related"),
        (["application/dicom; transfer-syntax=*"], "application/dicom"),
        (['multipart/related; type="image/jpeg"'], None),
        (["application/dicom+json"], None),
        (["application/json;q=0"], None),
        (["*/*;q=0"], None),
        ([""], "application/json"),
        (['"' * 9999], None),
    ],
)
def test_the_preferred_type_is_the_answer(accept: list[str], expected: str | None) -> None:
    from starlette.requests import Request

    from medimg.serve._dicom_answer import choose_answer_type
    from medimg.serve._problem import RequestError

    headers = [(b"accept", one.encode()) for one in accept]
    request = Request({"type": "http", "headers": headers})
    if expected is None:
        with pytest.raises(RequestError, match="allows no type"):
            choose_answer_type(request)
    else:
        assert choose_answer_type(request) == expected


def test_results_have_no_place_for_errors(app: Any) -> None:
    files = {"a": dicom(**FULL), "b": dicom(SeriesInstanceUID="1.2.9", **FULL)[:-40], "c": b"no image"}
    (refused,) = ask(app, {"content": zipped(files), "headers": ALL})
    assert "TruncatedError" in problem(refused, 422)
    del files["b"]
    (accepted,) = ask(app, {"content": zipped(files), "headers": ALL})
    assert parts_of(accepted)


def test_an_image_that_is_not_dicom_has_no_results(app: Any) -> None:
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint8) + np.arange(40, dtype=np.uint8)).save(file, "png")
    (answer,) = ask(app, {"content": file.getvalue(), "headers": ONE})
    assert "ConversionError" in problem(answer, 422)
    (answer,) = ask(app, {"content": stack(), "headers": ALL, "url": "/predict?unit=image"})
    assert "of series" in problem(answer, 400)


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    pytest.importorskip("requests")
    with FakePacs([make_slice(n, size=24) for n in range(3)]) as found:
        yield found


def test_a_study_of_a_server(pacs: FakePacs, model: medimg.TransferClassifier) -> None:
    app = make_app(model, limits=SMALL, dicomweb=[pacs.url + "/"])
    study, series, interface = ask(
        app,
        {"json": {"url": pacs.study_url}},
        {"json": {"url": pacs.series_url}, "url": "/predict?unit=image"},
        {"method": "GET", "url": "/openapi.json"},
    )
    (row,) = study.json()["predictions"]
    assert row["probabilities"]["nodule"] == model.predict(pacs.series_url)["p_nodule"][0]
    assert len(series.json()["predictions"]) == 3
    assert "application/json" in interface.json()["paths"]["/predict"]["post"]["requestBody"]["content"]


def test_other_servers_are_not_asked(pacs: FakePacs, model: medimg.TransferClassifier) -> None:
    app = make_app(model, limits=SMALL, dicomweb=["https://pacs.example.org/dicom-web"])
    other = pacs.url.replace("/dicom-web", "/dicom-web/../secret")
    urls = [pacs.study_url, f"{other}/studies/1.2", f"http://127.0.0.1:{pacs.port}/studies/1.2"]
    for answer in ask(app, *({"json": {"url": url}} for url in urls)):
        assert "RequestError" in problem(answer, answer.status_code)
        assert answer.status_code in (400, 403)
    assert pacs.seen == []


@pytest.mark.parametrize(
    "body",
    [
        b"{}", b"[1]", b'{"url": 3}', b'{"url": "x"}', b'{"url": "file:///etc/passwd"}', b"[" * 9000, b"\xff",
        b'{"url": "x", "y": 1}',
    ],
)  # fmt: skip
def test_malformed_urls(model: medimg.TransferClassifier, body: bytes) -> None:
    app = make_app(model, limits=SMALL, dicomweb=["https://pacs.example.org/dicom-web"])
    (answer,) = ask(app, {"content": body, "headers": {"Content-Type": "application/json"}})
    assert "expected" in problem(answer, 400)


def test_a_server_that_does_not_answer(model: medimg.TransferClassifier, pacs: FakePacs) -> None:
    gone = "http://127.0.0.1:9/dicom-web"
    for url in (pacs.url, gone):
        medimg.dicomweb(url, retries=0, timeout=5)
    app = make_app(model, limits=SMALL, dicomweb=[pacs.url, gone])
    urls = [f"{pacs.url}/studies/9.9", f"{gone}/studies/1.2", "x" * 20_000]
    missing, refused, large = ask(app, *({"json": {"url": url}} for url in urls))
    assert "404" in problem(missing, 404)
    problem(refused, 502)
    assert "bytes" in problem(large, 413)
