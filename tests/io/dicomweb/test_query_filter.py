"""Nothing that is searched for is in any log, whatever is logged: a query can name a patient."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

import medimg
from medimg.errors import MedimgError
from tests.io.dicomweb.fake_pacs import FakePacs, Reply, Seen, make_slice

SEARCH: dict[str, Any] = {"PatientID": "SECRET-ID", "PatientName": "Doe^Jane", "StudyDate": "19131103"}
WORDS = ("SECRET", "Doe", "Jane", "19131103")


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs([make_slice(number) for number in range(3)]) as found:
        yield found


@pytest.fixture(autouse=True)
def log_everything(caplog: pytest.LogCaptureFixture) -> None:
    # also those that other tests have given a level of their own
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("urllib3", "requests", "http", "medimg")):
            caplog.set_level(logging.DEBUG, name)
    caplog.set_level(logging.DEBUG)


def check(caplog: pytest.LogCaptureFixture) -> None:
    shown = "\n".join(f"{one.getMessage()} {one.args} {one.exc_info}" for one in caplog.records)
    assert not any(word in shown or word in caplog.text for word in WORDS)


def break_headers(_: Seen, handler: BaseHTTPRequestHandler) -> bool:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n: nameless\r\nno header\r\n\r\n[]")
    return True


@pytest.mark.parametrize(
    "misbehave",
    [
        None,
        lambda *_: Reply(500),
        lambda *_: Reply(503),
        lambda *_: True,
        lambda seen, _: Reply(302, headers={"Location": f"{seen.path}?PatientID=SECRET-ID&x=Doe"}),
        break_headers,
    ],
)
def test_searches(pacs: FakePacs, misbehave: Any, caplog: pytest.LogCaptureFixture) -> None:
    pacs.misbehave = misbehave
    server = medimg.dicomweb(pacs.url, retries=1, timeout=5)
    message = try_to_search(server)
    assert not any(word in message for word in WORDS)
    assert any(one.name.startswith("urllib3") for one in caplog.records)
    assert "/series?…" in caplog.text or "broke off" in message
    check(caplog)


def try_to_search(server: medimg.DicomWebServer) -> str:
    try:
        server.search(**SEARCH)
    except MedimgError as error:
        return str(error)
    return ""


def test_an_unreachable_server(caplog: pytest.LogCaptureFixture) -> None:
    server = medimg.dicomweb("http://127.0.0.1:9/dicom-web", retries=1, timeout=2)
    with pytest.raises(ConnectionError):
        server.search(**SEARCH)
    assert any(one.name.startswith("urllib3") for one in caplog.records)
    check(caplog)


def test_others_log_what_they_want(pacs: FakePacs, caplog: pytest.LogCaptureFixture) -> None:
    import requests

    medimg.dicomweb(pacs.url).search(**SEARCH)
    requests.get(f"{pacs.url}/series?limit=7", timeout=5).close()
    assert "/series?limit=7" in caplog.text
    check(caplog)
